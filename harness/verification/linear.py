"""A workload whose loss is linear in its parameters: the gradient of every step is known before any engine runs.

loss(micro-batch) = mean over its samples i of sum over the tensors p of <p, c(t, i, p)>, so that the gradient of
step t is the mean of c(t, i, p) over the global batch, whatever the parameters are. The coefficients are small
integers times a power of two: sums of up to 16 samples, and their means over a power of two, are exact in bfloat16
too, in any order of reduction.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.interfaces import WorkloadSize, WorkloadTraits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.interfaces import Batch, DataShard

TARGET = "harness.verification.linear:Linear"
"""Names the workload in a RunSpec."""

SHAPES: Mapping[str, tuple[int, ...]] = {
    "embed.weight": (6, 4),
    "blocks.0.weight": (5, 4),
    "blocks.0.bias": (5,),
    "blocks.1.weight": (3, 7),
    "blocks.1.bias": (1,),
    "blocks.1.faint": (4,),
    "head.weight": (4, 6),
    "spare": (3,),
}
"""The parameters. Few are divisible by the ranks, one is smaller than they are many."""

_SHORT = (3, 1, 5, 2, 7, 4)

ODD_SHAPES: Mapping[str, tuple[int, ...]] = {
    "embed.weight": (1025, 4),
    "blocks.0.long": (2 * 65_536 + 3,),
    "blocks.0.bias": (33,),
    "blocks.1.weight": (257, 129),
    **{f"blocks.1.short_{number}": (_SHORT[number % len(_SHORT)],) for number in range(120)},
    "head.weight": (17, 31),
    "spare": (3,),
}
"""Parameters whose shards end beside the edges of vectors, blocks and chunks, and more than a launch over many
tensors holds."""

SIZES: Mapping[str, Mapping[str, tuple[int, ...]]] = {"small": SHAPES, "odd": ODD_SHAPES}
"""The parameters by the workload's size."""

_UNIT = -5
_UNITS = {
    "embed.weight": -4,
    "blocks.0.weight": -5,
    "blocks.0.bias": -7,
    "blocks.1.weight": -3,
    "blocks.1.bias": -6,
    # As small as the eps of adaptive algorithms, or a constant factor on their gradients would change nothing.
    "blocks.1.faint": -28,
    "head.weight": -4,
    "spare": -5,
}
"""log2 of what a tensor's coefficients are multiples of."""

_SIZES = (0, 2, -1, 0, 3, -2)
"""log2 of a factor on the gradients, by step and over again: some steps are clipped, others are not."""

LARGEST = 15
"""Coefficients are integers of at most this magnitude, times their unit."""


def _generator(*words: object) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(" ".join(map(str, words)).encode()))


