"""A live comparison: launches of all arms, turns in random order, until it is decided or the budget is spent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from harness.comparison.analysis import next_step, valid_launches
from harness.comparison.designing import ALPHA, design, out_of_reach, spread, sufficient_s
from harness.comparison.estimate import rounds_of
from harness.comparison.model import Comparison, Design
from harness.comparison.pacing import OVERRUN, Cost, launch_s
from harness.comparison.spending import LEAST_LAUNCHES, further
from launch.arms import ArmError, Arms, OutOfMemoryError
from launch.sitting import Sitting, UnlikeArmsError
from launch.watching import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.comparison.model import Arm, Outcome

LEAST_BEGIN_S = 15.0
"""Interpreters may take so long to start, however small the budget: how much it lacks is known afterwards."""

UNFINISHED = "its driver was killed, or is still at it"

TOO_LARGE = "the arms do not fit into memory together"
APART = f"{TOO_LARGE}: from now on one at a time, in ABBA order"


def compare(  # noqa: PLR0913  # one argument an option
    arms: Sequence[Arm],
    *,
    margin: float,
    budget_s: float,
    seed: int = 0,
    self_check: bool = False,
    timeout_s: float = 300.0,
    different_training: bool = False,
    fresh: bool = False,
    resident: bool = True,
    proofs: Sequence[dict[str, Any]] = (),
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
        fresh: start every launch with new interpreters; default: fork it from ranks that have imported torch.
        resident: keep all arms in memory at once, unless memory is short; False: one at a time from the start.
        proofs: by arm, what is proved of its optimizer, to stand beside its facts; none: nobody asked.
        ready: asked at each look whether the comparison is decided; None: by the verdicts of all arms.
        told: hears of the start and of every launch.
        kept: gets what there is after every launch, so that it can be stored.

    Returns:
        The comparison; an arm that fails ends it with outcome ``failed`` and what was measured until then.

    Raises:
        TooShortError: the budget ends before the first look at the data.
        UnlikeArmsError: the arms train differently.
    """
    if self_check:
        arms = [*arms, arms[0].model_copy(update={"name": _control(arms)})]
        proofs = [*proofs, *proofs[:1]]
    asked = Design(
        looks=(),
        alpha=ALPHA,
        margin=margin,
        rounds=0,
        turn_steps=0,
        budget_s=budget_s,
        seed=seed,
        self_check=self_check,
    )
    run = _Run(arms, asked, told, kept, ready, proofs)
    try:
        try:
            run.through(timeout_s, unlike=different_training, fresh=fresh, resident=resident)
        except OutOfMemoryError:
            if not resident or run.has_launches():
                raise
            told(APART)
            run.short_of_memory = True
            run.through(timeout_s, unlike=different_training, fresh=fresh, resident=False)
    except ArmError as error:
        return run.comparison("failed", str(error))
    except UnlikeArmsError as error:
        if not run.has_launches():
            raise
        return run.comparison("failed", str(error))
    except KeyboardInterrupt:
        return run.comparison("interrupted", "before it was decided")
    return run.comparison("completed", run.too_few())


def _control(arms: Sequence[Arm]) -> str:
    """Return a name of its own for the first arm's code when it rides along a second time."""
    names = (f"{arms[0].name} (A/A control{each})" for each in ("", *(f" {n}" for n in range(2, 2 + len(arms)))))
    return next(name for name in names if all(name != arm.name for arm in arms))


