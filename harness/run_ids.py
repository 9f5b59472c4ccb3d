"""Ids of runs and sweeps: sorted by time, unguessable, safe as the name of a folder."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.errors import InvalidInputError, Problem
from harness.spec import suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

DIGITS = "0123456789abcdefghijklmnopqrstuv"
"""Base 32 in the order of its characters (RFC 4648, section 7)."""

RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-z]{10,40}")
SWEEP_ID = re.compile(r"sweep-[0-9]{8}T[0-9]{6}-[0-9a-z]{10,40}")
COMPARISON_ID = re.compile(r"comparison-[0-9]{8}T[0-9]{6}-[0-9a-z]{10,40}")
LATEST = "latest"


def new_id() -> str:
    """Return an id such as ``20261123T054501-f0s4k7q2m9b1t8va``: UTC, then microseconds, then 60 random bits."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}-{_digits(now.microsecond, 4)}{_digits(secrets.randbits(60), 12)}"


def _digits(value: int, count: int) -> str:
    return "".join(DIGITS[value >> 5 * place & 31] for place in reversed(range(count)))


def match_id(word: str, ids: Sequence[str], kind: str) -> str:
    """Return the one id that a user's word means.

    Args:
        word: an id, the beginning of one (of all of it, or of its random part), or ``latest``.
        ids: those there are, oldest first.
        kind: run or sweep, for messages.

    Raises:
        InvalidInputError: none or several match.
    """
    if word == LATEST and ids:
        return ids[-1]
    found = [each for each in ids if word and (each.startswith(word) or each.rpartition("-")[2].startswith(word))]
    if len(found) == 1 or word in found:
        return word if word in found else found[0]
    if not ids:
        raise InvalidInputError([Problem(word, f"the store holds no {kind}", "optbench run makes one")])
    if not found:
        raise InvalidInputError([Problem(word, f"no {kind} has this id", suggest(word, [*ids[-5:], LATEST]))])
    shown = ", ".join(found[:4]) + (" …" if len(found) > 4 else "")
    raise InvalidInputError(
        [Problem(word, f"{len(found)} {kind}s begin like this", f"write more of one: {shown}")]
    )
