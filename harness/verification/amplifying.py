"""How much an implementation makes of rounding: the same trial again, with the last bit of every gradient changed.

Where a decomposition leaves a choice (the eigenvectors of an eigenvalue that occurs twice, or of zero), one bit of
a gradient decides it, and updates differ by much while none is wrong. Another order of additions is enough, and so
another strategy, number of ranks or implementation. What is measured here tells by how much their loss curves may
part for that reason alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from harness.precision import stepped_dtype
from harness.seeding import seed_generators
from harness.verification.certificate import AMPLIFIED, Check
from harness.verification.playing import Player
from harness.verification.scenarios import unreferenced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from harness.interfaces import Optimizer
    from harness.spec import RunSpec

    Values = Mapping[str, Tensor]

STEPS = 12
"""Decompositions are renewed every ten steps by some."""


def amplified(optimizer: Optimizer, spec: RunSpec) -> Check:
    """Record the largest difference that the gradients' last bits make to an update, relative to it, as L2 norms.

    Args:
        optimizer: the implementation.
        spec: its hyperparameters, precision and device.
    """
    if optimizer.traits.closure or stepped_dtype(spec.precision) != "float32":
        told = "measured over float32 parameters, in steps without a closure"
        return Check(name=AMPLIFIED, verdict="not applicable", detail=told)
    try:
        one, other = _played(optimizer, spec, lambda g: g), _played(optimizer, spec, other_last_bits())
    except Exception as error:  # noqa: BLE001  # what cannot step on this is the matter of other checks
        return Check(name=AMPLIFIED, verdict="recorded", detail=f"refused: {type(error).__name__}: {error}"[:300])
    found = [
        (apart, step, name)
        for step, row in enumerate(relative(one, other), start=1)
        for name, apart in row.items()
    ]
    largest, step, tensor = max(found)
    return Check(name=AMPLIFIED, verdict="recorded", error=largest, step=step, tensor=tensor)


def _played(optimizer: Optimizer, spec: RunSpec, change: Callable[[Tensor], Tensor]) -> list[dict[str, Tensor]]:
    """Return the parameters before the first step and after each."""
    seed_generators(0)
    player = Player(optimizer, spec, replace(unreferenced(optimizer.traits), saved_at=None))
    values = [player.values()]
    for number in range(1, STEPS + 1):
        gradients = player.gradients(number)
        player.step(number, {name: None if g is None else change(g) for name, g in gradients.items()})
        values.append(player.values())
    return values


def other_last_bits() -> Callable[[Tensor], Tensor]:
    """Return a change of gradients: each element up or down by a unit in the last place, as a draw decides."""
    generator = torch.Generator().manual_seed(1)

    def change(gradient: Tensor) -> Tensor:
        if gradient.is_sparse:
            return gradient
        signs = torch.randint(0, 2, gradient.shape, generator=generator).to(gradient.device) * 2 - 1
        return gradient * (1 + signs * torch.finfo(gradient.dtype).eps)

    return change


def relative(one: Sequence[Values], other: Sequence[Values]) -> Iterable[dict[str, float]]:
    """Yield, step by step, the difference of each tensor's update in two runs, relative to the first's.

    Args:
        one: values before the first step and after each.
        other: of another run over the same tensors.
    """
    for step in range(1, min(len(one), len(other))):
        row = {}
        for name in one[step]:
            update = one[step][name] - one[step - 1][name]
            apart = float((other[step][name] - other[step - 1][name] - update).norm())
            size = float(update.norm())
            row[name] = apart / size if size > 0 else (0.0 if apart == 0 else float("inf"))
        yield row
