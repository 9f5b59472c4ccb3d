"""Replays of whole comparisons on a machine that a neighbour slows down some time after the plan was made.

Recorded rounds are played again by a clock of the replay's own: planned, paced, looked at and ended by the code
that does so live. From a random moment on, every turn takes longer by the factor that was recorded beside a
neighbour.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from statistics import fmean, median, quantiles
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from harness.comparison.analysis import verdict
from harness.comparison.designing import ALPHA, design
from harness.comparison.estimate import hodges_lehmann, interval, mean_step
from harness.comparison.model import Design
from harness.comparison.pacing import Cost, is_over, launch_s
from harness.comparison.spending import further, looks_of

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from harness.comparison.model import Comparison, Launch, Verdict


QUIET = 1.25
"""Times as long as undisturbed, which turns of a launch that was recorded alone take at most: their median."""

BEGINS = 0.3
"""Of the budget, within which the neighbour begins once the plan is made: later, most comparisons are decided."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Rounds(_Frozen):
    """One recorded launch: its rounds without the neighbour."""

    start_s: float
    """Until its first turn, by arm."""
    step_s: tuple[tuple[float, ...], ...]
    """By round and arm: mean of the turn's timed steps."""
    took_s: tuple[tuple[float, ...], ...]
    """Likewise: all of the turn."""


class Recording(_Frozen):
    """Launches of arms on a machine left alone, and how much slower their turns were beside a neighbour."""

    made: str
    """How, when and on which machine, for people."""
    ready_s: float
    """Until the worlds could launch."""
    launches: tuple[Rounds, ...]
    slower: tuple[tuple[float, float], ...]
    """Seconds since the neighbour began, and by what a turn's time is to be multiplied from then on."""


@dataclass(frozen=True)
class Played:
    """One comparison that might have been.

    Attributes:
        verdict: of the second arm against the first.
        launches: at which it ended.
        low: of the last look's interval of the log ratio; -infinity: there was no look.
        high: likewise.
        spent_s: by the replay's clock.
    """

    verdict: Verdict
    launches: int
    low: float
    high: float
    spent_s: float


def recorded(quiet: Sequence[Comparison], busy: Sequence[Comparison], made: str) -> Recording:
    """Return what two kinds of sittings of the same arms are in a replay.

    Launches during which others slowed the machine down are left out, whatever their ratios are.

    Args:
        quiet: without the neighbour.
        busy: beside it; its first launch is from before.
        made: how, for people.
    """
    undisturbed = [_fast([*quiet, *busy], arm) for arm in range(len(busy[0].arms))]
    used = [
        (each, launch)
        for each in quiet
        for launch in each.launches
        if launch.invalid is None and _slowed(launch, undisturbed) <= QUIET
    ]
    slower: list[tuple[float, float]] = []
    for each in busy:
        later = [turn for launch in each.launches[1:] for turn in launch.turns]
        began = (slower[-1][0] if slower else 0.0) - (later[0].started_s if later else 0.0)
        slower += [(began + turn.started_s, (mean_step(turn) or 0.0) / undisturbed[turn.arm]) for turn in later]
    return Recording(
        made=made,
        ready_s=round(median(each.launches[0].turns[0].started_s for each, _ in used), 3),
        launches=tuple(_rounds(launch) for _, launch in used),
        slower=tuple((round(at, 3), round(factor, 3)) for at, factor in slower),
    )


def _fast(found: Sequence[Comparison], arm: int) -> float:
    """Return what an arm's step takes in its fastest turns, one in ten: nothing is in their way."""
    turns = [turn for each in found for launch in each.launches for turn in launch.turns if turn.arm == arm]
    return quantiles([mean_step(turn) or 0.0 for turn in turns], n=10)[0]


def _slowed(launch: Launch, undisturbed: Sequence[float]) -> float:
    """Return how many times as long as undisturbed a launch's turns took, all arms alike."""
    return median((mean_step(turn) or 0.0) / undisturbed[turn.arm] for turn in launch.turns)


def _rounds(launch: Launch) -> Rounds:
    arms = len(launch.warm_ups)
    count = min(sum(turn.arm == arm for turn in launch.turns) for arm in range(arms))
    steps = [[0.0] * arms for _ in range(count)]
    took = [[0.0] * arms for _ in range(count)]
    for turn in launch.turns:
        if turn.round < count:
            steps[turn.round][turn.arm] = round(mean_step(turn) or 0.0, 6)
            took[turn.round][turn.arm] = round(turn.took_s or 0.0, 5)
    turning_s = sum(turn.took_s or 0.0 for turn in launch.turns)
    return Rounds(
        start_s=round((launch.took_s - turning_s) / arms, 3),
        step_s=tuple(map(tuple, steps)),
        took_s=tuple(map(tuple, took)),
    )


