"""The few exceptions that cross module borders."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


NO_SPACE_EXIT_CODE = 74
"""Exit code of a rank that could not write its results, and of a command that could not print them (sysexits.h:
EX_IOERR): nothing else could tell."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in what a user wrote.

    Attributes:
        where: file and path of the key, or the option of the command line.
        what: what was found, what was expected.
        remedy: what to write or run instead, if known.
    """

    where: str
    what: str
    remedy: str | None = None

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}"
        return f"{text}\n    {self.remedy}" if self.remedy else text


class OptbenchError(Exception):
    """Base of every error that optbench raises on purpose."""


class Interruption(KeyboardInterrupt):
    """The user, or the system, asks the command to end: no module raises this, as some do KeyboardInterrupt."""


class InvalidInputError(OptbenchError):
    """The words or the files given are wrong; holds every problem found, not the first (exit code 2)."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@contextlib.contextmanager
def gathered(problems: list[Problem]) -> Iterator[None]:
    """Add what is found wrong within to ``problems``, so that all of it is told at once."""
    try:
        yield
    except InvalidInputError as error:
        problems += error.problems


def refuse(problems: Sequence[Problem]) -> None:
    """Raise where something was found wrong.

    Raises:
        InvalidInputError: with all of it, each problem once.
    """
    if problems:
        raise InvalidInputError(list(dict.fromkeys(problems)))


class UnsupportedError(OptbenchError):
    """A cell that cannot run here, found out only while starting it; the message is the reason."""


class UndeclaredError(UnsupportedError):
    """An optimizer whose traits leave out what its step needs: a run of it would train something else."""


class DivergedError(OptbenchError):
    """The loss is no longer finite; the message names the step and the value."""


class WrongAnswerError(OptbenchError):
    """A check inside the run failed; the message names check, step and tensor, and what to do."""


class CorruptFileError(OptbenchError):
    """A stored file cannot be read as what it claims to be; the message names file and line."""
