"""Whether a step with a closure uses gradients that it finds on entry, of which undeclared there are none.

A step that does trains without what it makes of them (sharpness-aware minimisation: without its perturbation), and
nothing else tells. Two short runs on a loss with curvature, one with gradients on entry and one without, do: on a
loss that is linear a step to another place and back would find the same gradients there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from harness.errors import UndeclaredError
from harness.seeding import seed_generators
from harness.verification.certificate import Check
from harness.verification.demands import Declared
from harness.verification.playing import Player
from harness.verification.scenarios import unreferenced

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness.interfaces import Optimizer
    from harness.spec import RunSpec

STEPS = 3
CURVATURE = 1.0
"""Of the loss, in every direction."""

NAME = "gradients on entry"


def on_entry(optimizer: Optimizer, spec: RunSpec) -> list[Check]:
    """Check that a step with a closure makes the same of gradients on entry as of none.

    Nothing is checked without a closure, or where gradients on entry are declared and given.

    Args:
        optimizer: registry entry.
        spec: to build it from.

    Raises:
        UndeclaredError: it uses them, and its traits say neither that it needs them nor that it does not.
    """
    traits = optimizer.traits
    if not traits.closure or traits.gradients_on_entry:
        return []
    try:
        without = _ended(optimizer, spec)
        repeatable = _same(without, _ended(optimizer, spec))
    except Exception:  # noqa: BLE001  # its trials tell what it raises
        return []
    if not repeatable:
        return [Check(name=NAME, verdict="not applicable", detail="two runs on the same gradients differ")]
    try:
        same = _same(without, _ended(Declared(optimizer, ("gradients_on_entry",)), spec))
    except Exception as error:  # noqa: BLE001  # it cannot have any: it uses none
        return [Check(name=NAME, verdict="recorded", detail=f"refused: {type(error).__name__}: {error}")]
    if same:
        return [Check(name=NAME, verdict="passed", detail="none are used, as torch's convention has it")]
    found = "its step uses gradients that it finds on entry, and step(closure) finds none"
    if traits.gradients_on_entry is None:
        raise UndeclaredError(
            f"{found}; declare gradients_on_entry=True in its traits if it is to be called "
            "after loss.backward(), as sharpness-aware minimisation is, or gradients_on_entry=False if it needs "
            "none"
        )
    return [Check(name=NAME, verdict="recorded", detail=f"{found}; declared: it needs none")]


def require(optimizer: Optimizer, spec: RunSpec) -> None:
    """Refuse to train what uses gradients on entry and does not say so. Call it before generators are seeded.

    Args:
        optimizer: registry entry.
        spec: of the run.

    Raises:
        UndeclaredError: as for `on_entry`.
    """
    if optimizer.traits.gradients_on_entry is None:
        on_entry(optimizer, spec)


def _ended(optimizer: Optimizer | Declared, spec: RunSpec) -> dict[str, Tensor]:
    """Return the parameters after a few steps."""
    seed_generators(0)
    scenario = replace(unreferenced(optimizer.traits), steps=STEPS, saved_at=None)
    player = Player(optimizer, spec, scenario)  # Declared passes everything on
    for number in range(1, STEPS + 1):
        player.set_lr(scenario.factor(number))
        player.minimise(_curved(player, number))
    return player.values()


def _curved(player: Player, number: int) -> Callable[[], Tensor]:
    """Return the closure of the loss <p, g> + c |p|^2 / 2; of tensors with sparse gradients, of <p, g> alone."""
    gradients = player.gradients(number)

    def closure() -> Tensor:
        loss = torch.zeros((), device=player.device)
        for name, parameter in player.parameters.items():
            given = gradients[name]
            if given is None:
                parameter.grad = None
                continue
            value = parameter.detach()
            curvature = 0.0 if given.is_sparse else CURVATURE
            parameter.grad = given.clone() if given.is_sparse else given + curvature * value
            wide = value.float()
            loss = loss + (wide * given.to_dense().float()).sum() + curvature * wide.square().sum() / 2
        return loss

    return closure


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.allclose(v, other[name], rtol=0, atol=0, equal_nan=True) for name, v in one.items())
