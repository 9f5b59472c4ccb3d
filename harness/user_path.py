"""Makes the user's own modules importable without letting them hide installed ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "OPTBENCH_USER_PATH"
"""Names the user's folder in the processes that optbench starts, which run with PYTHONSAFEPATH."""


def folder() -> Path:
    """Return the user's folder: the current one, unless the variable names another."""
    return Path(os.environ.get(VARIABLE) or Path.cwd())


def extend(otherwise: str | None = None) -> None:
    """Append ``$OPTBENCH_USER_PATH`` to ``sys.path``, so that a ``workloads/`` of the user's hides nothing.

    Our own folder goes before it: an editable install is found by a hook that Python asks after ``sys.path``.

    Args:
        otherwise: the folder, where the variable is not set.
    """
    ours = str(Path(__file__).resolve().parents[1])
    for folder in filter(None, [ours, os.environ.get(VARIABLE) or otherwise]):
        if folder not in sys.path:
            sys.path.append(folder)
