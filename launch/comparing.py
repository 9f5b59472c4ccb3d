"""A live comparison: launches of all arms, turns in random order, until it is decided or the budget is spent."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from harness.checks.curves import QUANTISED, ROUNDING
from harness.comparison.analysis import next_step
from harness.comparison.designing import design, out_of_reach
from harness.comparison.guards import invalid
from harness.comparison.model import Arm, Comparison, Launch, WarmUp
from harness.comparison.steady import LEAST, steady
from harness.errors import OptbenchError
from harness.registry import OPTIMIZERS
from launch.arms import ArmError, Arms, Machine, turn_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.comparison.model import Design, Turn

WARM_UP_STEPS = (12, 24, 48)
"""Steps of a warm-up after which is asked whether it is over."""

UNFINISHED = "incomplete: its driver was killed, or is still at it"

SAME_STEPS = 3
"""Losses of the first steps must agree: later ones may part by rounding alone."""


class UnlikeArmsError(OptbenchError):
    """Two arms train differently: their times answer another question."""


class _Session:
    """One comparison while it runs."""

    def __init__(self, arms: Sequence[Arm], *, unlike: bool) -> None:
        self.arms, self._unlike = arms, unlike
        self.origin_s = time.monotonic()
        self.machine = Machine()
        self.launches: list[Launch] = []
        self.facts: list[dict[str, Any]] = []

    def spent_s(self) -> float:
        return time.monotonic() - self.origin_s

    def warmed_up(self, worlds: Arms) -> tuple[list[WarmUp], list[tuple[float, ...]]]:
        """Start a launch and bring every arm to its steady state, one after another."""
        built = worlds.launch()
        warm, losses = [], []
        for index, build_s in enumerate(built):
            times: list[float] = []
            seen: list[float | None] = []
            for until in WARM_UP_STEPS:
                found = worlds.turn(index, 0, until - len(times))
                times += found["step_time_s"]
                seen += found["losses"]
                start = steady(times)
                if start is not None and len(times) - start >= LEAST:
                    break
            compiles = OPTIMIZERS.get(self.arms[index].spec.optimizer).traits.compiled
            usual = sorted(times)[len(times) // 2]
            extra = sum(max(0.0, each - usual) for each in times) if compiles else None
            warm.append(WarmUp(step_time_s=tuple(times), steady_from=start, build_s=build_s, compile_s=extra))
            first = seen[:SAME_STEPS]
            if None in first and set(first) != {None}:
                raise ArmError(f"arm {self.arms[index].name} diverged: its loss is not finite in its first steps")
            losses.append(tuple(each for each in first if each is not None))
        self._alike(losses)
        return warm, losses

    def _alike(self, losses: Sequence[tuple[float, ...]]) -> None:
        """Raise where an arm's first losses are not the first arm's, unless that is allowed."""
        if self._unlike:
            return
        for arm, found in zip(self.arms[1:], losses[1:], strict=True):
            if len(found) != len(losses[0]):
                raise ArmError(
                    f"arm {arm.name} has no finite losses where {self.arms[0].name} has, or the reverse"
                )
            for step, (left, right) in enumerate(zip(losses[0], found, strict=False), 1):
                band = _band(self.arms[0], arm)
                if abs(left - right) > band * max(abs(left), abs(right)):
                    raise UnlikeArmsError(
                        f"arms {self.arms[0].name} and {arm.name} train differently: in step {step} their "
                        f"losses are {left:.6g} and {right:.6g}, band {band:g}; "
                        "--allow-different-training compares them still"
                    )

    def turns(self, worlds: Arms, plan: Design, number: int) -> list[Turn]:
        order = random.Random(plan.seed * 1000 + number)  # noqa: S311  # an order, no secret
        found = []
        for each in range(plan.rounds):
            for position, index in enumerate(order.sample(range(len(self.arms)), len(self.arms))):
                where = {"round": each, "position": position}
                found.append(
                    turn_of(worlds, self.machine, index, where, plan.lead_steps, plan.turn_steps, self.origin_s)
                )
        return found

    def ended(
        self,
        worlds: Arms,
        warm: Sequence[WarmUp],
        losses: Sequence[tuple[float, ...]],
        turns: Sequence[Turn],
        started_s: float,
    ) -> None:
        peaks, self.facts = worlds.end_launch()
        notes = [
            f"{arm.name}: no steady state after {len(each.step_time_s)} steps"
            for arm, each in zip(self.arms, warm, strict=True)
            if each.steady_from is None
        ]
        made = Launch(
            number=len(self.launches),
            kind="forked",
            warm_ups=tuple(warm),
            turns=tuple(turns),
            peak_memory_bytes=tuple(peak or None for peak in peaks),
            losses=tuple(losses),
            took_s=self.spent_s() - started_s,
            notes=tuple(notes),
        )
        self.launches.append(made.model_copy(update={"invalid": invalid(made)}))


def _band(first: Arm, second: Arm) -> float:
    specs = (first.spec, second.spec)
    band = max(ROUNDING.get(spec.precision, 1e-2) for spec in specs)
    states = {dtype for spec in specs for dtype in OPTIMIZERS.get(spec.optimizer).traits.state_dtypes}
    return band * QUANTISED if states - {"float32", "bfloat16"} else band


def compare(  # noqa: PLR0913  # one argument an option
    arms: Sequence[Arm],
    *,
    margin: float,
    budget_s: float,
    seed: int = 0,
    self_check: bool = False,
    timeout_s: float = 300.0,
    different_training: bool = False,
    ready: Callable[[Comparison], bool] | None = None,
    told: Callable[[str], None] = lambda _: None,
    kept: Callable[[Comparison], object] = lambda _: None,
) -> Comparison:
    """Compare arms on this machine in one sitting.

    Args:
        arms: two or more; specs resolved, names unique.
        margin: relative difference that does not matter.
        budget_s: wall-clock time of all of it.
        seed: of the random order of turns.
        self_check: let the first arm's code ride along a second time.
        timeout_s: for any one answer of a rank.
        different_training: compare arms whose losses part, too.
        ready: asked at each look whether the comparison is decided; None: by the verdicts of all arms.
        told: hears of the start and of every launch.
        kept: gets what there is after every launch, so that it can be stored.

    Returns:
        The comparison; an arm that fails ends it with outcome ``failed`` and what was measured until then.

    Raises:
        InvalidInputError: the budget ends before the first look at the data.
        UnlikeArmsError: the arms train differently.
    """
    if self_check:
        arms = [*arms, arms[0].model_copy(update={"name": f"{arms[0].name} again"})]
    session = _Session(arms, unlike=different_training)
    began = time.time()
    plan: Design | None = None
    outcome, reason = "completed", None
    try:
        with Arms(arms, timeout_s) as worlds:
            about = worlds.prepared()
            start_s = session.spent_s()
            while True:
                started_s = session.spent_s()
                warm, losses = session.warmed_up(worlds)
                if plan is None:
                    step_s = max(sorted(each.step_time_s)[len(each.step_time_s) // 2] for each in warm)
                    plan = design(
                        budget_s=budget_s,
                        margin=margin,
                        arms=len(arms),
                        start_s=start_s,
                        launch_start_s=session.spent_s() - started_s,
                        step_time_s=step_s,
                        seed=seed,
                        self_check=self_check,
                    )
                    told(_plan_line(plan, start_s, step_s))
                turns = session.turns(worlds, plan, len(session.launches))
                session.ended(worlds, warm, losses, turns, started_s)
                made = session.launches[-1]
                standing = made.invalid or "valid"
                told(f"launch {made.number + 1} of at most {plan.looks[-1]}: {standing}, {made.took_s:.1f} s")
                so_far = _comparison(session, plan, about, began)
                kept(so_far.model_copy(update={"outcome": "incomplete", "reason": UNFINISHED}))
                longest = max(each.took_s for each in session.launches)
                if next_step(so_far, ready) != "go on" or session.spent_s() + longest > budget_s * 1.1:
                    break
    except ArmError as error:
        outcome, reason = "failed", str(error)
        if plan is None:
            raise
    except KeyboardInterrupt:
        outcome, reason = "interrupted", "interrupted"
        if plan is None:
            raise
    assert plan is not None, "it was made before the first turn"
    found = _comparison(session, plan, about, began)
    return found.model_copy(update={"outcome": outcome, "reason": reason})


def _plan_line(plan: Design, start_s: float, step_s: float) -> str:
    line = (
        f"ready after {start_s:.1f} s, step {1e3 * step_s:.3g} ms; looks after "
        f"{', '.join(map(str, plan.looks))} launches of {plan.rounds} rounds, {plan.turn_steps} steps a turn"
    )
    short = out_of_reach(plan)
    return line if short is None else f"{line}\n{short}"


def _comparison(session: _Session, plan: Design, about: Sequence[dict[str, Any]], began: float) -> Comparison:
    facts = [{**each, "engine": found} for each, found in zip(about, session.facts, strict=False)]
    return Comparison(
        arms=tuple(session.arms),
        design=plan,
        launches=tuple(session.launches),
        facts=tuple(facts),
        started_unix_s=began,
        spent_s=session.spent_s(),
    )