class _Run:
    """One comparison from its start to its end, in one manner or, where memory is short, in two.

    Args:
        arms: an A/A one included.
        asked: design before anything is known.
        told: hears of the start and of every launch.
        kept: gets what there is after every launch.
        ready: asked at each look.
        proofs: by arm; none: nobody asked.

    Attributes:
        short_of_memory: the arms were found not to fit together; each launch says so.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        asked: Design,
        told: Callable[[str], None],
        kept: Callable[[Comparison], object],
        ready: Callable[[Comparison], bool] | None,
        proofs: Sequence[dict[str, Any]],
    ) -> None:
        self._arms, self._plan = arms, asked
        self._ranks = max(arm.spec.world_size or 1 for arm in arms)
        self._told, self._kept, self._ready, self._proofs = told, kept, ready, proofs
        self.short_of_memory = False
        self._began, self._origin_s = time.time(), time.monotonic()
        self._sitting: Sitting | None = None
        self._about: Sequence[dict[str, Any]] = ()
        self._environment: dict[str, Any] = {}
        self._start_s = 0.0
        self._last_look: int | None = None

    def has_launches(self) -> bool:
        """Say whether a launch has ended."""
        return self._sitting is not None and bool(self._sitting.launches)

    def through(self, timeout_s: float, *, unlike: bool, fresh: bool, resident: bool) -> None:
        """Launch until it is decided or the budget is spent.

        Raises:
            ArmError: an arm failed, or did not answer in time.
            TooShortError: the budget ends before the first look at the data.
            UnlikeArmsError: the arms train differently.
        """
        budget_s = OVERRUN * self._plan.budget_s - (time.monotonic() - self._origin_s)
        with (
            Machine(self._arms) as machine,
            Arms(self._arms, timeout_s, begin_s=max(budget_s, LEAST_BEGIN_S)) as worlds,
        ):
            began_s = time.monotonic() - self._origin_s
            self._about = worlds.prepared()
            sitting = self._sitting = Sitting(
                self._arms,
                worlds,
                machine,
                self._origin_s,
                unlike=unlike,
                fresh=fresh,
                resident=resident,
                note=TOO_LARGE if self.short_of_memory else None,
            )
            ready_s = sitting.spent_s()
            begun = sitting.begin(self._plan.budget_s)
            self._start_s = ready_s if resident else sitting.spent_s()
            start_s = (1 if resident else 2) * begun.took_s + (ready_s - began_s if fresh else 0.0)
            self._plan = design(
                self._plan,
                arms=len(self._arms),
                ranks=self._ranks,
                start_s=self._start_s,
                launch_start_s=start_s,
                step_time_s=begun.step_s,
                mean_step_time_s=begun.mean_step_s,
            )
            self._told(_plan_line(self._plan, ready_s, begun.step_s, spread(self._plan, begun.noise)))
            turn_steps = self._plan.turn_steps + self._plan.lead_steps
            self._launches(sitting, worlds, Cost(start_s, len(self._arms) * turn_steps * begun.mean_step_s))

    def _launches(self, sitting: Sitting, worlds: Arms, expected: Cost) -> None:
        """Launch until it is decided or the budget is spent; plan anew before each launch, by the clock alone."""
        rounds: list[int] = []
        while True:
            spent_s = sitting.spent_s() if sitting.launches else self._start_s
            seconds = launch_s(self._plan, spent_s, sitting.cost or expected, rounds)
            if seconds is None:
                self._last_look = len(rounds)
                return
            made = sitting.launch(self._plan, seconds)
            self._environment = worlds.environment
            so_far = self.comparison("incomplete", UNFINISHED)
            rounds = [rounds_of(launch) for launch in valid_launches(so_far)]
            self._told(
                f"launch {made.number + 1}: {made.invalid or 'valid'}, {rounds_of(made)} rounds, "
                f"{made.took_s:.1f} s; {sitting.spent_s():.0f} of {self._plan.budget_s:g} s spent"
            )
            self._kept(so_far)
            following = next_step(so_far, self._ready)
            if following == "decided":
                return
            if following == "spent":
                self._plan = further(self._plan)

    def too_few(self) -> str | None:
        """Say why there is no interval, and what would give one; None: there is."""
        if self._last_look is None or self._last_look >= LEAST_LAUNCHES or self._sitting is None:
            return None
        made, valid, cost = len(self._sitting.launches), self._last_look, self._sitting.cost
        found = f"an interval takes {LEAST_LAUNCHES} valid launches, and there were {valid}"
        if made > valid:
            return f"{found} of {made}: guards left the others out; try again when the machine is quieter"
        needed_s = self._plan.budget_s if cost is None else sufficient_s(self._start_s, *cost, self._ranks)
        return f"{found} within {self._plan.budget_s:g} s: at this pace a budget of {needed_s:.0f} s is enough"

    def comparison(self, outcome: Outcome, reason: str | None) -> Comparison:
        """Return what there is."""
        sitting = self._sitting
        facts = {} if sitting is None else sitting.facts
        about = [
            {**each, "engine": facts[index]} if index in facts else each for index, each in enumerate(self._about)
        ]
        if about and self._proofs:
            about = [{**each, "verification": proof} for each, proof in zip(about, self._proofs, strict=True)]
        return Comparison(
            arms=tuple(self._arms),
            design=self._plan,
            launches=() if sitting is None else tuple(sitting.launches),
            facts=tuple(about),
            environment=self._environment,
            started_unix_s=self._began,
            spent_s=time.monotonic() - self._origin_s,
            last_look=self._last_look,
            outcome=outcome,
            reason=reason,
        )


def _plan_line(plan: Design, start_s: float, step_s: float, expected: float) -> str:
    line = (
        f"ready after {start_s:.1f} s, step {1e3 * step_s:.3g} ms; looks after "
        f"{', '.join(map(str, plan.looks))} launches, {plan.turn_steps} steps a turn"
    )
    short = out_of_reach(plan, expected)
    return "\n".join(each for each in (line, short) if each is not None)
