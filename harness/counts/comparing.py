"""Which counts moved between a baseline and now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from harness.counts.model import MEANING, Kind, Number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.counts.model import Counts

FIRST = 10
"""Changes of one kind on one cell that are worth reading before the rest."""


class Change(BaseModel):
    """One count that moved."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: Kind
    name: str
    """Of the operator, collective, package, …"""
    before: Number
    after: Number
    ranks: tuple[int, ...] = ()
    """On which it moved so; empty: on every one."""

    @property
    def worse(self) -> bool:
        """More of it than before: less is an improvement, to be kept with a new baseline."""
        return self.after > self.before

    def __str__(self) -> str:
        before_words, after_words = MEANING[self.kind]
        where = f" on rank {', '.join(map(str, self.ranks))}" if self.ranks else ""
        words = f"{before_words} {self.name} {shown(self.before)} -> {shown(self.after)}{after_words}{where}"
        return words.strip()


def shown(number: float) -> str:
    """Write a count as a person would."""
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def compare_counts(before: Counts, after: Counts) -> list[Change]:
    """Return every count that is not what it was, by kind, those that rose first.

    A kind that only one side knows is no change.

    Args:
        before: of the baseline.
        after: of now; of as many ranks.
    """
    found: dict[tuple[Kind, str, Number, Number], list[int]] = {}
    for rank in range(after.world_size):
        for moved in _moved(before, after, rank):
            found.setdefault(moved, []).append(rank)
    changes = [
        Change(kind=kind, name=name, before=was, after=now, ranks=() if len(on) == after.world_size else tuple(on))
        for (kind, name, was, now), on in found.items()
    ]
    kinds = list(MEANING)
    return sorted(changes, key=lambda each: (not each.worse, kinds.index(each.kind), each.name))


def _moved(before: Counts, after: Counts, rank: int) -> Iterator[tuple[Kind, str, Number, Number]]:
    old, new = before.of_rank(rank), after.of_rank(rank)
    for kind in MEANING:
        if kind in old and kind in new:
            for name in sorted({*old[kind], *new[kind]}):
                was, now = old[kind].get(name, 0), new[kind].get(name, 0)
                if was != now:
                    yield kind, name, was, now
