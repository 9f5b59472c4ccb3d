"""Replays: what comparisons and gates would have said, had other launches of a pool come up; and what peers would.

Launches and not turns are resampled, for turns of one launch share its memory layout; without replacement, for a
launch drawn twice would look like two that agree, which is what a short comparison takes for certainty.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.comparison.estimate import interval, p_above, p_below
from harness.comparison.spending import looks_of, shares

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.comparison.model import Launch

ERROR = 0.01
"""Of a comparison's interval, both sides and all looks together; and of a gate's bound, all looks together."""


@dataclass(frozen=True)
class Replay:
    """One comparison that might have been.

    Attributes:
        slower, faster: the interval lies on that side of 1.
        gate: what a gate says of B.
        launches: at which the gate ended.
        low: of the interval of the log ratio at the look that decided, or the last one.
        high: likewise.
    """

    slower: bool
    faster: bool
    gate: Literal["regressed", "passed", "inconclusive"]
    launches: int
    low: float
    high: float


def replay(ratios: Sequence[float], looks: Sequence[int], margin: float, error: float = ERROR) -> Replay:
    """Return what launches in this order lead to, looked at as a comparison and as a gate do.

    Args:
        ratios: log(B/A) of as many launches as the last look needs.
        looks: launches at which is looked, rising; the last spends what the others leave of the error.
        margin: relative difference that does not matter.
        error: of this arm beside the first, all looks together.
    """
    allowed = math.log1p(margin)
    taken = looks_of(looks, shares(len(looks)), looks[-1])
    for count, share in taken:
        found = interval(ratios[:count], error * share)
        equivalent = margin > 0 and -allowed < found.low and found.high < allowed
        if equivalent or found.low > 0 or found.high < 0:
            break
    gate: Literal["regressed", "passed", "inconclusive"] = "inconclusive"
    for ended, share in taken:
        if p_above(ratios[:ended], allowed) <= error * share:
            gate = "regressed"
        elif p_below(ratios[:ended], allowed) <= error * share:
            gate = "passed"
        if gate != "inconclusive":
            break
    return Replay(
        slower=not equivalent and found.low > 0,
        faster=not equivalent and found.high < 0,
        gate=gate,
        launches=ended,
        low=found.low,
        high=found.high,
    )


def replays(  # one argument a choice of the experiment
    ratios: Sequence[float],
    looks: Sequence[int],
    margin: float,
    *,
    count: int,
    seed: int = 0,
    exchange: bool = False,
    error: float = ERROR,
) -> list[Replay]:
    """Return comparisons whose launches are drawn from a pool, each at most once.

    Args:
        ratios: log(B/A) of each launch of the pool.
        looks: launches at which is looked, rising.
        margin: relative difference that does not matter.
        count: replays.
        seed: of what is drawn.
        exchange: which arm is A is drawn too, launch by launch: right where both run the same code, for without it
            the pool's own mean, off by chance, would count as a difference.
        error: of this arm beside the first, all looks together.

    Raises:
        ValueError: the pool holds fewer launches than the last look needs.
    """
    chance = random.Random(seed)  # noqa: S311  # an experiment, no secret
    found = []
    for _ in range(count):
        drawn = chance.sample(list(ratios), looks[-1])
        if exchange:
            drawn = [each * chance.choice((-1, 1)) for each in drawn]
        found.append(replay(drawn, looks, margin, error))
    return found


def upper_bound(events: int, trials: int) -> float:
    """Return the upper 95 % bound of a share (Clopper and Pearson 1934)."""
    from scipy import stats

    return 1.0 if events >= trials else float(stats.beta.ppf(0.95, events + 1, trials - events))


def peers(launches: Sequence[Launch], arms: tuple[int, int]) -> Mapping[str, float]:
    """Return the share of pairs of sittings in which other methods call B slower than A, from the same turns.

    A sitting is one arm's steps of one launch: A is measured in one and B in another, as two runs one after
    the other are.
    """
    import numpy as np
    from scipy import stats

    times = [
        [np.array([t for turn in launch.turns if turn.arm == arm for t in turn.step_time_s]) for arm in arms]
        for launch in launches
    ]
    alarms = {"mean, 5 %": 0, "mean, 30 %": 0, "minimum, 5 %": 0, "Mann-Whitney, 1 %": 0}
    pairs = list(itertools.permutations(range(len(launches)), 2))
    for first, second in pairs:
        a, b = times[first][0], times[second][1]
        alarms["mean, 5 %"] += b.mean() > 1.05 * a.mean()
        alarms["mean, 30 %"] += b.mean() > 1.30 * a.mean()
        alarms["minimum, 5 %"] += b.min() > 1.05 * a.min()
        alarms["Mann-Whitney, 1 %"] += stats.mannwhitneyu(b, a, alternative="greater").pvalue < 0.01
    return {name: float(events) / len(pairs) for name, events in alarms.items()}
