"""What an optimizer holds beside what its engine has claimed already."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from harness.tracing.extents import extent, local_parts
from harness.tracing.reachable import reachable
from harness.tracing.storages import union

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from torch import Tensor

    from harness.tracing.storages import Extent


def kept(
    optimizer: object, claimed: Iterable[Tensor] = (), beyond: Collection[object] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that is reachable from an optimizer and holds memory, with the name it is kept under.

    Args:
        optimizer: the outermost; optimizers, modules and containers inside of it are entered.
        claimed: what is something else than state (parameters, gradients, buffers): memory within is left out.
        beyond: objects that are not entered, such as the modules of the model.
    """
    taken = _Memory(claimed)
    for name, tensor in reachable([optimizer], beyond):
        if not taken.has(tensor):
            yield name, tensor


class _Memory:
    """Addresses that tensors cover, by device."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        spans: dict[str, list[tuple[int, int]]] = {}
        for tensor in tensors:
            for place in _places(tensor):
                spans.setdefault(place.device, []).append((place.first, place.end))
        self._spans = {device: union(found) for device, found in spans.items()}

    def has(self, tensor: Tensor) -> bool:
        """Whether all of a tensor's memory is covered; one without memory is."""
        return all(self._covers(place) for place in _places(tensor))

    def _covers(self, place: Extent) -> bool:
        spans = self._spans.get(place.device, [])
        index = bisect_right(spans, place.first, key=lambda span: span[0]) - 1
        return index >= 0 and place.end <= spans[index][1]


def _places(tensor: Tensor) -> Iterator[Extent]:
    for part in local_parts(tensor):
        place = extent(part)
        if place is not None:
            yield place
