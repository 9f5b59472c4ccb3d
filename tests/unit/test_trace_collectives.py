"""What an operator's arguments say of a collective, and what a ring would send for it."""

from __future__ import annotations

import pytest

from harness.tracing.collectives import Call, Tensors, call


def tensors(*elements: int, dtype: str = "float32") -> Tensors:
    return Tensors(dtype, tuple((count,) for count in elements))


@pytest.mark.parametrize(
    ("operator", "arguments", "collective", "payload", "ranks"),
    [
        ("c10d::allreduce_", [tensors(10), None], "all_reduce", 40, 4),
        ("c10d::allreduce_coalesced_", [tensors(3, 4), None], "all_reduce", 28, 4),
        ("c10d::_allgather_base_", [tensors(16), tensors(8), None], "all_gather", 64, 2),
        ("c10d::allgather_", [None, tensors(8), None], "all_gather", 128, 4),
        ("c10d::allgather_into_tensor_coalesced_", [tensors(8, 8), tensors(2, 2)], "all_gather", 64, 4),
        ("c10d::_reduce_scatter_base_", [tensors(8), tensors(16), None], "reduce_scatter", 64, 2),
        ("c10d::reduce_scatter_", [tensors(8), None], "reduce_scatter", 128, 4),
        ("c10d::broadcast_", [tensors(5, dtype="bfloat16"), None], "broadcast", 10, 4),
        ("c10d::reduce_", [tensors(5), None], "reduce", 20, 4),
        ("c10d::alltoall_base_", [tensors(6), tensors(6), None], "all_to_all", 24, 4),
    ],
)
def test_payload_is_of_the_whole_tensor(operator, arguments, collective, payload, ranks):
    found = call(operator, arguments, [4])
    assert found is not None
    assert (found.collective, found.payload_bytes, found.ranks) == (collective, payload, ranks)


@pytest.mark.parametrize(
    "operator", ["c10d::barrier", "gloo:all_reduce", "aten::add", "_c10d_functional::all_reduce"]
)
def test_what_moves_no_tensors_or_wraps_another_operator_is_no_collective(operator):
    assert call(operator, [tensors(1)], [2]) is None


def test_with_groups_of_several_sizes_the_wire_is_unknown_where_the_arguments_do_not_tell():
    reduced = call("c10d::allreduce_", [tensors(10), None], [2, 4])
    gathered = call("c10d::_allgather_base_", [tensors(16), tensors(8)], [2, 4])
    assert reduced is not None
    assert gathered is not None
    assert (reduced.ranks, reduced.wire_bytes) == (None, None)
    assert (gathered.ranks, gathered.wire_bytes) == (2, 32)


@pytest.mark.parametrize(
    ("collective", "share"),
    [
        ("all_reduce", 1.5),
        ("all_gather", 0.75),
        ("reduce_scatter", 0.75),
        ("broadcast", 0.75),
        ("all_to_all", 0.75),
    ],
)
def test_a_ring_of_four_ranks_sends_its_share_of_the_payload(collective, share):
    assert Call(collective, "float32", 1000, 4).wire_bytes == 1000 * share
