"""Tries whether an optimizer of unknown granularity computes the same from ZeRO's flat partitions.

Two steps over small tensors, once as ``single`` would take them and once as ZeRO does: groups flattened, padded
and cut over the ranks. It needs no communication, and every rank comes to the same answer.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.errors import OptbenchError, UnsupportedError
from harness.interfaces import ParamGroup
from harness.seeding import generators_kept, seed_generators
from harness.stepping import Driver

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.interfaces import Optimizer
    from harness.spec import RunSpec

MOST_ELEMENTS = 16_384
"""Of a tensor tried: larger ones lose rows."""
MOST_ALIKE = 2
"""Tensors tried of each role and shape."""
MOST_RANKS = 8
"""Partitions tried, at most: beyond, the cuts only get denser."""
STEPS = 2
LARGEST_DIFFERENCE = 1e-5
"""Between the updates, relative to the largest element of the tensor's update."""


def check_flat(
    optimizer: Optimizer, groups: Sequence[ParamGroup], spec: RunSpec, stage: int, world_size: int
) -> None:
    """Raise UnsupportedError where updates from flat partitions differ from those of whole tensors.

    Args:
        optimizer: whose traits leave its granularity undeclared.
        groups: the model's own, for names and shapes; they are not touched.
        spec: with every default resolved.
        stage: of ZeRO, 1 to 3.
        world_size: ranks that the partitions are for.
    """
    samples = _samples(groups)
    remedy = f"declare granularity in the traits of {optimizer.name} if that is meant, or use --strategy ddp"
    with generators_kept():
        whole = _Trial(optimizer, samples, spec).whole()
        try:
            flat = _Trial(optimizer, samples, spec).flat(min(world_size, MOST_RANKS), per_tensor=stage == 3)
        except OptbenchError:
            raise
        except Exception as error:
            raise UnsupportedError(
                f"{optimizer.name} cannot step on flat partitions of zero{stage}: "
                f"{type(error).__name__}: {error}; use --strategy zero0, ddp or zero-redundancy"
            ) from error
    for name, start in _named(samples):
        update, other = whole[name] - start, flat[name] - start
        allowed = LARGEST_DIFFERENCE * update.abs().max() + 4 * torch.finfo(start.dtype).eps * start.abs().max()
        difference = (other - update).abs().max()
        if not difference <= allowed:  # NaN too
            relative = float(difference / update.abs().max())
            raise UnsupportedError(
                f"{optimizer.name} is no element-wise algorithm: from the flat partitions of zero{stage} its "
                f"update of {name} differs by {relative:.1e} of its size after {STEPS} steps; {remedy}"
            )


def _samples(groups: Sequence[ParamGroup]) -> list[ParamGroup]:
    """Return small tensors of the model's shapes under its names, values from the names alone."""
    taken = []
    for group in groups:
        counts: dict[tuple[int, ...], int] = {}
        names, tensors = [], []
        for name, tensor in zip(group.names, group.parameters, strict=True):
            shape = _fewer_rows(tuple(tensor.shape))
            counts[shape] = counts.get(shape, 0) + 1
            if counts[shape] <= MOST_ALIKE:
                names.append(name)
                tensors.append(_values(name, shape, 0, 0.02).to(tensor.device))
        taken.append(ParamGroup(tuple(names), tuple(tensors), group.role, group.decay, group.lr_scale))
    return taken


