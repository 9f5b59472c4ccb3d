"""Which part of each parameter a rank holds: ranks that hold the same must hold the same bits, and all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Span:
    """Consecutive elements of one parameter on one rank.

    Attributes:
        name: of the parameter.
        start: number of the first element, from 0.
        count: of elements; 0: the rank holds none of it.
        total: elements of the whole parameter.
        bits: fingerprint of them.
    """

    name: str
    start: int
    count: int
    total: int
    bits: int


def uncovered(ranks: Sequence[Iterable[Span]]) -> str | None:
    """Say which parameter's elements are held by no rank, or by ranks that overlap in part; None: none.

    Equal spans on several ranks are replicas.
    """
    held: dict[str, set[tuple[int, int]]] = {}
    totals: dict[str, int] = {}
    for spans in ranks:
        for span in spans:
            totals.setdefault(span.name, span.total)
            if totals[span.name] != span.total:
                return f"{span.name} has {span.total} elements on one rank and {totals[span.name]} on another"
            found = held.setdefault(span.name, set())
            if span.count:
                found.add((span.start, span.start + span.count))
    for name, parts in held.items():
        at = 0
        for start, end in sorted(parts):
            if start != at:
                what = "are held by no rank" if start > at else "are held by ranks with different shards"
                return f"elements {min(at, start)} to {max(at, start) - 1} of {name} {what}"
            at = end
        if at != totals[name]:
            return f"{name} has {totals[name]} elements, of which the ranks hold {at}"
    return None


def differing(ranks: Sequence[Iterable[Span]]) -> tuple[str, int, int] | None:
    """Return the first parameter of which two ranks hold the same elements with other bits, and those ranks."""
    first: dict[tuple[str, int, int], tuple[int, int]] = {}
    for rank, spans in enumerate(ranks):
        for span in spans:
            if span.count:
                other, bits = first.setdefault((span.name, span.start, span.count), (rank, span.bits))
                if bits != span.bits:
                    return span.name, other, rank
    return None


def are_replicated(ranks: Sequence[Iterable[Span]]) -> bool:
    """Say whether any elements are held by more than one rank."""
    seen: set[tuple[str, int]] = set()
    for spans in ranks:
        keys = {(span.name, span.start) for span in spans if span.count}
        if keys & seen:
            return True
        seen |= keys
    return False
