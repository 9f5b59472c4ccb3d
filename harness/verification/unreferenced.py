"""Checks that need no reference: what mathematics asks of any optimizer, found by runs that differ in one thing.

What a legitimate algorithm may do is recorded: no movement in single steps (warm-up, restarts), randomness (then
nothing that compares two runs applies), dependence between tensors, decay of what has no gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from harness.seeding import seed_generators
from harness.verification import sizes
from harness.verification.amplifying import amplified
from harness.verification.besides import besides, nonfinite
from harness.verification.certificate import Check, Verdict
from harness.verification.demands import demand, refused
from harness.verification.playing import Player, RefusedError, play, stands_still
from harness.verification.scenarios import unreferenced
from harness.verification.unreferenced_sizes import trials as sizes_alone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from harness.interfaces import Optimizer
    from harness.spec import RunSpec
    from harness.verification.playing import Trace
    from harness.verification.scenarios import Scenario

STEPS = 20
"""Of a run that is compared with another."""

PROBED = (3, 4, 5, 8)
"""Steps whose gradient is replaced; some algorithms use one ten steps later (AdaShift)."""

APART = 1e-5
"""Of all that a tensor moved: what saving and loading may change, where sums are taken in another order."""

Values = dict[str, "Tensor"]
Gradients = dict[str, "Tensor | None"]


def trials(optimizer: Optimizer, spec: RunSpec) -> tuple[list[Check], str | None]:
    """Make the checks that need no reference.

    Raises:
        UnsupportedError: it cannot be built over such tensors.
    """
    usual = unreferenced(optimizer.traits)
    try:
        trace = play(optimizer, spec, usual)
    except RefusedError as error:
        refused(optimizer, spec, error)
        detail = f"step {error.step} raised {error}"
        return [Check(name="steps at all", verdict="wrong", step=error.step, detail=detail)], None
    if stands_still(trace):
        demand(optimizer, spec, "does nothing")
    pairs = _Differential(optimizer, spec, usual)
    repeats, draws = pairs.repeats()
    checks = [_every_element(trace), _standstill(trace, draws=draws), *besides(trace, optimizer)]
    checks += [repeats, *pairs.all()] if repeats.verdict == "passed" else [repeats]
    checks += [nonfinite(optimizer, spec), amplified(optimizer, spec)]
    cause = _cause(trace, checks)
    if any(check.verdict == "wrong" for check in checks):
        return checks, cause
    if optimizer.traits.compiled:
        told = "left out, since a step is compiled for every list of tensors"
        return [*checks, Check(name="sizes", verdict="not applicable", detail=told)], cause
    drawn = draws or repeats.verdict != "passed"
    sized, found = sizes_alone(optimizer, spec, draws=drawn, moves_all=_moves_at_once(trace))
    return [*checks, *sized], cause or found


def _moves_at_once(trace: Trace) -> bool:
    """Say whether the first steps move every element."""
    early = trace.steps[: sizes.STEPS - 1]
    return all(bool((torch.stack([step.moved(n) != 0 for step in early]).any(0)).all()) for n in early[0].before)


def _cause(trace: Trace, checks: list[Check]) -> str | None:
    """Return the cause that a failed check stands for by itself."""
    wrong = {check.name for check in checks if check.verdict == "wrong"}
    if stands_still(trace):
        return "the step does nothing"
    by_check = {
        "work after the step": "step() returns before its work is done",
        "resumed from a saved state": "state is lost on saving and loading",
        "every gradient is used": "gradients are not fresh in every step",
        "every step does something": "some steps do nothing",
        "the learning rate is used": "the learning rate is stale: what a scheduler sets is ignored",
    }
    return next((cause for name, cause in by_check.items() if name in wrong), None)


def _every_element(trace: Trace) -> Check:
    """Every element, none of whose gradients is zero, moves at least once.

    Algorithms that choose a few elements move few; then that is recorded.
    """
    name = "every element moves"
    still = {
        tensor: torch.stack([step.moved(tensor) == 0 for step in trace.steps]).all(0)
        for tensor in trace.steps[0].before
    }
    count, elements = sum(int(each.sum()) for each in still.values()), sum(each.numel() for each in still.values())
    if 0 < count <= elements // 2:
        tensor = max(still, key=lambda each: float(still[each].double().mean()))
        place = still[tensor].view(-1).nonzero()[0].item()
        detail = f"{int(still[tensor].sum())} of its {still[tensor].numel()} elements never move, such as {place}"
        return Check(name=name, verdict="wrong", tensor=tensor, detail=detail)
    verdict: Verdict = "recorded" if count else "passed"
    told = f"{count} of {elements} elements never move" if count else None
    bad = [n for n, value in trace.steps[-1].after.items() if not bool(value.isfinite().all())]
    if bad:
        return Check(name=name, verdict="wrong", tensor=bad[0], detail="parameters are not finite")
    return Check(name=name, verdict=verdict, detail=told)


def _standstill(trace: Trace, *, draws: bool) -> Check:
    """No step after others that moved leaves every parameter where it was, unless by a draw of numbers."""
    name = "every step does something"
    idle = [s.number for s in trace.steps if all(not bool(s.moved(n).any()) for n in s.before)]
    if not idle:
        return Check(name=name, verdict="passed")
    told = f"nothing moves in {len(idle)} of {len(trace.steps)} steps, first in step {idle[0]}"
    warming_up = idle == list(range(1, len(idle) + 1)) and len(idle) <= len(trace.steps) // 2
    legitimate = warming_up or (draws and len(idle) < len(trace.steps))
    return Check(name=name, verdict="recorded" if legitimate else "wrong", step=idle[0], detail=told)


class _Differential:
    """Pairs of runs of one implementation that differ in one thing."""

    def __init__(self, optimizer: Optimizer, spec: RunSpec, scenario: Scenario) -> None:
        self.optimizer, self.spec = optimizer, spec
        self.scenario = replace(scenario, steps=STEPS, saved_at=None)

    def repeats(self) -> tuple[Check, bool]:
        """Return whether two runs are the same to the bit, and whether they depend on numbers that are drawn."""
        name = "the same again"
        plain = self._run()
        draws = not _same(plain, self._run(seed=1))
        if _same(plain, self._run()):
            detail = "depends on random numbers" if draws else None
            return Check(name=name, verdict="passed", detail=detail), draws
        return Check(name=name, verdict="recorded", detail="two runs on the same gradients differ"), True

    def all(self) -> list[Check]:
        """Return the checks that compare runs."""
        return [self._fresh(), self._resumed(), self._rate(), self._missing()]

    def _run(
        self,
        change: Callable[[int, Gradients], Gradients] | None = None,
        *,
        resumed_after: int | None = None,
        rate: float = 1.0,
        seed: int = 0,
        lr: float | None = None,
    ) -> Values:
        """Return the parameters after the steps.

        Args:
            change: of a step's gradients.
            resumed_after: state is saved and loaded after this step.
            rate: factor on the learning rate, set as a scheduler does.
            seed: of those that draw numbers.
            lr: the constructor's learning rate.
        """
        seed_generators(seed)
        spec = self.spec if lr is None else self.spec.model_copy(update={"lr": lr})
        player = Player(self.optimizer, spec, self.scenario)
        for number in range(1, STEPS + 1):
            gradients = player.gradients(number)
            player.step(number, change(number, gradients) if change else gradients, rate=rate)
            if number == resumed_after:
                player.resume()
        return player.values()

    def _fresh(self) -> Check:
        """Another gradient in one step changes the outcome, at once or a few steps later."""
        name = "every gradient is used"
        plain = self._run()
        for number in PROBED:
            if _same(plain, self._run(_replaced(number))):
                detail = "another gradient in this step gives the same parameters in the end"
                return Check(name=name, verdict="wrong", step=number, detail=detail)
        return Check(name=name, verdict="passed")

    def _resumed(self) -> Check:
        """Save, load into a fresh instance, go on: the same as without."""
        name = "resumed from a saved state"
        half, plain = STEPS // 2, self._run()
        try:
            other = self._run(resumed_after=half)
        except Exception as error:  # noqa: BLE001  # state that can't be loaded is the finding
            return Check(name=name, verdict="wrong", step=half, detail=f"{type(error).__name__}: {error}")
        start = Player(self.optimizer, self.spec, self.scenario).values()
        for tensor, value in plain.items():
            apart = float((value - other[tensor]).abs().max())
            if not apart <= APART * float((value - start[tensor]).abs().max()):
                detail = f"parameters part from those of a run without saving, by {apart:.1e}"
                return Check(name=name, verdict="wrong", step=half + 1, tensor=tensor, detail=detail)
        return Check(name=name, verdict="passed")

    def _rate(self) -> Check:
        """Half the learning rate, set as schedulers do, moves differently, if the constructor's matters at all."""
        name = "the learning rate is used"
        player = Player(self.optimizer, self.spec, self.scenario)
        peaks = [peak for peak in player.peak_rates().values() if peak is not None]
        if not peaks:
            return Check(name=name, verdict="not applicable", detail="no group has a number as its rate")
        if not _same(self._run(), self._run(rate=0.5)):
            return Check(name=name, verdict="passed")
        if _same(self._run(), self._run(lr=peaks[0] / 2)):
            return Check(name=name, verdict="recorded", detail="it finds its own: half of it gives the same")
        if any("warmup" in key for keys in (vars(player.live), *player.live.param_groups) for key in keys):
            detail = "it warms up by itself, and has no use for a scheduler before the end of that"
            return Check(name=name, verdict="recorded", detail=detail)
        detail = "what a scheduler sets changes nothing, the constructor's does"
        return Check(name=name, verdict="wrong", detail=detail)

    def _missing(self) -> Check:
        """What never gets a gradient stays."""
        name = "a tensor without gradient stays"
        left_out = self.scenario.stage.members[-1].name
        before = Player(self.optimizer, self.spec, self.scenario).values()[left_out]
        try:
            after = self._run(lambda _, gradients: {**gradients, left_out: None})[left_out]
        except Exception as error:  # noqa: BLE001  # refusing is one of the answers
            return Check(name=name, verdict="recorded", detail=f"refused: {type(error).__name__}: {error}")
        if torch.equal(before, after):
            return Check(name=name, verdict="passed")
        return Check(name=name, verdict="recorded", tensor=left_out, detail="it moves: decayed, or taken as zero")


def _replaced(at: int) -> Callable[[int, Gradients], Gradients]:
    """Return a change of one step's gradients: in sign and in size, element by element."""

    def change(number: int, gradients: Gradients) -> Gradients:
        if number != at:
            return gradients
        return {name: None if g is None else -1.7 * g + 0.3 * g.abs() for name, g in gradients.items()}

    return change


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())
