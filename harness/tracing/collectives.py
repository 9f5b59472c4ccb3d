"""Collectives as torch's profiler shows them: which, how many bytes, and what a ring would send for them.

Every path (DDP's reducer in C++, FSDP2, functional collectives, DeepSpeed) goes through the dispatcher as an
operator ``c10d::…``, whatever the backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from harness.interfaces import Collective

if TYPE_CHECKING:
    from collections.abc import Sequence

COLLECTIVES: tuple[Collective, ...] = get_args(Collective)

ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint8": 1, "bool": 1, "uint16": 2, "uint32": 4, "uint64": 8, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip

Counted = Literal["argument 0", "argument 1", "argument 0 of every rank", "argument 1 of every rank"]
"""Which argument is the whole tensor; or which is this rank's part of it."""

OPERATORS: dict[str, tuple[Collective, Counted]] = {
    "c10d::allreduce_": ("all_reduce", "argument 0"),
    "c10d::allreduce_coalesced_": ("all_reduce", "argument 0"),
    "c10d::reduce_": ("reduce", "argument 0"),
    "c10d::broadcast_": ("broadcast", "argument 0"),
    "c10d::_allgather_base_": ("all_gather", "argument 0"),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", "argument 0"),
    "c10d::allgather_": (
        "all_gather",
        "argument 1 of every rank",
    ),  # its outputs are nested too deep to be recorded
    "c10d::allgather_coalesced_": ("all_gather", "argument 1 of every rank"),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", "argument 1"),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", "argument 1"),
    "c10d::reduce_scatter_": ("reduce_scatter", "argument 0 of every rank"),
    "c10d::alltoall_base_": ("all_to_all", "argument 1"),
    "c10d::alltoall_": ("all_to_all", "argument 1"),
}
"""Operator -> what it is, and whose bytes are its payload: `Prediction.payload_bytes` says of which tensor."""


class Tensors(NamedTuple):
    """The tensors of one argument of an operator.

    Attributes:
        dtype: of the first, without the ``torch.`` prefix.
        shapes: of each.
    """

    dtype: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return sum(prod(shape) for shape in self.shapes) * ITEM_BYTES.get(self.dtype, 1)


@dataclass(frozen=True)
class Call:
    """One collective.

    Attributes:
        collective: which.
        dtype: of its tensors.
        payload_bytes: of the whole (unsharded) tensor.
        ranks: that took part; None: groups of several sizes exist, and the trace cannot tell which it was.
    """

    collective: Collective
    dtype: str
    payload_bytes: int
    ranks: int | None

    @property
    def wire_bytes(self) -> float | None:
        """What each rank sends if it is done by a ring, derived from the payload; None: the ranks are unknown.

        Patarasuk & Yuan (2009), "Bandwidth optimal all-reduce algorithms for clusters of workstations": 2(N-1)/N
        of the tensor for all-reduce, half of it for either half. A broadcast or reduce pipelined around the ring
        passes the whole tensor on, save at its end: (N-1)/N a rank on average. All-to-all keeps 1/N at home.
        """
        if self.ranks is None:
            return None
        share = (self.ranks - 1) / self.ranks
        return self.payload_bytes * share * (2 if self.collective == "all_reduce" else 1)


def call(operator: str, arguments: Sequence[Tensors | None], group_sizes: Sequence[int]) -> Call | None:
    """Read one operator; None: it is no collective, or none that moves tensors between all ranks (a barrier, say).

    Args:
        operator: its name.
        arguments: in order; None where there are no tensors, or they were not recorded.
        group_sizes: of the process groups with more than one rank, each once.
    """
    if operator not in OPERATORS:
        return None
    collective, counted = OPERATORS[operator]
    index = 1 if "1" in counted else 0
    tensors = arguments[index] if len(arguments) > index else None
    if tensors is None:
        return None
    ranks = _ranks(arguments, collective) or (group_sizes[0] if len(group_sizes) == 1 else None)
    payload = tensors.bytes
    if counted.endswith("every rank"):
        payload *= ranks or max(group_sizes, default=1)
    return Call(collective, tensors.dtype, payload, ranks)


def _ranks(arguments: Sequence[Tensors | None], collective: Collective) -> int | None:
    """Tell the group's size from a collective's whole tensor and its part, where both were recorded."""
    if collective not in {"all_gather", "reduce_scatter"} or len(arguments) < 2:
        return None
    first, second = arguments[0], arguments[1]
    if first is None or second is None or not min(first.bytes, second.bytes):
        return None
    return max(first.bytes, second.bytes) // min(first.bytes, second.bytes)
