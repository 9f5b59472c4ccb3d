"""What ``optbench gate --update-baseline`` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.counts import baseline
from harness.errors import CorruptFileError, OptbenchError
from harness.gating import counted
from harness.verbs.gating import measured

if TYPE_CHECKING:
    from pathlib import Path

    from harness.counts.baseline import Entry
    from harness.verbs.gating import Session


def update(session: Session) -> tuple[list[str], list[str]]:
    """Count every cell twice and write the baseline; return what moved since the old one, and notes.

    Raises:
        OptbenchError: a cell cannot run or be counted, or was not the same twice; the old file is left as it is.
        OSError: it cannot be written.
    """
    file, ignore = session.file.baseline.counts, session.file.baseline.ignore
    if file is None:
        raise OptbenchError('there is no baseline to update; add [baseline] counts = "counts.json"')
    for each, cell in zip(session.file.cells, session.plan.cells, strict=True):
        if cell.unsupported is not None:
            raise OptbenchError(f"{each.name}: cannot run here: {cell.unsupported}; nothing was written")
    old = _replaced(file)
    entries: dict[str, Entry] = {}
    for name, cell in session.counted():
        first, second = (measured(session, f"{name}{which}", cell, 0).counts for which in ("", ", again"))
        unsteady = counted.moved(first, second, ignore)
        if unsteady:
            raise OptbenchError(
                f"{name}: counted twice, not the same: {unsteady[0]}; "
                f'[baseline] ignore = ["{unsteady[0].kind} {unsteady[0].name}"] leaves it out; nothing was written'
            )
        entries[name] = baseline.entry(cell.spec, first)
    baseline.write(file, entries)
    return _told(old, entries), [f"{name}: no longer in the gate" for name in old if name not in entries]


def _replaced(file: Path) -> dict[str, Entry]:
    """Return what the file holds that is to be replaced; nothing of it where it is missing or damaged.

    Raises:
        OptbenchError: it is something else than a baseline, or a newer one, or it could not be written.
    """
    if not baseline.may_replace(file):
        raise OptbenchError(
            f"{file}: is no baseline of counts, or a newer optbench's; nothing was written: name another"
        )
    try:
        return baseline.read(file)
    except CorruptFileError:
        return {}


def _told(old: dict[str, Entry], new: dict[str, Entry]) -> list[str]:
    told = []
    for name, entry in new.items():
        if name not in old:
            told.append(f"{name}: new")
        elif old[name].counts.world_size == entry.counts.world_size:
            told += [f"{name}: {each}" for each in counted.moved(old[name].counts, entry.counts, ())]
        else:
            told.append(f"{name}: {old[name].counts.world_size} -> {entry.counts.world_size} ranks")
    return told
