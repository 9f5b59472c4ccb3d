"""From allocations and frees to storages with lifetimes: what memory was live when, and what laid claim to it."""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from harness.interfaces import Phase

Claimant = Literal["parameters", "gradients", "master", "state", "buffers", "communication", "data"]
"""Who can say of a tensor that it is theirs: the engine, and the pass for what it fed in."""


class Extent(NamedTuple):
    """Addresses on one device: the first byte, and the one past the last."""

    device: str
    first: int
    end: int


@dataclass(eq=False)
class Storage:
    """One piece of memory from its allocation to its release.

    Attributes:
        extent: where it lies.
        born_ns: when it was allocated; None: before the trace.
        died_ns: when it was released; None: never, as far as the trace went.
        claims: parts of it that somebody said were theirs while it was live.
        used_ns: when a collective read or wrote it.
        touched_ns: when the last operator that read it was done; None: none was seen.
        touched_in: phases in which an operator read or wrote it.
    """

    extent: Extent
    born_ns: int | None
    died_ns: int | None = None
    claims: set[tuple[Claimant, int, int]] = field(default_factory=set)
    used_ns: list[int] = field(default_factory=list)
    touched_ns: int | None = None
    touched_in: set[Phase] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.extent.end - self.extent.first

    def live(self, time_ns: int) -> bool:
        """Whether it existed at an instant."""
        return (self.born_ns is None or self.born_ns <= time_ns) and (
            self.died_ns is None or self.died_ns > time_ns
        )


class Heap:
    """Replays what a profiler saw, in order of time.

    Profilers miss releases: those of memory that was allocated before the trace, those of threads that they do
    not follow. So an allocation ends whatever was believed to lie at its addresses. The threads of a process group
    drop what a collective worked on when they get round to it: such memory ends with its last use.
    """

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self._live: dict[str, list[tuple[int, int, Storage]]] = {}  # by address; the number breaks ties
        self._sighted: set[Storage] = set()

    def present(self, extent: Extent) -> Storage:
        """Take note of memory that was there before the trace; memory that is known already is left as it is."""
        return self.at(extent) or self._add(extent, None)

    def allocate(self, extent: Extent, time_ns: int) -> None:
        """Take note of an allocation."""
        for gone in self._overlapping(extent):
            self._end(gone, gone.touched_ns if gone.used_ns and gone.touched_ns else time_ns)
        if extent.end > extent.first:
            self._add(extent, time_ns)

    def release(self, device: str, address: int, time_ns: int) -> None:
        """Take note of a release; one of unknown memory is of no interest."""
        found = self.at(Extent(device, address, address + 1))
        if found is not None and found.extent.first == address:
            self._end(found, time_ns)

    def expire(self, storage: Storage, time_ns: int) -> None:
        """End a storage that was seen to be gone, unless its end is known already."""
        if storage.died_ns is None:
            self._end(storage, time_ns)

    def claim(self, who: Claimant, extent: Extent) -> None:
        """Take note that somebody calls this live memory theirs."""
        for storage in self._overlapping(extent):
            first, end = max(extent.first, storage.extent.first), min(extent.end, storage.extent.end)
            storage.claims.add((who, first, end))

    def close(self, alive: Callable[[], Iterable[Extent]]) -> None:
        """End what collectives used, nobody claims and is not among the memory seen alive after the trace.

        Args:
            alive: finds that memory, which takes a while; called where there is something to ask.
        """
        doubtful = [
            storage
            for storage in self.storages
            if storage.used_ns and not storage.claims and storage.died_ns is None and storage.born_ns is not None
        ]
        seen = {(place.device, place.first) for place in alive()} if doubtful else set()
        for storage in doubtful:
            if (storage.extent.device, storage.extent.first) not in seen:
                self._end(storage, storage.touched_ns or storage.used_ns[-1])

    def sight(self, extent: Extent, time_ns: int, end_ns: int) -> Storage:
        """Return the storage that an operator read, whose start and least size are known.

        One whose allocation was never seen is taken for older than the trace, unless the trace saw something else
        at its addresses before.
        """
        found = self.at(extent)
        if found is None:
            reused = any(_overlap(each.extent, extent) for each in self.storages)
            found = self._add(extent, time_ns if reused else None)
            self._sighted.add(found)
        elif found in self._sighted and extent.first == found.extent.first and extent.end > found.extent.end:
            found.extent = extent  # a larger view of it
        found.touched_ns = max(found.touched_ns or 0, end_ns)
        return found

    def at(self, extent: Extent) -> Storage | None:
        """Return the live storage that holds the extent's first byte, or None."""
        live = self._live.get(extent.device, [])
        index = bisect_right(live, extent.first, key=lambda entry: entry[0]) - 1
        if index >= 0 and live[index][2].extent.end > extent.first:
            return live[index][2]
        return None

    def _overlapping(self, extent: Extent) -> list[Storage]:
        live = self._live.get(extent.device, [])
        index = max(0, bisect_right(live, extent.first, key=lambda entry: entry[0]) - 1)
        found = []
        while index < len(live) and live[index][0] < extent.end:
            if _overlap(live[index][2].extent, extent):
                found.append(live[index][2])
            index += 1
        return found

    def _add(self, extent: Extent, born_ns: int | None) -> Storage:
        storage = Storage(extent, born_ns)
        insort(self._live.setdefault(extent.device, []), (extent.first, len(self.storages), storage))
        self.storages.append(storage)
        return storage

    def _end(self, storage: Storage, time_ns: int) -> None:
        storage.died_ns = time_ns
        live = self._live[storage.extent.device]
        index = bisect_right(live, storage.extent.first, key=lambda entry: entry[0]) - 1
        del live[index]


def _overlap(one: Extent, other: Extent) -> bool:
    return one.device == other.device and one.first < other.end and other.first < one.end


def union(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the same addresses (or instants) as disjoint spans in ascending order."""
    merged: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


def length(spans: Iterable[tuple[int, int]]) -> int:
    """Return what disjoint spans cover."""
    return sum(end - first for first, end in spans)


def intersection(one: Iterable[tuple[int, int]], other: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what two lists of disjoint, ascending spans share."""
    left, right = list(one), list(other)
    shared, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        first, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if first < end:
            shared.append((first, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return shared
