"""Holds an engine to what the same code does over whole tensors on one rank.

It is for algorithms that have no reference, or one whose rounding hides much. The gradients of the linear
workload are the same to the last bit under every strategy, so that there is no rounding that an algorithm could
amplify. What parts all the same was given something else than whole tensors, or depends on the list of tensors
that it was given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch

from harness.parameter_groups import parameter_groups
from harness.rates import set_lr
from harness.seeding import seed_generators
from harness.stepping import Driver
from harness.verification.amplifying import other_last_bits, relative
from harness.verification.certificate import Check
from harness.verification.known import asked
from harness.verification.linear import Linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from harness.interfaces import Optimizer
    from harness.spec import RunSpec
    from harness.verification.known import Trial, Values

NAME = "as over whole tensors"

APART = 1e-4
"""Of an update: sums over a tensor taken in another order, in float32. Shards taken for matrices part by 1e-2 and
more; matrices that are gathered first by 0."""

TWIN = 10.0
"""Times what the gradients' last bits make of an update: so much may be rounding that the algorithm amplifies."""

OTHER_SEED = 1


def applies(optimizer: Optimizer, spec: RunSpec, *, is_held: bool) -> bool:
    """Say whether an engine is to be held to plain tensors: in fp32, and steps that need gradients only.

    Args:
        optimizer: what the engine is started with.
        spec: the proof's.
        is_held: it is held to a reference, which is enough for element-wise algorithms.
    """
    traits = optimizer.traits
    alone = spec.precision == "fp32" and not (traits.closure or traits.loss or traits.owns_reduction)
    return alone and not (is_held and traits.granularity == "element")


def checks(optimizer: Optimizer, spec: RunSpec, trial: Trial, device: torch.device) -> list[Check]:
    """Compare an engine's updates with those over whole tensors, up to the step where it was resumed and after.

    Args:
        optimizer: what the engine was started with.
        spec: the trial's, settled.
        trial: what the engine did.
        device: where it did.
    """
    alone = _Alone(optimizer, spec, trial, device)
    plain = alone.values()
    if _differ(plain, alone.values(seed=OTHER_SEED)):
        told = "depends on random numbers, which a strategy draws in another order"
        return [Check(name=NAME, verdict="not applicable", detail=told)]
    twin = list(relative(plain, alone.values(other_last_bits())))
    rows = list(relative(plain, trial.values))
    own = [{name: _rounding(plain, step, name) for name in row} for step, row in enumerate(rows)]
    at = trial.resumed_at or len(rows)
    found = [_judged(NAME, rows[:at], own, twin, first=0)]
    if at < len(rows):
        found.append(_judged(f"resumed, {NAME}", rows[at:], own, twin, first=at))
    return found


def _judged(
    name: str,
    rows: Sequence[dict[str, float]],
    own: Sequence[dict[str, float]],
    twin: Sequence[dict[str, float]],
    *,
    first: int,
) -> Check:
    """Return the check of some steps, ``first`` from 0 the number of the first of them."""
    placed = [
        (apart / (APART + own[step][tensor]), apart, step, tensor)
        for step, row in enumerate(rows, start=first)
        for tensor, apart in row.items()
    ]
    ratio, error, step, tensor = max(placed)
    told = {"name": name, "error": error, "bound": error / ratio if ratio > 0 else APART}
    told |= {"step": step + 1, "tensor": tensor}
    if ratio <= 1:
        return Check(verdict="passed", **told)
    amplified = max(row[tensor] for row in twin[: step + 1])
    if error <= TWIN * amplified:
        detail = f"rounding explains it: the gradients' last bits alone change updates by {amplified:.1e}"
        return Check(verdict="recorded", detail=detail, **told)
    detail = "moves otherwise than over whole tensors on one rank: it is given parts of them, or another list"
    return Check(verdict="wrong", detail=detail, **told)


def _rounding(plain: Sequence[Values], step: int, name: str) -> float:
    """Return what rounding the parameter to float32 may do to an update, relative to it."""
    size = float((plain[step + 1][name] - plain[step][name]).norm())
    return 4 * 2.0**-24 * float(plain[step][name].norm()) / size if size > 0 else math.inf


def _differ(one: Sequence[Values], other: Sequence[Values]) -> bool:
    return any(not torch.equal(one[-1][name], other[-1][name]) for name in one[-1])


class _Alone:
    """An instance of the same code over whole plain tensors, given the gradients of a trial."""

    def __init__(self, optimizer: Optimizer, spec: RunSpec, trial: Trial, device: torch.device) -> None:
        self._optimizer, self._spec, self._trial, self._device = optimizer, spec, trial, device
        model = Linear(**cast("dict[str, Any]", spec.workload_options)).build()
        self._names = [name for name, _ in model.named_parameters()]

    def values(self, change: Callable[[Tensor], Tensor] = lambda g: g, seed: int | None = None) -> list[Values]:
        """Return the parameters before the first step and after each, float64 on the host.

        Args:
            change: of every gradient.
            seed: of those that draw numbers; None: the run's.
        """
        seed_generators(self._spec.seed if seed is None else self._spec.seed + seed)
        start = self._trial.values[0]
        parameters = {
            name: torch.nn.Parameter(start[name].to(self._device, torch.float32, copy=True))
            for name in self._names
        }
        live = self._optimizer.build(parameter_groups(parameters.items(), Linear.traits), self._spec)
        if self._optimizer.traits.evaluation_switch and hasattr(live, "train"):
            live.train()
        driver = Driver(live, self._optimizer.name, self._optimizer.traits)
        found = [_copied(parameters)]
        for step, factor in enumerate(self._trial.factors):
            set_lr(live, factor)
            for name, gradient in asked(self._trial, step, 0).items():
                parameters[name].grad = change(gradient.to(self._device, torch.float32))
            driver.step()
            found.append(_copied(parameters))
        return found


def _copied(parameters: dict[str, torch.nn.Parameter]) -> Values:
    return {name: each.detach().to("cpu", torch.float64, copy=True) for name, each in parameters.items()}
