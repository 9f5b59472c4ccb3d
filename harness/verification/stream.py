"""The tensors of a trial and their gradients: from names and step numbers alone, the same at each replay."""

from __future__ import annotations

import functools
import math
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from harness.interfaces import ParamGroup
from harness.verification.layouts import MARGIN, laid_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from harness.interfaces import Role
    from harness.verification.layouts import Layout

SIZE = 0.05
"""Standard deviation of initial parameters: small, so that their own rounding hides little of an update."""

POOL = 1 << 20
"""Numbers that members with a place share."""

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
        layout: how the parameter lies in memory.
        gradient_layout: how its gradients do; None: as the parameter.
        place: where its numbers lie among those drawn at once for all such members; None: it draws its own.
    """

    name: str
    shape: tuple[int, ...]
    group: int = 0
    kind: Kind = "ordinary"
    sparse: bool = False
    layout: Layout = "contiguous"
    gradient_layout: Layout | None = None
    place: int | None = None

    def start(self) -> Tensor:
        """Return the parameter before the first step, float64."""
        return SIZE * self._drawn("start")

    def gradient(self, step: int) -> Tensor | None:
        """Return the gradient of one step (from 1), dense, float64; None: it has none."""
        absent = step % _ABSENT_EVERY == 1
        if self.kind == "none" or (self.kind == "at times none" and absent):
            return None
        values = self._drawn(str(step))
        if self.gradient_layout in {"expanded", "repeated"}:
            values = values[:1].expand(self.shape)
        if self.kind == "at times zero" and absent:
            return torch.zeros_like(values)
        if self.kind == "spread" and values.numel():
            exponents = torch.linspace(-9, 1, values.numel(), dtype=torch.float64)
            values = values * (10**exponents).reshape(self.shape)
        if self.sparse:
            values[step % 2 :: 2] = 0.0  # every other row
        return values * _FACTOR.get(self.kind, 1.0)

    def _drawn(self, key: str) -> Tensor:
        """Return N(0, 1), float64, from the key and the member."""
        if self.place is None:
            return _normal(f"{self.name}/{key}", self.shape)
        return _pool(key)[self.place : self.place + math.prod(self.shape)].reshape(self.shape)


@dataclass(frozen=True)
class Stage:
    """The tensors of one trial, in groups."""

    groups: tuple[Group, ...]
    members: tuple[Member, ...] = field(default=())

    def member(self, name: str) -> Member:
        """Return the named tensor's description."""
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Member]:
        return {each.name: each for each in self.members}

    def param_groups(self, parameters: Mapping[str, Tensor]) -> list[ParamGroup]:
        """Return the groups over live parameters, those without members left out."""
        named: dict[int, list[str]] = {}
        for each in self.members:
            named.setdefault(each.group, []).append(each.name)
        made = []
        for number, group in enumerate(self.groups):
            names = tuple(named.get(number, ()))
            if names:
                tensors = tuple(parameters[name] for name in names)
                made.append(ParamGroup(names, tensors, group.role, group.decay, group.lr_scale))
        return made


def parameters(stage: Stage, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Return the stage's parameters before the first step, as leaves."""
    return {
        each.name: laid_out(each.start().to(device, dtype), each.layout).requires_grad_() for each in stage.members
    }


def given(member: Member, step: int, like: Tensor) -> Tensor | None:
    """Return the gradient as an optimizer gets it: in its parameter's dtype and place, sparse where declared."""
    values = member.gradient(step)
    if values is None:
        return None
    dense = values.to(like.device, like.dtype)
    if member.sparse:
        return dense.to_sparse(1).coalesce()
    layout = member.gradient_layout or member.layout
    return dense if layout == "contiguous" else laid_out(dense, layout, _beside(values))


def _beside(values: Tensor) -> Tensor:
    """Return what lies around a gradient in memory: other numbers like it."""
    needed = 2 * values.numel() + 2 * MARGIN + 1
    return _pool("beside") if needed <= POOL else _normal("beside", (needed,))


@functools.lru_cache(maxsize=8)
def _pool(key: str) -> Tensor:
    """Return numbers for many members at once."""
    return _normal(f"pool/{key}", (POOL,))


def _normal(key: str, shape: Sequence[int]) -> Tensor:
    """Return N(0, 1), float64, from the key alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    # A tensor of no dimension takes one number too, and none of a tensor's values depends on its shape.
    return torch.randn(math.prod(shape), generator=generator, dtype=torch.float64).reshape(tuple(shape))
