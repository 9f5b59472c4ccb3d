"""Where verbs print and how they end: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TextIO

DONE, FAILED, INVALID_INPUT, INCONCLUSIVE, WRONG, INTERRUPTED = 0, 1, 2, 3, 4, 130

SIZES = ("COLUMNS", "LINES")
"""Variables that say how large the terminal is."""


def sensible(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without sizes that no terminal has: with ``COLUMNS=0`` nothing would be shown."""
    return {
        name: value
        for name, value in environment.items()
        if name not in SIZES or (value.isdigit() and int(value) > 0)
    }


def console(*, stderr: bool = False, **more: Any) -> Console:
    """Return a console, of a size in which something can be shown."""
    return Console(stderr=stderr, highlight=False, emoji=False, _environ=sensible(os.environ), **more)


class UnwrittenError(Exception):
    """A stream that people or programs read cannot be written: a full disk, say."""

    def __init__(self, stream: TextIO, reason: str) -> None:
        self.stream = stream
        super().__init__(reason)


class Written:
    """A standard stream that tells its own failures from those of files: by raising `UnwrittenError`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text."""
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        """Write what waits."""
        with self._told():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UnwrittenError(self._stream, error.strerror or str(error)) from error


errors = console(stderr=True, soft_wrap=True)
output = console()


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
