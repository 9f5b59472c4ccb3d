"""Ids of runs and sweeps: sorted by time, unguessable, safe as the name of a folder."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.errors import InvalidInputError, Problem
from harness.spec import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DIGITS = "0123456789abcdefghijklmnopqrstuv"
"""Base 32 in the order of its characters (RFC 4648, section 7)."""

RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-z]{10,40}")
SWEEP_ID = re.compile(r"sweep-[0-9]{8}T[0-9]{6}-[0-9a-z]{10,40}")
COMPARISON_ID = re.compile(r"comparison-[0-9]{8}T[0-9]{6}-[0-9a-z]{10,40}")
ANY_ID = re.compile(r"(?:([a-z][a-z-]*)-)?([0-9]{8}T[0-9]{6}-[0-9a-z]{10,40})")
"""Of whatever a store holds: its kind, nothing for a run, and the part that sorts by time."""

LATEST = "latest"


def new_id() -> str:
    """Return an id such as ``20261123T054501-f0s4k7q2m9b1t8va``: UTC, then microseconds, then 60 random bits."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}-{_digits(now.microsecond, 4)}{_digits(secrets.randbits(60), 12)}"


def _digits(value: int, count: int) -> str:
    return "".join(DIGITS[value >> 5 * place & 31] for place in reversed(range(count)))


def kind_of(any_id: str) -> str:
    """Return the kind of what has this id, the word before it, ``sweep`` say; without a word it is a ``run``."""
    found = ANY_ID.fullmatch(any_id)
    return (found and found[1]) or "run"


def without_kind(any_id: str) -> str:
    """Return the part of an id that sorts by time."""
    found = ANY_ID.fullmatch(any_id)
    return found[2] if found else any_id


def match_id(word: str, ids: Sequence[str], kind: str) -> str:
    """Return the one id that a user's word means.

    Args:
        word: an id, the beginning of one, or ``latest``. The beginning of a whole id goes before that of one
            without its kind, and that before one of the random part alone.
        ids: those there are, oldest first.
        kind: run or sweep, for messages.

    Raises:
        InvalidInputError: none or several match.
    """
    if word == LATEST and ids:
        return ids[-1]
    parts: tuple[Callable[[str], str], ...] = (str, without_kind, lambda each: each.rpartition("-")[2])
    tiers = ([each for each in ids if word and part(each).startswith(word)] for part in parts)
    found = next(filter(None, tiers), [])
    if len(found) == 1 or word in found:
        return word if word in found else found[0]
    if not ids:
        raise InvalidInputError([Problem(word, f"the store holds no {kind}", "optbench run makes one")])
    if not found:
        raise InvalidInputError([Problem(word, f"no {kind} has this id", suggest(word, [*ids[-5:], LATEST]))])
    shown = ", ".join(found[:4]) + (" …" if len(found) > 4 else "")
    several = "ids" if " " in kind else f"{kind}s"
    raise InvalidInputError(
        [Problem(word, f"{len(found)} {several} begin like this", f"write more of one: {shown}")]
    )