def coefficients(seed: int, step: int, name: str, samples: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return c(t, i, p) of all samples of a step's global batch, float64, shape (samples, *shape of p).

    Args:
        seed: of the run.
        step: from 0.
        name: of the parameter.
        samples: of the global batch.
        shape: of the parameter; None: that of the small size.
    """
    shape = SHAPES[name] if shape is None else shape
    drawn = torch.randint(
        -LARGEST, LARGEST + 1, (samples, *shape), generator=_generator(seed, step, name, samples)
    )
    return drawn.double() * math.ldexp(1.0, _UNITS.get(name, _UNIT) + _SIZES[step % len(_SIZES)])


def initial(name: str, seed: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return a parameter's value before the first step, float64, exact in bfloat16, at most 0.06."""
    shape = SHAPES[name] if shape is None else shape
    drawn = torch.randint(-LARGEST, LARGEST + 1, shape, generator=_generator(seed, "initial", name))
    return drawn.double() * 2.0**-8


class _Part(nn.Module):
    """Some parameters, and their share of the loss."""

    def __init__(self, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self._prefix = prefix
        for name, shape in shapes.items():
            if name.startswith(prefix):
                self.register_parameter(name.removeprefix(prefix), nn.Parameter(torch.empty(shape)))
        self.seen: dict[str, Tensor] = {}

    def forward(self, total: Tensor, batch: Batch) -> Tensor:
        """Add sum <p, c_i> of this part's parameters to each sample's total; leave copies of them in ``seen``."""
        for name, parameter in self.named_parameters(recurse=False):
            key = self._prefix + name
            self.seen[key] = parameter.detach().double()
            if key in batch:
                total = total + (parameter * batch[key].to(parameter.dtype)).flatten(1).sum(1)
        return total


class Model(nn.Module):
    """Parts that a strategy may shard one by one."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> None:
        super().__init__()
        self.embed = _Part("embed.", shapes)
        self.blocks = nn.ModuleList([_Part("blocks.0.", shapes), _Part("blocks.1.", shapes)])
        self.head = _Part("head.", shapes)
        self.spare = nn.Parameter(torch.empty(shapes["spare"]))
        self.seen: dict[str, Tensor] = {}

    def forward(self, batch: Batch) -> Tensor:
        """Return each sample's loss, shape (samples,)."""
        spare = batch.get("spare")
        first = next(iter(batch.values()))
        total = first.new_zeros(first.shape[0])
        self.seen = {"spare": self.spare.detach().double()}
        if spare is not None:
            total = total + (self.spare * spare.to(self.spare.dtype)).flatten(1).sum(1)
        for part in (self.embed, *self.blocks, self.head):
            total = part(total, batch)
            self.seen |= part.seen
        return total


class Linear:
    """The workload; it keeps the parameters' values as every forward pass has seen them.

    Args:
        size: ``small``, or ``odd``: shards end beside the edges of chunks.
        data: unused.
        without: steps, from 0, in which the parameter ``spare`` takes no part in the loss.
    """

    traits = WorkloadTraits(
        summary="a loss linear in the parameters: gradients are known beforehand; for optbench verify",
        source="small integers drawn by seed, step, sample and name",
        sizes={
            "small": WorkloadSize(parameters=102, global_batch=16),
            "odd": WorkloadSize(parameters=169331, global_batch=16),
        },
        default_size="small",
        metrics={"total": "neither"},
        options={"without": []},
        blocks=("blocks.*",),
        embeddings=("embed.weight",),
        heads=("head.weight",),
    )

    def __init__(self, size: str | None = None, data: str | None = None, without: tuple[int, ...] = ()) -> None:
        del data
        self._shapes = SIZES[size or "small"]
        self._without = frozenset(without)
        self.seen: list[dict[str, Tensor]] = []
        """Name -> value, float64, one entry a forward pass in training."""

    def build(self) -> nn.Module:
        """Return the model, values undefined."""
        return Model(self._shapes)

    def initialise(self, name: str, tensor: Tensor, seed: int) -> None:
        """Fill a parameter from seed and name."""
        tensor.copy_(initial(name, seed, self._shapes[name]))

    def batches(self, shard: DataShard) -> Iterator[Batch]:
        """Yield the coefficients of this rank's samples, by parameter: shape (samples, *shape), float32."""
        step = 0
        while True:
            drawn = {
                name: coefficients(shard.seed, step, name, shard.global_batch, shape).float()
                for name, shape in self._shapes.items()
                if name != "spare" or step not in self._without
            }
            for micro in range(shard.accumulation):
                rows = list(shard.positions(micro))
                yield {name: each[rows] for name, each in drawn.items()}
            step += 1

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean over the micro-batch."""
        total: Tensor = model(batch)
        inner = next(module for module in model.modules() if isinstance(module, Model))
        if inner.training:
            self.seen.append({name: value.clone() for name, value in inner.seen.items()})
        return total.mean()

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the loss of one sample of the first step."""
        batch = {name: coefficients(0, 0, name, 1, shape).float() for name, shape in self._shapes.items()}
        return {"total": float(self.loss(model, batch).detach())}
