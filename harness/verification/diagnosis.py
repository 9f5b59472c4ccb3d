"""Names the mistake: the reference is made to commit one after the other on what was seen, until one fits.

First what works for every algorithm (steps left out, stale rates, groups mixed up, state lost, gradients late),
then the mistakes that its reference lists, then one hyperparameter that differs.
"""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, Any

import torch

from harness.verification.comparing import Twist, compare, worst
from harness.verification.fitting import fitted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from harness.verification.comparing import Difference, Held
    from harness.verification.playing import Trace

NEARER = 100.0
"""A mistake that brings the error this much nearer to nothing explains it, though it may not be all of it."""

BUDGET_S = 20.0
"""The search ends after so long; references that iterate over matrices take milliseconds a tensor and step."""


def diagnose(held: Held, trace: Trace, found: Sequence[Difference]) -> str | None:
    """Return the cause of a failure, or None where no known mistake explains it.

    Args:
        held: the reference and its hyperparameters.
        trace: what was seen.
        found: its differences from the reference.
    """
    until = time.monotonic() + BUDGET_S
    before = _ratio(found)
    if trace.moved_later is not None:
        return "step() returns before its work is done"
    best, cause = _tried(held, trace, hypotheses(held, trace, found), before / NEARER, until)
    if best <= 1:
        return cause
    fit = fitted(held, trace, max(1.0, min(best, before / NEARER)), until)
    if fit is not None:
        return fit
    other, scaled = _tried(held, trace, _scaled(), before / NEARER, until)
    return scaled if other < best else cause


def _tried(
    held: Held, trace: Trace, twists: Iterator[Twist], good: float, until: float
) -> tuple[float, str | None]:
    """Return the first mistake that explains all, or the one that explains most, with what error is left."""
    best, cause = math.inf, None
    for twist in twists:
        # What is worse than the best so far explains less: the rest of the steps is left out.
        ratio = _ratio(compare(held, trace, twist, stop_at=max(1.0, min(best, good))))
        if ratio <= 1:
            return ratio, twist.cause
        if ratio < best and ratio <= good:
            best, cause = ratio, twist.cause
        if time.monotonic() > until:
            break
    return best, cause


def _ratio(differences: Sequence[Difference]) -> float:
    found = worst(differences)
    return 0.0 if found is None else found.ratio


def hypotheses(held: Held, trace: Trace, found: Sequence[Difference]) -> Iterator[Twist]:
    """Yield every mistake worth trying on this trace."""
    yield from _left_out(trace, found)
    yield from _resumed(trace)
    yield from _rates(trace)
    yield from _groups(trace)
    for cause, switches in held.reference.mistakes.items():
        yield Twist(cause, switches=switches)
    yield from _gradients()
    for cause, switches in held.reference.mistakes.items():
        yield Twist(f"{cause}, in every second step", switches=switches, acts=lambda _, step: step % 2 == 1)
    for dtype in ("bfloat16", "float16"):
        yield Twist(f"state rounded to {dtype}", switches={"state_dtype": getattr(torch, dtype)})


def _left_out(trace: Trace, found: Sequence[Difference]) -> Iterator[Twist]:
    """Steps and elements that nothing is done for."""
    yield Twist("the step does nothing", acts=lambda _, __: False)
    idle = _idle(trace, found)
    if idle:
        cause = _pattern(idle)
        yield Twist(cause, acts=lambda _, step: step not in idle)
        yield Twist(cause, acts=lambda _, step: step not in idle, blind=True)
    still = _still(trace, found)
    if still:
        numbers = {trace.scenario.stage.member(name).group for name in still}
        group = {each.name for each in trace.scenario.stage.members if each.group in numbers}
        cause = f"parameter group {', '.join(str(n + 1) for n in sorted(numbers))} ignored"
        yield Twist(cause, acts=lambda name, _: name not in group)
        named = f"these tensors are left out: {', '.join(sorted(still))}"
        yield Twist(named, acts=lambda name, _: name not in still)
    yield Twist("the last element of each tensor is skipped", skips_last=True)
    yield Twist("each step is done twice", times=2)
    yield Twist("the update's sign is wrong", scale=-1.0)


def _idle(trace: Trace, found: Sequence[Difference]) -> set[int]:
    """Return the steps in which nothing moved although the reference differs."""
    differing = {each.step for each in found if each.ratio > 1}
    return {
        step.number
        for step in trace.steps
        if step.number in differing and all(not bool(step.moved(name).any()) for name in step.before)
    }


def _still(trace: Trace, found: Sequence[Difference]) -> set[str]:
    """Return the tensors that never moved although the reference differs."""
    differing = {each.tensor for each in found if each.ratio > 1}
    return {name for name in differing if all(not bool(step.moved(name).any()) for step in trace.steps)}


