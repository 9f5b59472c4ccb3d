"""The harness's clock against another one: the steps of a turn must fill it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

SLACK_S = 200e-6
"""A step: what the loop itself takes between one step's end and the next one's begin (20 µs on an idle core)."""

MISSING = 0.15
"""Share of a turn that may be in no step beyond the slack; leaving out the shortest of phases costs more."""

SURPLUS = 0.05
"""Share by which the steps of a turn may be longer than the turn: two clocks, and a device's own."""

LEAST_S = 0.002
"""Of a turn: in a shorter one nothing can be told."""


@dataclass(frozen=True)
class TimedTurn:
    """One turn.

    Attributes:
        steps: how many.
        told_s: sum of the step times that were recorded.
        elapsed_s: of the other clock.
    """

    steps: int
    told_s: float
    elapsed_s: float


def now_s() -> float:
    """Return the system's raw monotonic clock, which is not the one that steps are timed with."""
    raw = getattr(time, "CLOCK_MONOTONIC_RAW", None)
    return time.monotonic() if raw is None else time.clock_gettime(raw)


def disagreement(turns: list[TimedTurn]) -> str | None:
    """Say by how much the recorded times miss the time that went by; None: they fill it.

    The median over turns decides, since a rank may lose its core between two steps of one. Where most turns are
    too short, the few long ones are those in which it did, and nothing can be told.
    """
    known = [turn for turn in turns if turn.elapsed_s >= LEAST_S]
    if 2 * len(known) <= len(turns):
        return None
    missing = statistics.median((t.elapsed_s - t.told_s - SLACK_S * t.steps) / t.elapsed_s for t in known)
    surplus = statistics.median((t.told_s - t.elapsed_s) / t.elapsed_s for t in known)
    told, elapsed = sum(t.told_s for t in known), sum(t.elapsed_s for t in known)
    if missing <= MISSING and surplus <= SURPLUS:
        return None
    return f"the steps recorded take {told:.4g} s and {elapsed:.4g} s went by"
