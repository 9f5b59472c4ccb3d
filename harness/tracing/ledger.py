"""The ledger: which category every live byte belongs to, and how much of each there was at the peak."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from harness.interfaces import Phase
from harness.tracing.storages import length, union

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from harness.tracing.storages import Claimant, Storage

LedgerCategory = Literal[
    "parameters", "gradients", "master", "state", "buffers", "communication", "data",
    "activations", "workspace", "temporaries", "unattributed",
]  # fmt: skip
"""What a live byte is.

The first six are the engine's own words for its tensors; ``communication`` is also what collectives read and
write. ``data``: batches and what the workload keeps. The next three are told by their lifetime, which lies within
one step: ``activations`` were allocated in a forward pass and still there when its backward began; ``workspace``
is all else that forward and backward, or work that the engine cannot separate, allocated and released;
``temporaries`` were allocated and released by clipping and update (foreach's copies). ``unattributed`` outlives
its step, and nobody claims it.
"""

CATEGORIES: tuple[LedgerCategory, ...] = get_args(LedgerCategory)
CLAIMS: tuple[Claimant, ...] = CATEGORIES[:7]  # type: ignore[assignment]  # the claimants are the first categories
"""Of memory that several claim, the first named in this order counts."""

UPDATING = {Phase.OPTIMIZER, Phase.WORK}
"""Phases in which the optimizer updates."""

LEAST_UNTOUCHED = 4096
"""Bytes. Less is what a run keeps for itself: losses, norms."""

ALLOCATION_UNIT = 512
"""Bytes to which CUDA's caching allocator rounds: a rest smaller than that belongs to the storage's claimant."""


@dataclass(frozen=True)
class Mark:
    """The instant at which a phase began."""

    time_ns: int
    phase: Phase
    step: int


@dataclass(frozen=True)
class Ledger:
    """What one step held on one kind of memory.

    Attributes:
        peak_bytes: the largest sum of live storages.
        at_peak: bytes of each category at that instant; they add up to ``peak_bytes``.
        largest: each category's own largest sum, whenever it was. None: the engine marks no such phase.
        unattributed_growth_bytes: unattributed bytes at the step's end above those at the end of the one before.
    """

    peak_bytes: int
    at_peak: dict[LedgerCategory, int]
    largest: dict[LedgerCategory, int | None]
    unattributed_growth_bytes: int


class Timetable:
    """Which step and phase an instant lies in."""

    def __init__(self, marks: Sequence[Mark]) -> None:
        self._marks = sorted(marks, key=lambda mark: mark.time_ns)
        self._ends = {mark.step: mark.time_ns for mark in marks if mark.phase is Phase.END}
        self.last_step = max(self._ends)

    def end(self, step: int) -> int:
        """Return when a step was over."""
        return self._ends[step]

    def begin(self, step: int) -> int:
        """Return when a step began."""
        return next(mark.time_ns for mark in self._marks if mark.step == step)

    def at(self, time_ns: int) -> Mark | None:
        """Return the mark that an instant comes after; None: before the first."""
        index = bisect_right(self._marks, time_ns, key=lambda mark: mark.time_ns) - 1
        return self._marks[index] if index >= 0 else None

    def phases(self, step: int) -> set[Phase]:
        """Return the phases that a step was seen to have."""
        return {mark.phase for mark in self._marks if mark.step == step}

    def next_backward(self, time_ns: int, step: int) -> int | None:
        """Return when the step's next backward pass began, or None."""
        later = (m.time_ns for m in self._marks if m.step == step and m.phase is Phase.BACKWARD)
        return next((time for time in later if time >= time_ns), None)


def attribute(storage: Storage, timetable: Timetable) -> dict[LedgerCategory, int]:
    """Return the bytes of a storage by category; they add up to its size."""
    found: dict[LedgerCategory, int] = {}
    covered: list[tuple[int, int]] = []
    for claimant in CLAIMS:
        spans = [(first, end) for who, first, end in storage.claims if who == claimant]
        if spans:
            before = length(covered)
            covered = union([*covered, *spans])
            if length(covered) > before:
                found[claimant] = length(covered) - before
    rest = storage.size - length(covered)
    if rest:
        rounding = bool(found) and rest < ALLOCATION_UNIT
        category = max(found, key=lambda each: found[each]) if rounding else _by_lifetime(storage, timetable)
        found[category] = found.get(category, 0) + rest
    return found


def _by_lifetime(storage: Storage, timetable: Timetable) -> LedgerCategory:
    if _communicates(storage, timetable):
        return "communication"
    born = timetable.at(storage.born_ns) if storage.born_ns is not None else None
    if storage.born_ns is None or born is None or born.phase is Phase.END:
        return "unattributed"
    if storage.died_ns is None or storage.died_ns > timetable.end(born.step):
        return "unattributed"
    if born.phase is Phase.OPTIMIZER:
        return "temporaries"
    if born.phase is Phase.DATA:
        return "data"
    backward = timetable.next_backward(storage.born_ns, born.step)
    kept = born.phase is Phase.FORWARD and backward is not None and storage.died_ns > backward
    return "activations" if kept else "workspace"


def _communicates(storage: Storage, timetable: Timetable) -> bool:
    """Tell a buffer of collectives from a tensor that merely went through one and was kept.

    A buffer is released by the end of the step after its last use, or used until the last step, again and again.
    """
    steps = {mark.step for mark in map(timetable.at, storage.used_ns) if mark is not None}
    if not steps:
        return False
    last = max(steps)
    if storage.died_ns is not None and storage.died_ns <= timetable.end(min(last + 1, timetable.last_step)):
        return True
    return last == timetable.last_step and (storage.born_ns is None or len(steps) > 1)


def balance(
    storages: Iterable[Storage], marks: Sequence[Mark], step: int, belongs: Callable[[str], bool]
) -> Ledger:
    """Return the ledger of one step.

    Args:
        storages: with lifetimes and claims.
        marks: of the traced steps; the step before and the one after must be among them.
        step: the number of the step that counts.
        belongs: of a device, whether its memory counts.
    """
    timetable = Timetable(marks)
    start, end = timetable.begin(step), timetable.end(step)
    changes: list[tuple[int, int, int, dict[LedgerCategory, int]]] = []
    now = dict.fromkeys(CATEGORIES, 0)
    growth = 0
    for number, storage in enumerate(storages):
        if not belongs(storage.extent.device):
            continue
        held = attribute(storage, timetable)
        before_ns = timetable.end(step - 1)
        growth += held.get("unattributed", 0) * (storage.live(end) - storage.live(before_ns))
        if storage.live(start):
            _add(now, held, 1)
        elif storage.born_ns is not None and start < storage.born_ns <= end:
            changes.append((storage.born_ns, number, 1, held))
        if storage.died_ns is not None and start < storage.died_ns <= end:
            changes.append((storage.died_ns, number, -1, held))
    peak, largest = dict(now), dict(now)
    # Releases first where the clock cannot tell: an allocation at the same instant may reuse what they gave back.
    for _, _, sign, held in sorted(changes, key=lambda change: (change[0], change[2], change[1])):
        _add(now, held, sign)
        for category in held:
            largest[category] = max(largest[category], now[category])
        if sum(now.values()) > sum(peak.values()):
            peak = dict(now)
    return Ledger(sum(peak.values()), peak, _seen(largest, timetable.phases(step)), growth)


def unclaimed(storages: Iterable[Storage], marks: Sequence[Mark], step: int) -> int:
    """Return the bytes that outlive a step, that nobody claims, and that may well be the optimizer's.

    They are the optimizer's where an operator of its update reads or writes them. What no operator of the traced
    steps touches may be (slow weights, snapshots), from `LEAST_UNTOUCHED` bytes on. What operators of other phases
    alone touch is not.

    Args:
        storages: with lifetimes and claims.
        marks: of the traced steps.
        step: the number of the step at whose end they are live.
    """
    timetable = Timetable(marks)
    end = timetable.end(step)
    stepped = untouched = 0
    for storage in storages:
        if storage.live(end):
            held = attribute(storage, timetable).get("unattributed", 0)
            if storage.touched_in & UPDATING:
                stepped += held
            elif not storage.touched_in:
                untouched += held
    return stepped + (untouched if untouched >= LEAST_UNTOUCHED else 0)


def _add(total: dict[LedgerCategory, int], held: dict[LedgerCategory, int], sign: int) -> None:
    for category, size in held.items():
        total[category] += sign * size


def _seen(largest: dict[LedgerCategory, int], phases: set[Phase]) -> dict[LedgerCategory, int | None]:
    """Leave out what cannot be told without the engine's marks."""
    known: dict[LedgerCategory, int | None] = dict(largest)
    if Phase.OPTIMIZER not in phases:
        known["temporaries"] = None
    if Phase.BACKWARD not in phases:
        known["activations"] = None
    return known
