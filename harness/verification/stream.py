"""The tensors of a trial and their gradients: from names and step numbers alone, the same at each replay."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from harness.interfaces import ParamGroup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from harness.interfaces import Role

SIZE = 0.05
"""Standard deviation of initial parameters: small, so that their own rounding hides little of an update."""

Kind = Literal[
    "ordinary", "spread", "small", "zero", "at times zero", "tiny", "faint", "large", "none", "at times none"
]
"""What gradients are like. ``ordinary``: N(0, 1). ``spread``: the same times 1e-9 to 10 over the tensor, so that
eps matters to some elements and not to others. ``small``: 1e-7. ``tiny``: 1e-12. ``faint``: 1e-25, whose square no
float32 holds. ``large``: 1e4. ``none``: no gradient."""

_FACTOR: Mapping[str, float] = {"small": 1e-7, "tiny": 1e-12, "faint": 1e-25, "large": 1e4, "zero": 0.0}
_ABSENT_EVERY = 3


@dataclass(frozen=True)
class Group:
    """How some tensors are treated: see `harness.interfaces.ParamGroup`."""

    role: Role
    decay: bool = True
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Member:
    """One tensor of a trial.

    Attributes:
        name: keys its values.
        shape: of parameter and gradient.
        group: number of its group.
        kind: of its gradients.
        sparse: its gradients are sparse COO tensors with some of the rows.
    """

    name: str
    shape: tuple[int, ...]
    group: int = 0
    kind: Kind = "ordinary"
    sparse: bool = False

    def start(self) -> Tensor:
        """Return the parameter before the first step, float64."""
        return SIZE * _normal(f"{self.name}/start", self.shape)

    def gradient(self, step: int) -> Tensor | None:
        """Return the gradient of one step (from 1), dense, float64; None: it has none."""
        absent = step % _ABSENT_EVERY == 1
        if self.kind == "none" or (self.kind == "at times none" and absent):
            return None
        values = _normal(f"{self.name}/{step}", self.shape)
        if self.kind == "at times zero" and absent:
            return torch.zeros_like(values)
        if self.kind == "spread" and values.numel():
            exponents = torch.linspace(-9, 1, values.numel(), dtype=torch.float64)
            values = values * (10**exponents).reshape(self.shape)
        if self.sparse:
            values[step % 2 :: 2] = 0.0  # every other row
        return values * _FACTOR.get(self.kind, 1.0)


@dataclass(frozen=True)
class Stage:
    """The tensors of one trial, in groups."""

    groups: tuple[Group, ...]
    members: tuple[Member, ...] = field(default=())

    def member(self, name: str) -> Member:
        """Return the named tensor's description."""
        return next(each for each in self.members if each.name == name)

    def param_groups(self, parameters: Mapping[str, Tensor]) -> list[ParamGroup]:
        """Return the groups over live parameters, those without members left out."""
        made = []
        for number, group in enumerate(self.groups):
            names = tuple(each.name for each in self.members if each.group == number)
            if names:
                tensors = tuple(parameters[name] for name in names)
                made.append(ParamGroup(names, tensors, group.role, group.decay, group.lr_scale))
        return made


def parameters(stage: Stage, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Return the stage's parameters before the first step, as leaves."""
    return {each.name: each.start().to(device, dtype).requires_grad_() for each in stage.members}


def given(member: Member, step: int, like: Tensor) -> Tensor | None:
    """Return the gradient as an optimizer gets it: in its parameter's dtype and place, sparse where declared."""
    values = member.gradient(step)
    if values is None:
        return None
    dense = values.to(like.device, like.dtype)
    return dense.to_sparse(1).coalesce() if member.sparse else dense


def _normal(key: str, shape: Sequence[int]) -> Tensor:
    """Return N(0, 1), float64, from the key alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    # A tensor of no dimension takes one number too, and none of a tensor's values depends on its shape.
    return torch.randn(math.prod(shape), generator=generator, dtype=torch.float64).reshape(tuple(shape))
