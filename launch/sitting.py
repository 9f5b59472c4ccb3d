"""One comparison while it runs: launches whose arms are resident together, or take turns apart in ABBA order."""

from __future__ import annotations

import math
import random
import time
from statistics import fmean, median, quantiles
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.checks.curves import band, parts
from harness.comparison.estimate import rounds_of
from harness.comparison.guards import invalid
from harness.comparison.model import Launch, WarmUp
from harness.comparison.pacing import Cost, is_over
from harness.comparison.steady import LEAST, steady
from harness.errors import OptbenchError
from launch.arms import ArmError
from launch.watching import turn_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.comparison.model import Arm, Design, Turn
    from launch.arms import Arms, Built
    from launch.watching import Machine

WARM_UP_STEPS = (12, 24, 48, 96)
"""Steps of a warm-up after which is asked whether it is over."""

WARM_UP_S = 0.1
"""A shorter one goes on: on a busy machine, what it tells of a step would be time slices of others."""

FIRST_SHARE, WARM_SHARE = 0.1, 0.25
"""Of the budget, and of a launch's time, which going on with all warm-ups may take.

A machine that others slow down never looks steady, and the rounds need their time.
"""

SAME_STEPS = 3
"""Losses of the first steps must agree to rounding; later ones in the growing band of a run's curves."""

CURVE_STEPS = 100
"""Of each launch's losses that are held together: as many as a run has unless told; chaos needs longer."""


ALLOWED = "; --allow-different-training compares them still"
"""What to do about it, for those who gave options."""


class UnlikeArmsError(OptbenchError):
    """Two arms train differently: their times answer another question."""

    def __init__(self, found: str) -> None:
        super().__init__(found + ALLOWED)


class Begun(NamedTuple):
    """How arms came to their first turn.

    Attributes:
        warm: by arm.
        losses: likewise, of the first steps, mean over ranks.
        started_s: since the comparison's start.
        took_s: until all were warm.
    """

    warm: dict[int, WarmUp]
    losses: dict[int, tuple[float, ...]]
    started_s: float
    took_s: float

    @property
    def step_s(self) -> float:
        """The slowest arm's lower quartile: what a step takes where nothing interrupts it."""
        return max(quantiles(_settled(each), n=4)[0] for each in self.warm.values())

    @property
    def mean_step_s(self) -> float:
        """The mean over arms of what a step takes, interruptions and all."""
        return fmean(fmean(_settled(each)) for each in self.warm.values())

    @property
    def noise(self) -> float:
        """Standard deviation of the logarithm of a step's time, from the quartiles; of the noisiest arm."""
        return max(_deviation(_settled(each)) for each in self.warm.values())


