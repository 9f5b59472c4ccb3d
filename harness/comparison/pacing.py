"""How long the next launch may take: what is left of the budget, shared out anew before each launch.

A plan is made on one second of a machine, which may be slower or faster afterwards. So launches end by the
clock, and how many there will be is reckoned from the time that they take. No ratio is looked at for that. The
time of a round is a sum in which all arms count alike: where they run the same code, what ends a launch or a
comparison is as likely to have met either of them, so that no false alarm comes of it.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

from harness.comparison.designing import MOST_ROUNDS, RESERVE, SPREAD
from harness.comparison.spending import LEAST_LAUNCHES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.comparison.model import Design

FEWEST_ROUNDS = 4
"""Of a launch, however slow the machine has become: many short launches tell more than few long ones."""

OVERRUN = 1.1
"""Times the budget that may be spent on the launches that an interval needs."""

MOST_LAUNCHES = 200
"""That what is left is shared out to, at most."""

ROUND_NOISE = 0.1
"""Of a round's log ratio within a launch, standard deviation: 0.06 to 0.17 were measured (docs/selftest.md)."""


class Cost(NamedTuple):
    """What a launch takes now.

    Attributes:
        start_s: until its first turn, and after its last.
        round_s: a turn of every arm.
    """

    start_s: float
    round_s: float


def launch_s(plan: Design, spent_s: float, cost: Cost, made: Sequence[int]) -> float | None:
    """Return the seconds that the next launch may take; None: none fits, or none would narrow the interval.

    What is left is shared out to as many launches as make the interval narrowest that is to be expected.

    Args:
        plan: of the comparison.
        spent_s: since its start.
        cost: of the latest launch; before the first, of the warm-up.
        made: rounds of each valid launch.
    """
    left_s = plan.budget_s * (1 - RESERVE) - spent_s
    shortest_s = cost.start_s + FEWEST_ROUNDS * cost.round_s
    missing = LEAST_LAUNCHES - len(made)
    if missing > 0 and missing * shortest_s > left_s:
        enough = missing * shortest_s <= plan.budget_s * OVERRUN - spent_s
        return shortest_s if enough or shortest_s <= left_s else None
    count = _best_count(left_s, cost, made, plan.alpha)
    return min(left_s / count, cost.start_s + MOST_ROUNDS * cost.round_s) if count else None


def is_over(rounds: int, now_s: float, first_s: float, until_s: float) -> bool:
    """Say whether a launch has no time for another round.

    Args:
        rounds: made.
        now_s: on any clock.
        first_s: when the first of them began.
        until_s: when the launch is to end.
    """
    if rounds < FEWEST_ROUNDS:
        return False
    return rounds >= MOST_ROUNDS or now_s + (now_s - first_s) / rounds > until_s


def _best_count(left_s: float, cost: Cost, made: Sequence[int], alpha: float) -> int:
    """Return how many launches in the time that is left make the interval narrowest; 0: none do."""
    most = min(MOST_LAUNCHES, max(0, int(left_s / (cost.start_s + FEWEST_ROUNDS * cost.round_s))))
    variance = sum(_variance(each) for each in made)

    def width(more: int) -> float:
        count = len(made) + more
        if count < LEAST_LAUNCHES:
            return math.inf
        rounds = (left_s / more - cost.start_s) / cost.round_s if more else 1.0
        return _quantile(alpha, count) * math.sqrt(variance + more * _variance(rounds)) / count

    return min(range(most + 1), key=width)


def _variance(rounds: float) -> float:
    """Return the variance to be expected of a launch's log ratio."""
    return float(SPREAD**2 + ROUND_NOISE**2 / max(1.0, min(rounds, MOST_ROUNDS)))


@functools.lru_cache(maxsize=1024)
def _quantile(alpha: float, launches: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(1 - alpha / 2, launches - 1))
