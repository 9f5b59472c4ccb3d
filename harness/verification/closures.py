"""Trials of what evaluates the loss within a step: on a quadratic, whose minimum is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from harness.verification.bounds import bound
from harness.verification.certificate import Check
from harness.verification.comparing import Difference, worst
from harness.verification.playing import Player
from harness.verification.scenarios import minimised

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness.interfaces import Optimizer
    from harness.references.reference import Reference, State
    from harness.spec import RunSpec

STEPS, SAVED_AT = 6, 3
"""Each step iterates within itself, and converges in the first few."""


def trials(optimizer: Optimizer, spec: RunSpec, reference: Reference) -> tuple[list[Check], str | None]:
    """Try an implementation on the loss sum_i c_i (p_i - a_i)^2 / 2 over all parameters as one vector.

    Raises:
        UnsupportedError: it cannot be built over such tensors.
    """
    scenario = minimised(STEPS)
    if "max_iter" not in spec.optimizer_options:  # few enough that the first step does not end at the minimum
        changed = {**spec.optimizer_options, "max_iter": 4}
        spec = spec.model_copy(update={"optimizer_options": changed})
    player = Player(optimizer, spec, scenario)
    state: State = {}
    known = getattr(optimizer, "hyperparameters", None)
    options: dict[str, Any] = dict(known(spec)) if known else dict(player.live.defaults)
    h = {**reference.variants, **options, **getattr(optimizer, "variants", {})}
    assert reference.minimise is not None, "asked by plain.trials"
    allowed = bound(next(iter(player.parameters.values())).dtype, optimizer.traits.state_dtypes, "float64", {})
    curvature, target = _quadratic(sum(each.numel() for each in player.parameters.values()))
    found, size = [], 0.0
    for number in range(1, STEPS + 1):
        before = _flat(player)
        player.minimise(_closure(player, curvature, target))
        after = _flat(player)
        wanted = reference.minimise(before, _evaluated(curvature, target), state, h) - before
        largest = float(wanted.abs().max())
        size = max(size, largest)
        error = float((after - before - wanted).abs().max()) / size
        # Curvature is learnt from differences of gradients: their rounding is divided by how far a step went.
        room = 64 * allowed.at(number, float(before.abs().max()), size, coded=False)
        found.append(Difference(number, "all", error, room))
        if number == SAVED_AT:
            player.resume()
    checks = [
        _judged("update", [each for each in found if each.step <= SAVED_AT]),
        _judged("resumed from a saved state", [each for each in found if each.step > SAVED_AT]),
    ]
    gap = float((_flat(player) - target).abs().max())
    return [*checks, Check(name="distance from the minimum", verdict="recorded", detail=f"{gap:.1e}")], None


def _quadratic(size: int) -> tuple[Tensor, Tensor]:
    """Return curvatures 1 … 10 and the minimum."""
    return torch.linspace(1, 10, size, dtype=torch.float64), torch.linspace(-1, 1, size, dtype=torch.float64)


def _evaluated(curvature: Tensor, target: Tensor) -> Callable[[Tensor], tuple[float, Tensor]]:
    def evaluate(p: Tensor) -> tuple[float, Tensor]:
        gradient = curvature * (p - target)
        return float((gradient * (p - target)).sum() / 2), gradient

    return evaluate


def _closure(player: Player, curvature: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """Return what sets fresh gradients and returns the loss, at the live parameters."""

    def closure() -> Tensor:
        loss, gradient = _evaluated(curvature, target)(_flat(player))
        start = 0
        for parameter in player.parameters.values():
            part = gradient[start : start + parameter.numel()].reshape(parameter.shape)
            parameter.grad = part.to(parameter.device, parameter.dtype)
            start += parameter.numel()
        return torch.tensor(loss, dtype=torch.float64)

    return closure


def _flat(player: Player) -> Tensor:
    return torch.cat([value.reshape(-1) for value in player.values().values()])


def _judged(name: str, differences: list[Difference]) -> Check:
    found = worst(differences)
    assert found is not None, "steps were done"
    verdict = "passed" if found.ratio <= 1 else "wrong"
    return Check(name=name, verdict=verdict, error=found.error, bound=found.bound, step=found.step)