class Sitting:
    """One comparison's worlds in use.

    Args:
        arms: specs resolved.
        worlds: theirs, prepared.
        machine: watched meanwhile.
        origin_s: the comparison's start on the monotonic clock.
        unlike: compare arms whose losses part.
        fresh: start every launch with new interpreters.
        resident: keep all arms in memory at once.
        note: of every launch, if any.

    Attributes:
        launches: made so far.
        facts: by arm, of the last launch.
        cost: of the last launch, at its pace; before the first, None.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        worlds: Arms,
        machine: Machine,
        origin_s: float,
        *,
        unlike: bool,
        fresh: bool,
        resident: bool,
        note: str | None = None,
    ) -> None:
        self._arms, self._worlds, self._machine, self._origin_s = arms, worlds, machine, origin_s
        self._unlike, self._fresh, self._resident, self._note = unlike, fresh, resident, note
        self._begun: Begun | None = None
        self._renewed = True
        self._further_s = math.inf
        self._curves: dict[int, list[float | None]] = {}
        self._built: dict[int, Built] = {}
        self.launches: list[Launch] = []
        self.cost: Cost | None = None
        self.facts: dict[int, dict[str, Any]] = {}

    def spent_s(self) -> float:
        """Return the seconds since the comparison's start."""
        return time.monotonic() - self._origin_s

    def begin(self, budget_s: float) -> Begun:
        """Warm every arm up once; return how that went.

        Args:
            budget_s: of the comparison.

        Raises:
            ArmError: one failed, or did not answer in time.
            UnlikeArmsError: they train differently.
        """
        self._further_s = FIRST_SHARE * budget_s / len(self._arms)
        first = self._warm(range(len(self._arms))) if self._resident else self._apart()
        if self._resident:
            self._begun = first
        return first

    def launch(self, plan: Design, seconds: float) -> Launch:
        """Make a launch.

        Args:
            plan: of the comparison.
            seconds: that it may take, its start included; rounds end with them, a few are made in any case.

        Raises:
            ArmError: an arm failed, or did not answer in time.
            UnlikeArmsError: they train differently.
        """
        began_s = self.spent_s() if self._begun is None else self._begun.started_s
        if self._fresh and not self._renewed:
            self._worlds.renew()
        self._renewed = False
        order = random.Random(plan.seed * 1000 + len(self.launches))  # noqa: S311  # an order, no secret
        until_s = began_s + seconds
        self._further_s = WARM_SHARE * seconds / len(self._arms) / (1 if self._resident else 2)
        made = self._together(plan, order, until_s) if self._resident else self._in_abba(plan, order, until_s)
        self.launches.append(made)
        turning_s = sum(turn.took_s or 0.0 for turn in made.turns)
        self.cost = Cost(self.spent_s() - began_s - turning_s, turning_s / rounds_of(made))
        return made

    def _together(self, plan: Design, order: random.Random, until_s: float) -> Launch:
        begun = self._begun or self._warm(range(len(self._arms)))
        self._begun = None
        turns: list[Turn] = []
        first_s, rounds = self.spent_s(), 0
        while not is_over(rounds, self.spent_s(), first_s, until_s):
            for position, index in enumerate(order.sample(range(len(self._arms)), len(self._arms))):
                turns.append(self._turn(plan, index, rounds, position))
            rounds += 1
        return self._made(begun, turns, self._end())

    def _in_abba(self, plan: Design, order: random.Random, until_s: float) -> Launch:
        """Launch the arms one at a time, then in the reverse order, so that a steady drift cancels out.

        The turns of an arm's two short launches are the rounds' two halves. How long a half is shows in the first
        of them, which has its share of the time; the others have as many turns.
        """
        there = order.sample(range(len(self._arms)), len(self._arms))
        half: int | None = None
        turns: list[Turn] = []
        peaks: dict[int, int] = {}
        begun: list[Begun] = []
        shares = 2 * len(there)
        first_until_s = self.spent_s() + (until_s - self.spent_s()) / shares
        for indices in (there, there[::-1]):
            found = []
            first_round = 0 if half is None else half
            for position, index in enumerate(indices):
                found.append(self._warm([index]))
                if half is None:
                    turns = self._half(plan, index, first_until_s)
                    half = len(turns)
                else:
                    turns += [self._turn(plan, index, first_round + each, position) for each in range(half)]
                for arm, peak in self._end().items():
                    peaks[arm] = max(peak, peaks.get(arm, 0))
            begun.append(self._joined(found))
        shaky = [begun[1].warm[arm].steady_from is None for arm in range(len(self._arms))]
        warm = {
            arm: each.model_copy(update={"steady_from": None}) if shaky[arm] else each
            for arm, each in begun[0].warm.items()
        }
        return self._made(begun[0]._replace(warm=warm), turns, peaks)

    def _half(self, plan: Design, index: int, until_s: float) -> list[Turn]:
        """Return the turns of the first of several arms that run one at a time, as many as it has time for."""
        turns: list[Turn] = []
        first_s = self.spent_s()
        while not is_over(2 * len(turns), self.spent_s(), first_s, until_s):
            turns.append(self._turn(plan, index, len(turns), 0))
        return turns

    def _apart(self) -> Begun:
        """Warm the arms up one at a time, without a turn."""
        found = []
        for index in range(len(self._arms)):
            found.append(self._warm([index]))
            self._end()
        return self._joined(found)

    def _joined(self, found: Sequence[Begun]) -> Begun:
        """Return the warm-ups of launches apart as one; raise where they trained differently."""
        begun = Begun(
            warm={arm: warm for each in found for arm, warm in sorted(each.warm.items())},
            losses={arm: losses for each in found for arm, losses in each.losses.items()},
            started_s=found[0].started_s,
            took_s=sum(each.took_s for each in found),
        )
        self._alike(begun.losses)
        return begun

    def _warm(self, indices: Iterable[int]) -> Begun:
        """Start a launch of these arms and bring each to its steady state, one after another."""
        started_s = self.spent_s()
        built = self._worlds.launch(list(indices))
        self._built |= built
        warm, losses = {}, {}
        for index, (build_s, compiles, _) in built.items():
            times: list[float] = []
            self._curves[index] = []
            for until in WARM_UP_STEPS:
                more = until - len(times)
                if times and more * median(times[-LEAST:]) > self._further_s:
                    break
                found = self._worlds.turn(index, 0, more)
                times += found["step_time_s"]
                self._seen(index, found["losses"])
                start = steady(times)
                if start is not None and len(times) - start >= LEAST and sum(times) >= WARM_UP_S:
                    break
            usual = sorted(times)[len(times) // 2]
            extra = sum(max(0.0, each - usual) for each in times) if compiles else None
            warm[index] = WarmUp(step_time_s=tuple(times), steady_from=start, build_s=build_s, compile_s=extra)
            first = self._curves[index][:SAME_STEPS]
            losses[index] = tuple(each for each in first if each is not None)
        if len(built) > 1:
            self._alike(losses)
        return Begun(warm, losses, started_s, self.spent_s() - started_s)

    def _seen(self, index: int, losses: Sequence[float | None]) -> None:
        """Keep an arm's losses of further steps.

        Raises:
            ArmError: one is not finite.
        """
        curve = self._curves[index]
        wrong = next(
            (each for each, loss in enumerate(losses) if loss is not None and not math.isfinite(loss)), None
        )
        if wrong is not None:
            step = len(curve) + wrong + 1
            raise ArmError(f"arm {self._arms[index].name} diverged: its loss is not finite in step {step}")
        curve += losses

    def _differences(self) -> list[str]:
        """Say which arms' losses leave the first arm's band, where that is allowed; raise where it is not."""
        found = []
        for index, arm in enumerate(self._arms[1:], 1):
            left, right = (self._curves[each][:CURVE_STEPS] for each in (0, index))
            step = parts(left, right, self._band(index))
            if step is None:
                continue
            what = f"{self._arms[0].name} and {arm.name} train differently: their losses part in step {step}"
            if not self._unlike:
                raise UnlikeArmsError(f"arms {what}, {left[step - 1]:.6g} and {right[step - 1]:.6g}")
            found.append(what)
        return found

    def _alike(self, losses: Mapping[int, tuple[float, ...]]) -> None:
        """Raise where an arm's first losses are not the first arm's, unless that is allowed."""
        if self._unlike:
            return
        for index, arm in enumerate(self._arms[1:], 1):
            if len(losses[index]) != len(losses[0]):
                raise ArmError(
                    f"arm {arm.name} has no finite losses where {self._arms[0].name} has, or the reverse"
                )
            for step, (left, right) in enumerate(zip(losses[0], losses[index], strict=True), 1):
                allowed = self._band(index)
                if abs(left - right) > allowed * max(abs(left), abs(right)):
                    raise UnlikeArmsError(
                        f"arms {self._arms[0].name} and {arm.name} train differently: in step {step} their "
                        f"losses are {left:.6g} and {right:.6g}, band {allowed:g}"
                    )

    def _band(self, index: int) -> float:
        """Return how far rounding alone may take an arm's losses from the first arm's, relative, in a step."""
        states = [dtype for each in (0, index) for dtype in self._built[each].state_dtypes]
        return band([self._arms[each].spec.precision for each in (0, index)], states)

    def _turn(self, plan: Design, index: int, number: int, position: int) -> Turn:
        where = {"round": number, "position": position}
        made, losses = turn_of(
            self._worlds, self._machine, index, where, plan.lead_steps, plan.turn_steps, self._origin_s
        )
        self._seen(index, losses)
        return made

    def _end(self) -> dict[int, int]:
        peaks, facts = self._worlds.end_launch()
        self.facts |= facts
        return peaks

    def _made(self, begun: Begun, turns: Sequence[Turn], peaks: Mapping[int, int]) -> Launch:
        arms = range(len(self._arms))
        notes = [*([self._note] if self._note else []), *self._differences()]
        made = Launch(
            number=len(self.launches),
            kind="fresh" if self._fresh else "forked",
            resident=self._resident,
            warm_ups=tuple(begun.warm[index] for index in arms),
            turns=tuple(turns),
            peak_memory_bytes=tuple(peaks.get(index) or None for index in arms),
            losses=tuple(begun.losses[index] for index in arms),
            took_s=self.spent_s() - begun.started_s,
            notes=tuple(notes),
        )
        return made.model_copy(update={"invalid": invalid(made, self._machine.cores)})


def _settled(warm: WarmUp) -> Sequence[float]:
    """Return the times of the steps since a warm-up was steady; of all, where it never was."""
    return warm.step_time_s[warm.steady_from or 0 :]


def _deviation(times: Sequence[float]) -> float:
    """Return the standard deviation of log times, by the interquartile range, which a stall does not move."""
    low, _, high = quantiles([math.log(each) for each in times], n=4)
    return (high - low) / 1.349
