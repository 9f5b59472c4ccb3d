"""Checks that need no reference: what mathematics asks of any optimizer, found by runs that differ in one thing.

What a legitimate algorithm may do is recorded: no movement in single steps (warm-up, restarts), randomness (then
nothing that compares two runs applies), dependence between tensors, decay of what has no gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from harness.verification.besides import besides, nonfinite
from harness.verification.certificate import Check
from harness.verification.playing import Player, RefusedError, play
from harness.verification.scenarios import unreferenced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from harness.interfaces import Optimizer
    from harness.spec import RunSpec
    from harness.verification.playing import Trace
    from harness.verification.scenarios import Scenario

STEPS = 12
"""Of a run that is compared with another."""

Values = dict[str, "Tensor"]


def trials(optimizer: Optimizer, spec: RunSpec) -> tuple[list[Check], str | None]:
    """Make the checks that need no reference.

    Raises:
        UnsupportedError: it cannot be built over such tensors.
    """
    usual = unreferenced(optimizer.traits)
    try:
        trace = play(optimizer, spec, usual)
    except RefusedError as error:
        detail = f"step {error.step} raised {error}"
        return [Check(name="steps at all", verdict="wrong", step=error.step, detail=detail)], None
    checks = [_every_element(trace), _standstill(trace), *besides(trace, optimizer)]
    checks += _Differential(optimizer, spec, usual).all()
    checks.append(nonfinite(optimizer, spec))
    return checks, _cause(trace, checks)


def _cause(trace: Trace, checks: list[Check]) -> str | None:
    """Return the cause that a failed check stands for by itself."""
    wrong = {check.name for check in checks if check.verdict == "wrong"}
    if all(not bool(step.moved(name).any()) for step in trace.steps for name in step.before):
        return "the step does nothing"
    by_check = {
        "work after the step": "step() returns before its work is done",
        "resumed from a saved state": "state is lost on saving and loading",
        "every gradient is used": "gradients are not fresh in every step",
        "every step does something": "some steps do nothing",
    }
    return next((cause for name, cause in by_check.items() if name in wrong), None)


def _every_element(trace: Trace) -> Check:
    """Every element whose gradient is never zero moves within the run."""
    name = "every element moves"
    for tensor in trace.steps[0].before:
        still = trace.steps[-1].after[tensor] == trace.steps[0].before[tensor]
        if bool(still.any()):
            place = still.view(-1).nonzero()[0].item()
            detail = f"{int(still.sum())} of {still.numel()} elements stand still, the first at {place}"
            return Check(name=name, verdict="wrong", step=len(trace.steps), tensor=tensor, detail=detail)
    bad = [n for n, value in trace.steps[-1].after.items() if not bool(value.isfinite().all())]
    if bad:
        return Check(name=name, verdict="wrong", tensor=bad[0], detail="parameters are not finite")
    return Check(name=name, verdict="passed")


def _standstill(trace: Trace) -> Check:
    """No step after others that moved leaves every parameter where it was."""
    name = "every step does something"
    idle = [s.number for s in trace.steps if all(not bool(s.moved(n).any()) for n in s.before)]
    if not idle:
        return Check(name=name, verdict="passed")
    told = f"nothing moves in {len(idle)} of {len(trace.steps)} steps, first in step {idle[0]}"
    warming_up = idle == list(range(1, len(idle) + 1)) and len(idle) <= len(trace.steps) // 2
    return Check(name=name, verdict="recorded" if warming_up else "wrong", step=idle[0], detail=told)


class _Differential:
    """Pairs of runs of one implementation that differ in one thing."""

    def __init__(self, optimizer: Optimizer, spec: RunSpec, scenario: Scenario) -> None:
        self.optimizer, self.spec = optimizer, spec
        self.scenario = replace(scenario, steps=STEPS, saved_at=None)

    def all(self) -> list[Check]:
        """Return the checks; none that compares runs applies to one that never repeats itself."""
        plain = self._run()
        if not _same(plain, self._run()):
            return [
                Check(name="the same again", verdict="recorded", detail="two runs on the same gradients differ")
            ]
        checks = [Check(name="the same again", verdict="passed")]
        checks += [self._fresh(), self._resumed(plain), self._rate(), self._missing()]
        return checks

    def _run(
        self,
        change: Callable[[int, dict[str, Tensor | None]], dict[str, Tensor | None]] | None = None,
        resumed_after: int | None = None,
        rate: float = 1.0,
        steps: int = STEPS,
    ) -> Values:
        torch.manual_seed(0)  # for those that draw numbers: the same ones in each run
        player = Player(self.optimizer, self.spec, self.scenario)
        for number in range(1, steps + 1):
            gradients = player.gradients(number)
            player.step(number, change(number, gradients) if change else gradients, rate=rate)
            if number == resumed_after:
                player.resume()
        return player.values()

    def _fresh(self) -> Check:
        """Each of the last steps' gradients matters to the outcome."""
        name = "every gradient is used"
        for steps in range(3, STEPS + 1):
            plain = self._run(steps=steps)
            other = self._run(_negated(steps), steps=steps)
            if _same(plain, other):
                # Averages over several steps may use a gradient later; then it shows in the steps to come.
                if steps < STEPS - 2 and not _same(self._run(), self._run(_negated(steps))):
                    continue
                detail = "another gradient in this step gives the same parameters"
                return Check(name=name, verdict="wrong", step=steps, detail=detail)
        return Check(name=name, verdict="passed")

    def _resumed(self, plain: Values) -> Check:
        """Save, load into a fresh instance, go on: the same as without."""
        name = "resumed from a saved state"
        half = STEPS // 2
        try:
            other = self._run(resumed_after=half)
        except Exception as error:  # noqa: BLE001  # state that can't be loaded is the finding
            return Check(name=name, verdict="wrong", step=half, detail=f"{type(error).__name__}: {error}")
        for tensor, value in plain.items():
            if not torch.equal(value, other[tensor]):
                apart = float((value - other[tensor]).abs().max())
                detail = f"parameters part from those of a run without saving, by {apart:.1e}"
                return Check(name=name, verdict="wrong", step=half + 1, tensor=tensor, detail=detail)
        return Check(name=name, verdict="passed")

    def _rate(self) -> Check:
        """A learning rate of zero moves nothing, a smaller one moves differently."""
        name = "the learning rate is used"
        player = Player(self.optimizer, self.spec, self.scenario)
        if all(peak is None for peak in player.peak_rates().values()):
            return Check(name=name, verdict="not applicable", detail="it has none")
        if _same(self._run(steps=4), self._run(steps=4, rate=0.5)):
            return Check(name=name, verdict="wrong", detail="half the learning rate gives the same parameters")
        return Check(name=name, verdict="passed")

    def _missing(self) -> Check:
        """What never gets a gradient stays."""
        name = "a tensor without gradient stays"
        left_out = self.scenario.stage.members[-1].name
        before = Player(self.optimizer, self.spec, self.scenario).values()[left_out]
        try:
            after = self._run(lambda _, gradients: {**gradients, left_out: None}, steps=4)[left_out]
        except Exception as error:  # noqa: BLE001  # refusing is one of the answers
            return Check(name=name, verdict="recorded", detail=f"refused: {type(error).__name__}: {error}")
        if torch.equal(before, after):
            return Check(name=name, verdict="passed")
        return Check(name=name, verdict="recorded", tensor=left_out, detail="it moves: decayed, or taken as zero")


def _negated(at: int) -> Callable[[int, dict[str, Tensor | None]], dict[str, Tensor | None]]:
    """Return a change of one step's gradients: other sign, other size, other order of magnitudes."""

    def change(number: int, gradients: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        if number != at:
            return gradients
        return {name: None if g is None else -1.7 * g + 0.3 * g.abs() for name, g in gradients.items()}

    return change


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())
