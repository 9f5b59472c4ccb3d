"""Ratios: within a launch the Hodges-Lehmann estimate of log ratios, across launches a mean with a t interval.

Two processes of the same code differ (memory layout, about 1 %), so that launches and not turns are the sample:
within one launch more turns don't remove that difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.comparison.model import Launch, Turn

STALL = 5.0
"""A step of so many times its arm's median is a stall."""


def hodges_lehmann(values: Sequence[float]) -> float:
    """Return the median of all pairwise means, each value with itself included (Hodges and Lehmann 1963).

    Raises:
        ValueError: there are no values.
    """
    import numpy as np

    found = np.asarray(values, dtype=float)
    if not found.size:
        raise ValueError("no values")
    rows, columns = np.triu_indices(found.size)
    return float(np.median((found[rows] + found[columns]) / 2))


@dataclass(frozen=True)
class Interval:
    """Of a mean of log ratios.

    Attributes:
        centre: mean.
        half: half its width; infinite for one launch.
    """

    centre: float
    half: float

    @property
    def low(self) -> float:
        """Lower end."""
        return self.centre - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.centre + self.half


def interval(values: Sequence[float], alpha: float) -> Interval:
    """Return the mean of log ratios, one a launch, with its two-sided t interval of confidence 1 - ``alpha``."""
    import numpy as np
    from scipy import stats

    found = np.asarray(values, dtype=float)
    centre = float(found.mean())
    if found.size < 2:
        return Interval(centre, math.inf)
    error = float(found.std(ddof=1)) / math.sqrt(found.size)
    return Interval(centre, float(stats.t.ppf(1 - alpha / 2, found.size - 1)) * error)


def p_above(values: Sequence[float], bound: float) -> float:
    """Return the one-sided p of "the mean of the log ratios is at most ``bound``": small where it is above."""
    import numpy as np
    from scipy import stats

    found = np.asarray(values, dtype=float)
    if found.size < 2:
        return 1.0
    spread = float(found.std(ddof=1))
    gap = float(found.mean()) - bound
    if not spread:
        return 0.0 if gap > 0 else 1.0
    return float(stats.t.sf(gap / (spread / math.sqrt(found.size)), found.size - 1))


def p_below(values: Sequence[float], bound: float) -> float:
    """Return the one-sided p of "the mean of the log ratios is at least ``bound``": small where it is below."""
    return p_above([-each for each in values], -bound)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number, in the order given (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def log_ratios(launch: Launch, arms: tuple[int, int], quantity: Callable[[Turn], float | None]) -> list[float]:
    """Return log(B/A) of each round in which both arms had a turn and the quantity is known and positive."""
    sides: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for turn in launch.turns:
        if turn.arm in arms:
            value = quantity(turn)
            if value is not None and value > 0:
                sides[arms.index(turn.arm)][turn.round] = value
    first, second = sides
    return [math.log(second[number] / first[number]) for number in sorted(first.keys() & second.keys())]


def rounds_of(launch: Launch) -> int:
    """Return how many rounds a launch had, one that was not finished included."""
    return 1 + max((turn.round for turn in launch.turns), default=-1)


def mean_step(turn: Turn) -> float | None:
    """Return the mean time of a turn's timed steps: stalls are part of it."""
    return sum(turn.step_time_s) / len(turn.step_time_s) if turn.step_time_s else None


def stalls(times: Sequence[float]) -> int:
    """Return how many times exceed five times the median."""
    import numpy as np

    found = np.asarray(times, dtype=float)
    return int((found > STALL * np.median(found)).sum()) if found.size else 0


def p99(times: Sequence[float]) -> float | None:
    """Return the 99th percentile."""
    import numpy as np

    return float(np.percentile(np.asarray(times, dtype=float), 99)) if len(times) else None
