"""Which part of a parameter a rank holds, as FSDP2 and ZeRO cut it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed.tensor import DTensor, Shard

from harness.interfaces import Part
from harness.strategies.stepped import local

if TYPE_CHECKING:
    from torch import Tensor


def part_of(name: str, parameter: Tensor) -> Part:
    """Return a plain parameter whole, of a DTensor this rank's chunk of rows.

    FSDP2 cuts dimension 0 as `torch.chunk` does, into ceil(rows / ranks) rows for each; the last may get fewer.

    Raises:
        ValueError: it is cut in another way.
    """
    whole = parameter.numel()
    if not isinstance(parameter, DTensor):
        return Part(name, parameter.detach(), 0, whole)
    cuts = [(dim, kind.dim) for dim, kind in enumerate(parameter.placements) if isinstance(kind, Shard)]
    if not cuts:
        return Part(name, local(parameter.detach()), 0, whole)
    if len(cuts) > 1 or cuts[0][1] != 0:
        raise ValueError(f"{name} is placed as {parameter.placements}, not in chunks of rows")
    mesh, dim = parameter.device_mesh, cuts[0][0]
    rows = parameter.shape[0]
    chunk = -(-rows // mesh.size(dim))
    first = min(mesh.get_local_rank(dim) * chunk, rows)
    return Part(name, local(parameter.detach()), first * (whole // max(1, rows)), whole)


def partition_of(name: str, parameter: Any, rank: int) -> Part:
    """Return a plain parameter whole, of one that ZeRO's stage 3 partitioned this rank's elements.

    Each rank has ceil(elements / ranks) of the flattened parameter; what is beyond its end is padding.
    """
    partition = getattr(parameter, "ds_tensor", None)
    if partition is None:
        return Part(name, parameter.detach(), 0, parameter.numel())
    total = int(parameter.ds_numel)
    start = min(rank * partition.numel(), total)
    return Part(name, partition.detach()[: total - start], start, total)
