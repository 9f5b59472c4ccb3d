"""What a trial shows besides errors: work left over, what became of gradients, state, what is not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.verification.certificate import Check
from harness.verification.playing import Player
from harness.verification.scenarios import small

if TYPE_CHECKING:
    from harness.interfaces import Optimizer
    from harness.spec import RunSpec
    from harness.verification.playing import Trace

STATE_GROWS = 1.5
"""State that has grown by this factor between a fifth of the steps and the last grows with steps."""


def besides(trace: Trace, optimizer: Optimizer) -> list[Check]:
    """Return the checks of what else a trace shows: late work, gradients, state."""
    late = "work after the step"
    threads = f"threads left: {', '.join(trace.new_threads)}" if trace.new_threads else None
    if trace.moved_later is None:
        checks = [Check(name=late, verdict="passed", detail=threads)]
    else:
        step, tensor = trace.moved_later
        detail = "parameters changed after step() had returned and the device was done"
        checks = [Check(name=late, verdict="wrong", step=step, tensor=tensor, detail=detail)]
    checks.append(Check(name="gradients after the step", verdict="recorded", detail=_words(trace.gradients)))
    return [*checks, _state(trace, optimizer)]


def _state(trace: Trace, optimizer: Optimizer) -> Check:
    elements = sum(value.numel() for value in trace.steps[0].before.values())
    early, last = trace.state_elements[len(trace.steps) // 5], trace.state_elements[-1]
    detail = f"{last / elements:.2f} tensors of state, {optimizer.traits.state_tensors:g} declared"
    if last > STATE_GROWS * early + elements and not optimizer.traits.closure:
        return Check(name="state size", verdict="wrong", detail=f"{detail}; it grows from step to step")
    return Check(name="state size", verdict="recorded", detail=detail)


def nonfinite(optimizer: Optimizer, spec: RunSpec) -> Check:
    """Record what an infinite gradient does."""
    name = "a gradient that is not finite"
    try:
        player = Player(optimizer, spec, small(optimizer.traits))
        player.step(1)
        before = player.values()
        gradients = {each: torch.full_like(p.detach(), torch.inf) for each, p in player.parameters.items()}
        if optimizer.traits.sparse_gradients == "only":
            gradients = {each: g.to_sparse(1) if each == "rows" else g for each, g in gradients.items()}
        player.step(2, gradients)
    except Exception as error:  # noqa: BLE001  # raising is one of the answers
        return Check(name=name, verdict="recorded", detail=f"raises: {error}")
    after = player.values()
    if all(torch.equal(before[each], after[each]) for each in before):
        return Check(name=name, verdict="recorded", detail="skipped")
    finite = all(bool(value.isfinite().all()) for value in after.values())
    return Check(name=name, verdict="recorded", detail="moves by finite amounts" if finite else "propagated")


def _words(fates: set[str]) -> str:
    return " or ".join(sorted(fates)) or "none were given"
