"""Bytes that an engine's tensors occupy, by category and dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.tracing.extents import extent, local_parts
from harness.tracing.storages import length, union

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from harness.counts.model import Number
    from harness.interfaces import Category


def distinct_bytes(tensors: Iterable[tuple[Category, Tensor]]) -> dict[str, Number]:
    """Return bytes by ``category dtype``; memory that views of one kind share counts once."""
    spans: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for category, tensor in tensors:
        for part in local_parts(tensor):
            place = extent(part)
            if place is not None:
                name = f"{category} {str(part.dtype).removeprefix('torch.')}"
                spans.setdefault(name, {}).setdefault(place.device, []).append((place.first, place.end))
    return {
        name: sum(length(union(found)) for found in by_device.values())
        for name, by_device in sorted(spans.items())
    }
