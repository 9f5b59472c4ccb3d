"""A live comparison: launches of all arms, turns in random order, until it is decided or the budget is spent."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from harness.comparison.analysis import next_step
from harness.comparison.designing import ALPHA, design, out_of_reach, spread
from harness.comparison.model import Comparison, Design
from launch.arms import ArmError, Arms, OutOfMemoryError
from launch.sitting import Sitting, UnlikeArmsError
from launch.watching import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.comparison.model import Arm, Outcome

OVERRUN = 1.1
"""Times the budget that may be spent to reach the first look at the data."""

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
        InvalidInputError: the budget ends before the first look at the data.
        UnlikeArmsError: the arms train differently.
    """
    if self_check:
        names = itertools.accumulate(itertools.repeat("again"), "{} {}".format, initial=arms[0].name)
        name = next(each for each in names if all(each != arm.name for arm in arms))
        arms = [*arms, arms[0].model_copy(update={"name": name})]
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
    return run.comparison("completed", None)


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

    def has_launches(self) -> bool:
        """Say whether a launch has ended."""
        return self._sitting is not None and bool(self._sitting.launches)

    def through(self, timeout_s: float, *, unlike: bool, fresh: bool, resident: bool) -> None:
        """Launch until it is decided or the budget is spent.

        Raises:
            ArmError: an arm failed, or did not answer in time.
            InvalidInputError: the budget ends before the first look at the data.
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
            begun = sitting.begin()
            asked = self._plan
            self._plan = design(
                asked,
                arms=len(self._arms),
                ranks=self._ranks,
                start_s=ready_s if resident else sitting.spent_s(),
                launch_start_s=(1 if resident else 2) * begun.took_s + (ready_s - began_s if fresh else 0.0),
                step_time_s=begun.step_s,
                mean_step_time_s=begun.mean_step_s,
            )
            self._told(_plan_line(self._plan, ready_s, begun.step_s, spread(self._plan, begun.noise)))
            while True:
                made = sitting.launch(self._plan)
                self._environment = worlds.environment
                standing = made.invalid or "valid"
                self._told(
                    f"launch {made.number + 1} of at most {self._plan.looks[-1]}: {standing}, {made.took_s:.1f} s"
                )
                so_far = self.comparison("incomplete", UNFINISHED)
                self._kept(so_far)
                longest = max(each.took_s for each in sitting.launches)
                if next_step(so_far, self._ready) != "go on":
                    return
                looked = len(sitting.launches) >= self._plan.looks[0]
                if sitting.spent_s() + longest > asked.budget_s * (1.0 if looked else OVERRUN):
                    return

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
            outcome=outcome,
            reason=reason,
        )


def _plan_line(plan: Design, start_s: float, step_s: float, expected: float) -> str:
    line = (
        f"ready after {start_s:.1f} s, step {1e3 * step_s:.3g} ms; looks after "
        f"{', '.join(map(str, plan.looks))} launches of {plan.rounds} rounds, {plan.turn_steps} steps a turn"
    )
    short = out_of_reach(plan, expected)
    return "\n".join(each for each in (line, short) if each is not None)
