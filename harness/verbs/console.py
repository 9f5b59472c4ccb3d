"""Where verbs print and how they end: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Sequence

DONE, FAILED, INVALID_INPUT, INCONCLUSIVE, WRONG, INTERRUPTED = 0, 1, 2, 3, 4, 130

errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
output = Console(highlight=False, emoji=False)


def tell(text: str) -> None:
    """Print a line of progress."""
    errors.print(text, markup=False)


def print_json(document: Any) -> None:
    """Print one JSON document and nothing else."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def exit_code(outcomes: Sequence[str]) -> int:
    """Return the exit code for runs that ended so; unsupported ones count as done, unless there are no others."""
    if "wrong" in outcomes:
        return WRONG
    if all(outcome == "unsupported" for outcome in outcomes):
        return FAILED
    return DONE if set(outcomes) <= {"completed", "unsupported"} else FAILED
