"""What counts and drift say of a cell."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from harness.counts.baseline import unlike
from harness.counts.comparing import compare_counts
from harness.counts.drift import enough, findings
from harness.gating.model import Row

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from harness.counts.baseline import Entry
    from harness.counts.comparing import Change
    from harness.counts.model import Counts, RankDrift

EXCHANGES = {"collectives", "collective_bytes"}
"""Kinds of which less may be an improvement, or a gradient that ranks no longer share."""

UPDATE = "optbench gate FILE --update-baseline, if the change is meant"


def moved(before: Counts, after: Counts, ignore: Sequence[str]) -> list[Change]:
    """Return the counts that moved, less those that the user leaves out.

    Args:
        before: of the baseline, or of an earlier time.
        after: of now.
        ignore: fnmatch patterns of ``kind`` or ``kind name``.
    """
    return [change for change in compare_counts(before, after) if not _ignored(change, ignore)]


def _ignored(change: Change, ignore: Sequence[str]) -> bool:
    return any(fnmatchcase(text, each) for each in ignore for text in (change.kind, _key(change)))


def _key(change: Change) -> str:
    return f"{change.kind} {change.name}"


def judged(
    file: Path, name: str, then: Entry | None, now: Entry, again: Counts | None, ignore: Sequence[str]
) -> tuple[list[Row], list[str]]:
    """Return rows and notes of one cell's counts.

    Args:
        file: of the baseline.
        name: of the cell.
        then: what the baseline says of it; None: nothing.
        now: what it is.
        again: counted a second time, which is worth it where something moved; None: it was not.
        ignore: as for `moved`.
    """
    if then is None:
        what = f"{file} has no cell of that name: new, or renamed"
        return [_row(name, "baseline", "invalid", what, "optbench gate FILE --update-baseline adds it")], []
    problems = unlike(file, name, then, now)
    if problems:
        return [_row(name, each.where, "invalid", each.what, each.remedy) for each in problems], []
    unsteady = set() if again is None else {_key(each) for each in moved(now.counts, again, ignore)}
    rows, fewer = [], []
    for change in moved(then.counts, now.counts, ignore):
        if _key(change) in unsteady:
            remedy = f'[baseline] ignore = ["{_key(change)}"] leaves it out'
            rows.append(_row(name, str(change), "invalid", "counted twice, it was not the same", remedy))
        elif change.kind in EXCHANGES and not change.worse:
            rows.append(_row(name, str(change), "inconclusive", "is something no longer exchanged?", UPDATE))
        elif change.worse:
            told_before = any(row.verdict == "regressed" for row in rows)
            rows.append(_row(name, str(change), "regressed", "", None if told_before else UPDATE))
        else:
            fewer.append(str(change))
    notes = [f"{name}: less than the baseline: {each}" for each in fewer]
    if fewer:
        notes.append(f"{name}: --update-baseline keeps what was saved")
    left_out = [str(each) for each in moved(then.counts, now.counts, ()) if _ignored(each, ignore)]
    notes += [f"{name}: left out on request: {each}" for each in left_out]
    if not rows:
        size = sum(len(each) for each in now.counts.of_rank(0).values())
        rows.append(_row(name, "counts", "passed", f"{size} counts, none above the baseline"))
    return rows, notes


def absent(file: Path, then: Mapping[str, Entry], names: Collection[str]) -> list[Row]:
    """Return a row for each cell of the baseline that the gate no longer has: it was removed, or renamed."""
    remedy = "name it as before, or optbench gate FILE --update-baseline"
    return [
        _row(name, "baseline", "invalid", f"{file} has this cell, the gate's file does not", remedy)
        for name in then
        if name not in names
    ]


def drifted(name: str, drift: Sequence[RankDrift]) -> list[Row]:
    """Return the rows of one cell's long run."""
    if not enough(drift):
        what = "the long run was too short to tell growth from chance"
        return [
            Row(axis="drift", cell=name, what="steps", verdict="invalid", detail=what, remedy="drift_steps = 300")
        ]
    rows = [
        Row(
            axis="drift",
            cell=name,
            what=str(each),
            verdict="regressed",
            detail=f"{each.kind} grow from step to step",
        )
        for each in findings(drift)
    ]
    steps = drift[0].samples[-1].step
    fine = Row(axis="drift", cell=name, what="drift", verdict="passed", detail=f"nothing grows over {steps} steps")
    return rows or [fine]


def _row(cell: str, what: str, verdict: str, detail: str, remedy: str | None = None) -> Row:
    return Row.model_validate(
        {"axis": "counts", "cell": cell, "what": what, "verdict": verdict, "detail": detail, "remedy": remedy}
    )
