"""What is fixed before the first launch: how many there may be, when one looks at the data, how long a turn is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.comparison.spending import looks_of, shares
from harness.errors import InvalidInputError, Problem

if TYPE_CHECKING:
    from harness.comparison.model import Design

LOOKS: tuple[tuple[int, ...], ...] = ((4, 8, 14, 24), (4, 6, 8, 12), (4, 6, 8), (4, 6), (4,))
"""Launches at which is looked, the more the better; the budget chooses. What time is left afterwards adds more.

Launches of the same code differ by about 1 % however long they are: many short ones tell more than few long ones.
The most are made only where their start takes little of them:
"""

START_SHARE = 0.25
"""Of a launch, at most."""

TURN_S, LEAST_ROUNDS = 0.04, 20
"""A turn is so long: long beside the wake-up of a waiting world, short beside the machine's drift."""

WORLD_TURN_S, WORLD_LEAST_ROUNDS = 0.12, 12
"""Likewise of an arm with several ranks: they wait for one another, so that single steps tell less."""

HEADROOM = 1.3
"""Of the budget that a refusal names: the next start and the next steps are no faster for being asked again."""

MOST_ROUNDS = 150
RESERVE = 0.05
"""Of the budget: launches are not equally long, and the worlds must end."""

LEAST_LEAD_STEPS = 1
ALPHA = 0.01
"""Two-sided error of all looks at all arms together: each arm beside the first gets its share (Bonferroni)."""


class TooShortError(InvalidInputError):
    """The budget ends before the first look at the data.

    Args:
        what: was found.
        needed_s: a budget that would do here.
        why: it takes so long.
    """

    def __init__(self, what: str, needed_s: int, why: str) -> None:
        self.what, self.needed_s, self.why = what, needed_s, why
        super().__init__([Problem("--budget", what, f"{why} need --budget {needed_s}s here")])


def least_rounds(ranks: int) -> int:
    """Return how many rounds a launch has at least, as planned; ``ranks`` of the largest world."""
    return LEAST_ROUNDS if ranks == 1 else WORLD_LEAST_ROUNDS


def sufficient_s(start_s: float, launch_start_s: float, round_s: float, ranks: int) -> int:
    """Return a budget that holds the launches before the first look at this pace, in whole seconds.

    Args:
        start_s: until the worlds can launch.
        launch_start_s: of one launch until its first turn.
        round_s: a turn of every arm.
        ranks: of the largest world.
    """
    launches_s = LOOKS[-1][0] * (launch_start_s + least_rounds(ranks) * round_s)
    return math.ceil((start_s + launches_s) * HEADROOM)


def design(
    asked: Design,
    *,
    arms: int,
    ranks: int,
    start_s: float,
    launch_start_s: float,
    step_time_s: float,
    mean_step_time_s: float,
) -> Design:
    """Return the plan of a comparison.

    Args:
        asked: budget, margin, seed and A/A arm.
        arms: how many, an A/A arm included.
        ranks: of the largest world.
        start_s: until the worlds can launch, already spent or expected.
        launch_start_s: of one launch until its first turn: models built, warmed up.
        step_time_s: of a step of the slowest arm where nothing interrupts it; a turn's length goes by it.
        mean_step_time_s: over arms and steps, interruptions and all; what a round costs goes by it.

    Raises:
        TooShortError: the budget does not reach the first look; names the one that would.
    """
    turn_s, least = (TURN_S if ranks == 1 else WORLD_TURN_S), least_rounds(ranks)
    turn_steps = max(1, min(100, round(turn_s / step_time_s)))
    round_s = arms * (turn_steps + LEAST_LEAD_STEPS) * mean_step_time_s
    for looks in LOOKS:
        each_s = (asked.budget_s * (1 - RESERVE) - start_s) / looks[-1]
        rounds = int((each_s - launch_start_s) / round_s)
        if rounds < least or (looks is LOOKS[0] and launch_start_s > START_SHARE * each_s):
            continue
        plan = {
            "looks": looks,
            "shares": shares(len(looks)),
            "alpha": ALPHA / max(1, arms - 1 - asked.self_check),
            "rounds": min(rounds, MOST_ROUNDS),
            "turn_steps": turn_steps,
            "lead_steps": LEAST_LEAD_STEPS,
        }
        return asked.model_copy(update=plan)
    raise TooShortError(
        f"{asked.budget_s:g} s end before the first look at the data",
        sufficient_s(start_s, launch_start_s, round_s, ranks),
        f"{LOOKS[-1][0]} launches of {least} rounds",
    )


SPREAD = 0.005
"""Between launches of the same code, of the log ratio, however many turns they have: two processes differ."""


def spread(plan: Design, noise: float) -> float:
    """Return the standard deviation to be expected between launches' log ratios.

    Args:
        plan: of the comparison.
        noise: standard deviation of the logarithm of a step's time.
    """
    # A turn's steps are not independent: half of a step's variance is taken to be its neighbours', too.
    turn = noise * math.sqrt((1 + plan.turn_steps) / 2 / plan.turn_steps)
    return math.hypot(SPREAD, turn * math.sqrt(2 / plan.rounds))


def out_of_reach(plan: Design, expected: float = SPREAD) -> str | None:
    """Return what a comparison is unlikely to decide, said before it starts; None: nothing.

    Args:
        plan: of the comparison.
        expected: standard deviation between launches' log ratios.
    """
    from scipy import stats

    launches = plan.looks[-1]
    share = looks_of(plan.looks, plan.shares, launches)[-1].share
    quantile = float(stats.t.ppf(1 - plan.alpha * share / 2, launches - 1))
    # The interval must lie inside the margin with its centre anywhere near 1: one further standard error.
    reach = (quantile + 1) * expected / math.sqrt(launches)
    if not plan.margin or reach <= plan.margin:
        return None
    return (
        f"{launches} launches tell {100 * reach:.1f} % from nothing, at {100 * expected:.1f} % between launches: "
        f"within a margin of {100 * plan.margin:g} % this may end inconclusive; a larger budget helps"
    )