class _Clock:
    """The replay's own time, and the neighbour that begins within it."""

    def __init__(self, recording: Recording, begins_s: float, offset_s: float) -> None:
        self.now_s = recording.ready_s
        self._begins_s, self._offset_s = begins_s, offset_s
        self._slower, self._length_s = recording.slower, recording.slower[-1][0]
        self._times = [at for at, _ in self._slower]

    def passes(self, seconds: float) -> float:
        """Let what takes so long on the quiet machine happen; return by what factor it took longer."""
        factor = 1.0
        if self.now_s >= self._begins_s:
            into = (self.now_s - self._begins_s + self._offset_s) % self._length_s
            factor = self._slower[max(0, bisect.bisect_right(self._times, into) - 1)][1]
        self.now_s += seconds * factor
        return factor


def plays(
    recording: Recording,
    arms: tuple[int, int],
    budget_s: float,
    *,
    margin: float,
    chance: random.Random,
    exchange: bool = False,
    neighbour: bool = True,
) -> Played:
    """Return one comparison played again.

    Args:
        recording: of launches and of a slow-down.
        arms: that are compared, of the recorded ones.
        budget_s: of the comparison.
        margin: relative difference that does not matter.
        chance: draws launches, each at most once, the order of turns, and when the neighbour begins.
        exchange: which arm is the first is drawn launch by launch: right where both run the same code.
        neighbour: whether it begins at all.

    Raises:
        TooShortError: the budget ends before the first look.
    """
    drawn = iter(chance.sample(recording.launches, len(recording.launches)))
    first = next(drawn)
    plan, cost = _planned(recording, first, arms, budget_s, margin)
    begins_s = recording.ready_s + chance.uniform(0, BEGINS * budget_s) if neighbour else math.inf
    clock = _Clock(recording, begins_s, chance.uniform(0, recording.slower[-1][0]))
    ratios: list[float] = []
    made: list[int] = []
    launch: Rounds | None = first
    seconds = launch_s(plan, clock.now_s, cost, made)
    while seconds is not None and launch is not None:
        sides = arms[::-1] if exchange and chance.random() < 0.5 else arms
        logs, cost = _launched(launch, sides, clock, clock.now_s + seconds, chance)
        ratios.append(hodges_lehmann(logs))
        made.append(len(logs))
        if len(ratios) in plan.looks:
            found = _looked(plan, ratios, None, clock)
            if found.verdict != "inconclusive":
                return found
        if len(ratios) >= plan.looks[-1]:
            plan = further(plan)
        seconds, launch = launch_s(plan, clock.now_s, cost, made), next(drawn, None)
    return _looked(plan, ratios, len(ratios), clock)


def _planned(
    recording: Recording, first: Rounds, arms: tuple[int, int], budget_s: float, margin: float
) -> tuple[Design, Cost]:
    """Return the plan that the first launch's pace leads to, and that pace."""
    asked = Design(looks=(), alpha=ALPHA, margin=margin, rounds=0, turn_steps=0, budget_s=budget_s, seed=0)
    steps = [[times[arm] for times in first.step_s] for arm in arms]
    cost = Cost(2 * first.start_s, fmean(sum(took[arm] for arm in arms) for took in first.took_s))
    plan = design(
        asked,
        arms=2,
        ranks=1,
        start_s=recording.ready_s,
        launch_start_s=cost.start_s,
        step_time_s=max(quantiles(each, n=4)[0] for each in steps),
        mean_step_time_s=fmean(map(fmean, steps)),
    )
    return plan, cost


def _launched(
    launch: Rounds, sides: tuple[int, int], clock: _Clock, until_s: float, chance: random.Random
) -> tuple[list[float], Cost]:
    """Play one launch until it has no time for another round, or none was recorded."""
    began_s = clock.now_s
    clock.passes(2 * launch.start_s)
    first_s, logs = clock.now_s, list[float]()
    while len(logs) < len(launch.step_s) and not is_over(len(logs), clock.now_s, first_s, until_s):
        steps, took = launch.step_s[len(logs)], launch.took_s[len(logs)]
        times = {side: steps[side] * clock.passes(took[side]) for side in chance.sample(sides, 2)}
        logs.append(math.log(times[sides[1]] / times[sides[0]]))
    return logs, Cost(first_s - began_s, (clock.now_s - first_s) / len(logs))


def _looked(plan: Design, ratios: Sequence[float], last: int | None, clock: _Clock) -> Played:
    """Return what the look at all launches so far says."""
    reached = [look for look in looks_of(plan.looks, plan.shares, last) if look.launches <= len(ratios)]
    if not reached:
        return Played("inconclusive", len(ratios), -math.inf, math.inf, clock.now_s)
    found = interval(ratios[: reached[-1].launches], plan.alpha * reached[-1].share)
    said = verdict(found.low, found.high, plan.margin)
    return Played(said, len(ratios), found.low, found.high, clock.now_s)