def _fewer_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    if not shape or math.prod(shape) <= MOST_ELEMENTS:
        return shape
    return (max(1, MOST_ELEMENTS // max(1, math.prod(shape[1:]))), *shape[1:])


def _values(name: str, shape: tuple[int, ...], number: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {number}".encode()))
    return torch.randn(shape, generator=generator) * scale


def _gradient(name: str, tensor: Tensor, step: int) -> Tensor:
    """Return a step's gradient; its size differs from tensor to tensor, or norms would not tell them apart."""
    scale = 10.0 ** (-1 - zlib.crc32(name.encode()) % 3)
    return _values(name, tuple(tensor.shape), step + 1, scale).to(tensor.device)


def _named(groups: Sequence[ParamGroup]) -> Iterator[tuple[str, Tensor]]:
    for group in groups:
        yield from zip(group.names, group.parameters, strict=True)


class _Trial:
    """The class under trial, built as for the run, over fresh parameters.

    Args:
        optimizer: to build.
        samples: whose values the parameters start from.
        spec: the run's.
    """

    def __init__(self, optimizer: Optimizer, samples: Sequence[ParamGroup], spec: RunSpec) -> None:
        self._optimizer, self._samples, self._spec = optimizer, samples, spec

    def _built(self) -> tuple[torch.optim.Optimizer, dict[str, torch.nn.Parameter]]:
        seed_generators(self._spec.seed)
        fresh = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in _named(self._samples)}
        groups = [
            ParamGroup(g.names, tuple(fresh[name] for name in g.names), g.role, g.decay, g.lr_scale)
            for g in self._samples
        ]
        return self._optimizer.build(groups, self._spec), fresh

    def whole(self) -> dict[str, Tensor]:
        """Return every tensor after the steps on whole tensors."""
        optimizer, parameters = self._built()
        driver = Driver(optimizer, self._optimizer.name, self._optimizer.traits)
        for step in range(STEPS):
            for name, parameter in parameters.items():
                parameter.grad = _gradient(name, parameter, step)
            driver.step()
        return {name: parameter.detach() for name, parameter in parameters.items()}

    def flat(self, ranks: int, *, per_tensor: bool) -> dict[str, Tensor]:
        """Return the same after steps on each rank's partition, put together again.

        Args:
            ranks: that the partitions are for.
            per_tensor: cut every tensor over the ranks, as stage 3 does; else a group's tensors one after another.
        """
        found: dict[str, list[Tensor]] = {name: [] for name, _ in _named(self._samples)}
        for rank in range(ranks):
            optimizer, parameters = self._built()
            names = {id(parameter): name for name, parameter in parameters.items()}
            for group in optimizer.param_groups:
                members = [names[id(parameter)] for parameter in group["params"]]
                cut = _Cut([parameters[name] for name in members], ranks, rank, per_tensor=per_tensor)
                partition = torch.nn.Parameter(cut.of([parameters[name].detach() for name in members]))
                group["params"] = [partition]
                for name, piece in zip(members, self._stepped(optimizer, group, members, cut), strict=True):
                    found[name].append(piece)
        return {
            name: torch.cat(pieces)[: tensor.numel()].view_as(tensor)
            for (name, tensor), pieces in zip(_named(self._samples), found.values(), strict=True)
        }

    def _stepped(
        self, optimizer: torch.optim.Optimizer, group: dict[str, list[Tensor]], members: Sequence[str], cut: _Cut
    ) -> list[Tensor]:
        """Step one group alone, as ZeRO's wrappers do; return its tensors' pieces."""
        every, optimizer.param_groups = optimizer.param_groups, [group]
        (partition,) = group["params"]
        driver = Driver(optimizer, self._optimizer.name, self._optimizer.traits)
        shapes = dict(_named(self._samples))
        for step in range(STEPS):
            partition.grad = cut.of([_gradient(name, shapes[name], step) for name in members])
            driver.step()
        optimizer.param_groups = every
        return cut.pieces(partition.detach())


class _Cut:
    """ZeRO's partition rule for one group and rank.

    Args:
        tensors: of the group, in its order.
        ranks: that share it.
        rank: whose partition it is.
        per_tensor: as in stage 3: every tensor is padded to a multiple of the ranks and cut; else all of them, one
            after the other, padded to a multiple of twice the ranks.
    """

    def __init__(self, tensors: Sequence[Tensor], ranks: int, rank: int, *, per_tensor: bool) -> None:
        self._counts = [tensor.numel() for tensor in tensors]
        self._ranks, self._rank, self._per_tensor = ranks, rank, per_tensor

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return this rank's partition of the tensors, flat."""
        if self._per_tensor:
            return torch.cat([self._share(tensor.reshape(-1), 1) for tensor in tensors])
        return self._share(torch.cat([tensor.reshape(-1) for tensor in tensors]), 2)

    def _share(self, flat: Tensor, alignment: int) -> Tensor:
        size = -(-flat.numel() // (self._ranks * alignment)) * alignment
        padded = torch.cat([flat, flat.new_zeros(size * self._ranks - flat.numel())])
        return padded[self._rank * size : (self._rank + 1) * size].clone()

    def pieces(self, partition: Tensor) -> list[Tensor]:
        """Return what the partition holds of each tensor, padding left out, in the group's order."""
        found, start = [], 0
        if self._per_tensor:
            for count in self._counts:
                size = -(-count // self._ranks)
                mine = max(0, min(size, count - self._rank * size))
                found.append(partition[start : start + mine])
                start += size
            return found
        first = self._rank * partition.numel()
        for count in self._counts:
            low, high = max(start, first), min(start + count, first + partition.numel())
            found.append(partition[max(0, low - first) : max(0, high - first)] if low < high else partition[:0])
            start += count
        return found
