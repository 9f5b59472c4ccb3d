"""Lifetimes from a profiler's allocations and releases, complete or not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.tracing.extents import local_parts
from harness.tracing.storages import Extent, Heap, intersection, length, union


def at(first: int, size: int = 16, device: str = "cpu") -> Extent:
    return Extent(device, first, first + size)


def test_a_storage_lives_from_its_allocation_to_its_release():
    heap = Heap()
    heap.allocate(at(100), 1)
    heap.release("cpu", 100, 5)
    (storage,) = heap.storages
    assert (storage.size, storage.born_ns, storage.died_ns) == (16, 1, 5)
    assert [storage.live(time) for time in (0, 1, 4, 5)] == [False, True, True, False]


def test_an_allocation_ends_what_was_believed_to_lie_at_its_addresses():
    heap = Heap()
    old = heap.present(at(100, 64))
    other = heap.present(at(300))
    heap.allocate(at(132, 200), 7)
    assert (old.died_ns, other.died_ns) == (7, 7)


def test_the_same_address_on_another_device_is_other_memory():
    heap = Heap()
    old = heap.present(at(100))
    heap.allocate(at(100, device="cuda:0"), 7)
    heap.release("cuda:1", 100, 8)
    assert old.died_ns is None
    assert len(heap.storages) == 2


def test_releases_of_unknown_or_inner_addresses_are_of_no_interest():
    heap = Heap()
    old = heap.present(at(100))
    heap.release("cpu", 108, 3)
    heap.release("cpu", 4, 3)
    assert old.died_ns is None


def test_an_argument_of_unknown_memory_is_older_than_the_trace_unless_its_addresses_were_seen_before():
    heap = Heap()
    old = heap.sight(at(100), 9, 10)
    assert heap.sight(at(100, 64), 11, 12) is old
    assert (old.born_ns, old.size, old.touched_ns) == (None, 64, 12)
    heap.allocate(at(500), 13)
    heap.release("cpu", 500, 14)
    assert heap.sight(at(500), 15, 16).born_ns == 15


def test_a_view_inside_known_memory_is_that_memory():
    heap = Heap()
    heap.allocate(at(100, 64), 1)
    assert heap.sight(at(132, 8), 2, 3) is heap.storages[0]
    assert len(heap.storages) == 1


def test_what_a_collective_worked_on_ends_with_its_last_use_unless_it_is_seen_alive():
    heap = Heap()
    for first in (100, 200, 300, 400):
        heap.allocate(at(first), 1)
        heap.sight(at(first), 4, 6).used_ns.append(4)
    heap.claim("gradients", at(400))
    heap.allocate(at(100), 50)  # the release was not seen, the address is used again
    heap.close(lambda: [at(200)])
    assert [storage.died_ns for storage in heap.storages] == [6, None, 6, None, None]


def test_claims_are_cut_to_the_storages_that_they_touch():
    heap = Heap()
    heap.present(at(100))
    heap.present(at(116))
    heap.claim("state", at(108, 16))
    assert [storage.claims for storage in heap.storages] == [{("state", 108, 116)}, {("state", 116, 124)}]


slots = st.integers(0, 15)


@given(st.lists(st.tuples(st.booleans(), slots, st.integers(1, 40)), max_size=60))
def test_live_storages_never_overlap_whatever_the_profiler_missed(events):
    heap = Heap()
    for time_ns, (allocates, slot, size) in enumerate(events):
        if allocates:
            heap.allocate(at(slot * 8, size), time_ns)
        else:
            heap.release("cpu", slot * 8, time_ns)
        live = [s.extent for s in heap.storages if s.live(time_ns)]
        covered = union((place.first, place.end) for place in live)
        assert length(covered) == sum(place.end - place.first for place in live)
        assert all(s.died_ns is None or s.born_ns is None or s.born_ns <= s.died_ns for s in heap.storages)


spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=12).map(
    lambda found: [(first, first + size) for first, size in found]
)


@given(spans, spans)
def test_union_and_intersection_are_those_of_the_points(one, other):
    def points(of):
        return {point for first, end in of for point in range(first, end)}

    left, right = union(one), union(other)
    assert points(left) == points(one)
    assert length(left) == len(points(one))
    assert points(intersection(left, right)) == points(one) & points(other)
    assert length(intersection(left, right)) == len(points(one) & points(other))


@pytest.mark.parametrize("empty", [[], [(3, 5)]])
def test_nothing_shares_nothing(empty):
    assert intersection(empty, []) == []


def test_walks_over_parts_that_end_half_way_leave_gradients_on():
    class Sharded:
        def to_local(self):
            return torch.ones(2)

    first, second = local_parts(Sharded()), local_parts(Sharded())
    next(first), next(second)
    first.close()
    second.close()
    assert torch.is_grad_enabled()