def _pattern(idle: set[int]) -> str:
    """Return in words which steps do nothing."""
    steps = sorted(idle)
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    usual = max(gaps, key=gaps.count, default=0)
    if gaps and gaps.count(usual) > len(gaps) / 2:  # a count that starts anew with a fresh instance breaks one
        return f"every {_ordinal(usual)} step does nothing"
    return f"steps {', '.join(map(str, steps[:5]))}{' …' if len(steps) > 5 else ''} do nothing"


def _ordinal(number: int) -> str:
    words = {1: "single", 2: "second", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth", 7: "seventh", 8: "eighth"}
    return words.get(number, f"{number}th")


def _resumed(trace: Trace) -> Iterator[Twist]:
    """What a careless ``state_dict`` or ``load_state_dict`` loses."""
    if trace.scenario.saved_at is not None:
        yield Twist("state is lost on saving and loading", keeps="none")
        yield Twist("the step count is lost on saving and loading", keeps="moments")
        yield Twist("moments are lost on saving and loading, the step count is not", keeps="count")


def _rates(trace: Trace) -> Iterator[Twist]:
    """Learning rates that do not follow the schedule."""
    scenario = trace.scenario
    first, saved = scenario.factor(1), scenario.saved_at or scenario.steps
    yield Twist("the learning rate is stale: what a scheduler sets is ignored", factor=lambda _: 1.0)
    yield Twist("the learning rate is stale: that of the first step stays", factor=lambda _: first)
    yield Twist(
        "the learning rate is stale: one is kept until state is loaded",
        factor=lambda step: 1.0 if step <= saved else scenario.factor(saved),
    )
    yield Twist("the learning rate is one step late", factor=lambda step: scenario.factor(max(1, step - 1)))
    yield Twist("the learning rate is one step ahead", factor=lambda step: scenario.factor(step + 1))


def _groups(trace: Trace) -> Iterator[Twist]:
    """Hyperparameters of the wrong group, and tensors mixed up."""
    stage = trace.scenario.stage
    groups = stage.groups
    if len(groups) > 1:
        first, last = groups[0], groups[-1]

        def own(name: str) -> Any:
            return groups[stage.member(name).group]

        from dataclasses import replace

        yield Twist(
            "the first group's hyperparameters are used for every group",
            treated_as=lambda name: replace(own(name), decay=first.decay, lr_scale=first.lr_scale),
        )
        yield Twist(
            "the last group's hyperparameters are used for every group",
            treated_as=lambda name: replace(own(name), decay=last.decay, lr_scale=last.lr_scale),
        )
        yield Twist(
            "the first group's learning rate is used for every group",
            treated_as=lambda name: replace(own(name), lr_scale=first.lr_scale),
        )
        yield Twist("groups that should not decay do", treated_as=lambda name: replace(own(name), decay=True))
        yield Twist(
            "the first group alone is stepped", acts=lambda name, _: stage.member(name).group == 0, blind=True
        )
    yield Twist("state is shared between parameters of one shape", state_of=lambda name: stage.member(name).shape)


def _gradients() -> Iterator[Twist]:
    """Gradients other than those given."""
    yield Twist("the gradient of the step before is used", gradient=_earlier)
    yield Twist("the first gradient is used in every step", gradient=lambda t, name, _: _given(t, name, 1))
    yield Twist("gradients are added up over steps", gradient=_summed)
    yield Twist("the gradient's sign is wrong", gradient=lambda t, name, step: _times(_given(t, name, step), -1.0))
    yield Twist("gradients are read as zero", gradient=lambda t, name, step: _times(_given(t, name, step), 0.0))
    yield Twist("gradients are clipped to a global norm of 1", gradient=_clipped)


def _scaled() -> Iterator[Twist]:
    """Gradients of another size; for many algorithms the same as another eps, which is tried before."""
    for factor in (0.5, 2.0, 0.25, 4.0, 1 / 8, 8.0, 2.0**-16, 2.0**16):
        yield Twist(
            f"gradients are multiplied by {factor:g}",
            gradient=lambda t, name, step, c=factor: _times(_given(t, name, step), c),  # type: ignore[misc]
        )


def _given(trace: Trace, name: str, step: int) -> Tensor | None:
    return trace.steps[step - 1].gradients[name]


def _times(gradient: Tensor | None, factor: float) -> Tensor | None:
    return None if gradient is None else gradient * factor


def _earlier(trace: Trace, name: str, step: int) -> Tensor | None:
    if step == 1:
        return _times(_given(trace, name, 1), 0.0)
    return _given(trace, name, step - 1)


def _summed(trace: Trace, name: str, step: int) -> Tensor | None:
    seen = [g for each in trace.steps[:step] if (g := each.gradients[name]) is not None]
    return torch.stack(seen).sum(0) if seen else None


def _clipped(trace: Trace, name: str, step: int) -> Tensor | None:
    present = [g for g in trace.steps[step - 1].gradients.values() if g is not None]
    norm = math.sqrt(sum(float(g.square().sum()) for g in present))
    return _times(_given(trace, name, step), min(1.0, 1 / max(norm, 1e-300)))
