"""``results/``: a folder a run, a folder a sweep, each under an id that sorts by time.

A run's folder holds ``spec.json``, ``rank-0.jsonl`` …, ``log/`` and, once the run is over, ``manifest.json``.
Folders may be a stranger's: nothing in them is executed, and no link is followed out of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from typing import TYPE_CHECKING, Any

from harness.claims import claim, ranks_alive, unclaimed
from harness.errors import CorruptFileError, InvalidInputError, Problem
from harness.index import RunRow, load_rows, rank_stamp, row_from_manifest, row_of, stamp, store_rows
from harness.invocation import command
from harness.manifest import MANIFEST, read_manifest, read_sealed, write_manifest
from harness.rankfile import Line, RankFile, RankWriter, read_rank_file
from harness.record import SCHEMA_VERSION, RunRecord
from harness.run_ids import ANY_ID, RUN_ID, SWEEP_ID, kind_of, match_id, new_id, without_kind
from harness.sealed import encode, seal, write_atomically
from harness.store_folder import check_readable, check_writable
from harness.summary import read_spec, summarise
from harness.sweeplog import SweepLog, SweepRecord, read_sweep_folder, write_sweep
from harness.versions import FutureVersionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from harness.index import Stamp
    from harness.record import Environment, Outcome
    from harness.spec import RunSpec

__all__ = ["Line", "RankFile", "RankWriter", "RunRow", "Store", "SweepLog", "SweepRecord", "read_rank_file"]


class Store:
    """Reads and writes one results folder.

    Args:
        root: the folder; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._locks: dict[str, int] = {}

    def check_readable(self) -> None:
        """Refuse a folder that is not there: see `harness.store_folder.check_readable`."""
        check_readable(self.root)

    def check_writable(self) -> None:
        """Make the folder and try to write in it: see `harness.store_folder.check_writable`."""
        check_writable(self.root)

    def new_run(self, spec: RunSpec) -> Path:
        """Make a run's folder and hold it for this process until `finish`, so that readers know the run is on.

        Args:
            spec: with every default resolved.

        Returns:
            The folder, named by the run's id, with ``spec.json`` and ``log/`` in it.

        Raises:
            OSError: it cannot be written.
        """
        run_id = new_id()
        with self._new_folder(run_id) as folder:
            (folder / "spec.json").write_bytes(encode(spec.model_dump()) + b"\n")
            (folder / "log").mkdir()
            lock = claim(folder)
        self._locks[run_id] = lock
        return self.root / run_id

    @contextlib.contextmanager
    def _new_folder(self, name: str) -> Iterator[Path]:
        """Show a folder to readers once what is done inside the context is complete."""
        folder = self.root / f".new-{secrets.token_hex(8)}"
        folder.mkdir(parents=True)
        try:
            yield folder
            folder.rename(self.root / name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def finish(
        self,
        run_id: str,
        outcome: Outcome | None = None,
        reason: str | None = None,
        *,
        notes: Sequence[str] = (),
        environment: Environment | None = None,
        verification: Mapping[str, JsonValue] | None = None,
    ) -> RunRecord:
        """Write a run's manifest, the last of its files, and give the run back.

        Args:
            run_id: of a run whose ranks have ended.
            outcome: as the launcher saw it; None: as the ranks wrote. ``completed`` is believed only where every
                rank wrote so.
            reason: the launcher's; None: the first rank's that failed.
            notes: what a reader should know.
            environment: for a run whose ranks wrote none.
            verification: what is proved of its optimizer.

        Raises:
            InvalidInputError: there is no such run.
            OSError: the manifest cannot be written; the name is in it.
        """
        folder = self.folder(run_id)
        record = summarise(folder, outcome, reason, notes, environment)
        if verification:
            record = record.model_copy(update={"verification": dict(verification)})
        write_manifest(folder, record)
        self.release(folder.name)
        return record

    def join_run(self, run_id: str, spec: RunSpec) -> Path:
        """Return the folder of a run that rank 0 made, made here where this node's disk does not have it.

        Raises:
            OSError: it cannot be written.
        """
        folder = self.root / run_id
        (folder / "log").mkdir(parents=True, exist_ok=True)
        if not (folder / "spec.json").exists():
            write_atomically(folder / "spec.json", encode(spec.model_dump()) + b"\n")
        return folder

    def release(self, run_id: str) -> None:
        """Stop holding a run: its next reader finishes it. Nothing happens to a run that isn't held."""
        lock = self._locks.pop(run_id, None)
        if lock is not None:
            os.close(lock)

    def folder(self, word: str) -> Path:
        """Return the folder of the run that a user's word means.

        Raises:
            InvalidInputError: none or several match.
        """
        return self.root / self.resolve(word)

    def resolve(self, word: str) -> str:
        """Return the id of the run that a user's word means: an id, a unique beginning of one, or ``latest``.

        Raises:
            InvalidInputError: none or several match.
        """
        if RUN_ID.fullmatch(word) and self._is_folder(word):
            return word
        return self._match(word, self.run_ids(), "run")

    def resolve_any(self, word: str) -> str:
        """Return the id of what a user's word means, whatever its kind: see `harness.run_ids.kind_of`.

        Args:
            word: an id, a unique beginning of one, or ``latest``, the newest of all kinds.

        Raises:
            InvalidInputError: none or several match, or there is no such store.
        """
        self.check_readable()
        return match_id(word, self.every_id(), "run, sweep, comparison or certificate")

    def every_id(self) -> list[str]:
        """Return the ids of all that the store holds, oldest first."""
        return sorted(self._ids(ANY_ID), key=without_kind)

    def document(self, name: str) -> dict[str, Any]:
        """Return what `new_document` wrote under a name.

        Raises:
            CorruptFileError: it is missing or damaged; the message names the file.
        """
        path = self.root / name / MANIFEST
        try:
            document = read_sealed(path)
        except FileNotFoundError:
            raise CorruptFileError(f"{path}: is missing, so that there is nothing to show") from None
        document.pop("schema_version", None)
        return document

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, oldest first."""
        return self._ids(RUN_ID)

    def sweep_ids(self) -> list[str]:
        """Return the ids of all sweeps, oldest first."""
        return self._ids(SWEEP_ID)

    def _ids(self, pattern: re.Pattern[str]) -> list[str]:
        try:
            with os.scandir(self.root) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _is_folder(self, name: str) -> bool:
        folder = self.root / name
        return folder.is_dir() and not folder.is_symlink()

    def read(self, word: str) -> RunRecord:
        """Return a run's record.

        Without a manifest it is made from the rank files; and where nobody works on the run any more, the manifest
        is written, if the store can be written. While the run goes on, the outcome is ``incomplete``.

        Args:
            word: as for `resolve`.

        Raises:
            InvalidInputError: none or several match.
            CorruptFileError: nothing of the run can be read.
            FutureVersionError: a newer optbench wrote it.
        """
        return self._read(self.folder(word))[0]

    def _read(self, folder: Path) -> tuple[RunRecord, bool]:
        """Return the record, and whether the run is over."""
        try:
            record = read_manifest(folder)
            return self._looked_at_again(folder, record) if record.outcome == "incomplete" else record, True
        except FileNotFoundError:
            return self._unfinished(folder)
        except FutureVersionError:
            raise
        except CorruptFileError as error:
            # What the manifest alone knew is lost, a wrong answer say: the rank files must not speak for it.
            return summarise(folder, "incomplete", f"how the run ended is unknown: {error}"), True

    def _looked_at_again(self, folder: Path, record: RunRecord) -> RunRecord:
        """Return the record of a run that was incomplete when last read, with what its rank files tell by now.

        Each node of a run may write to a disk of its own; the folders are gathered later, file by file.
        """
        try:
            found = summarise(folder)
        except (CorruptFileError, OSError):
            return record
        if found.outcome == "incomplete" and _numbers(found) == _numbers(record):
            return record
        known: dict[str, object] = {"verification": record.verification}
        if not found.environment.hardware:
            known["environment"] = record.environment
        found = found.model_copy(update=known)
        with contextlib.suppress(OSError):  # a read-only store is read all the same
            write_manifest(folder, found)
        return found

    def _unfinished(self, folder: Path) -> tuple[RunRecord, bool]:
        with unclaimed(folder) as free:
            if not free or ranks_alive(folder, read_spec(folder)):
                return summarise(folder, "incomplete", "still running"), False
            with contextlib.suppress(FileNotFoundError):  # finished since we looked
                return read_manifest(folder), True
            record = summarise(folder, notes=("its launcher ended before the run was over",))
            with contextlib.suppress(OSError):  # a read-only store is read all the same
                write_manifest(folder, record)
            return record, True

    def attempt(self, run_id: str, spec: Mapping[str, JsonValue] | None = None) -> RunRecord:
        """Return the record of a run that should be there: where it is not, ``missing`` or ``unreadable``.

        Args:
            run_id: as a sweep or a listing names it.
            spec: what was asked for, for a record that has nothing else to tell.
        """
        outcome: Outcome = "unreadable"
        try:
            if not RUN_ID.fullmatch(run_id):
                reason = "the sweep's log names it so, which is no run's id"
            elif not self._is_folder(run_id):
                is_there = os.path.lexists(self.root / run_id)
                outcome = "unreadable" if is_there else "missing"
                reason = f"{self.root / run_id} is {'not a folder' if is_there else 'gone'}"
            else:
                return self._read(self.root / run_id)[0]
        except (CorruptFileError, OSError) as error:
            reason = str(error)
        return RunRecord(run_id=run_id, spec=dict(spec or {}), outcome=outcome, reason=reason)

    def runs(self) -> list[RunRow]:
        """Return a row for every run, oldest first; one that cannot be read has ``problem`` set.

        Rows come from a cache beside the runs where their manifests have not changed since.
        """
        cached = load_rows(self.root)
        fresh: dict[str, tuple[Stamp, RunRow]] = {}
        rows = []
        for run_id in self.run_ids():
            folder, known = f"{self.root}/{run_id}", cached.get(run_id)
            seen = stamp(folder)
            if known is not None and known[1].outcome == "incomplete" and seen is not None:
                seen += rank_stamp(folder)
            row = known[1] if known is not None and known[0] == seen else self._row(run_id)
            if row.outcome == "incomplete" and (known is None or row is not known[1]):
                written = stamp(folder)
                seen = written and written + rank_stamp(folder)
            if seen is not None:
                fresh[run_id] = (seen, row)
            rows.append(row)
        if fresh != cached:
            store_rows(self.root, fresh)
        return rows

    def _row(self, run_id: str) -> RunRow:
        folder = self.root / run_id
        try:
            if (folder / MANIFEST).exists():
                row = row_from_manifest(folder)
                if row.outcome != "incomplete":
                    return row
            record, over = self._read(folder)
            row = row_of(run_id, record.model_dump())
        except (CorruptFileError, OSError) as error:
            return RunRow(run_id=run_id, problem=str(error))
        return row if over else row.model_copy(update={"outcome": None})

    def new_sweep(self, name: str, specs: Sequence[RunSpec]) -> SweepLog:
        """Make a sweep's folder and hold it for this process until the log is closed.

        Args:
            name: the user's.
            specs: in the order asked for.

        Raises:
            OSError: it cannot be written.
        """
        sweep_id = f"sweep-{new_id()}"
        with self._new_folder(sweep_id) as folder:
            write_sweep(folder, name, specs)
        return SweepLog(self.root / sweep_id)

    def new_document(self, kind: str, document: Mapping[str, object]) -> str:
        """Write one document in a folder of its own, ``KIND-ID/manifest.json``, and return the folder's name.

        Raises:
            OSError: it cannot be written.
        """
        name = f"{kind}-{new_id()}"
        with self._new_folder(name) as folder:
            write_atomically(folder / MANIFEST, seal({"schema_version": SCHEMA_VERSION, **document}) + b"\n")
        return name

    def replace_document(self, name: str, document: Mapping[str, object]) -> None:
        """Write a document anew, in one go: a reader finds the old one or the new one.

        Raises:
            OSError: it cannot be written; the old one is left.
        """
        sealed = seal({"schema_version": SCHEMA_VERSION, **document}) + b"\n"
        write_atomically(self.root / name / MANIFEST, sealed)

    def documents(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the folder's name and content of every document of a kind that can be read, the latest first.

        One that is damaged, or of a newer optbench, is left out: what it would prove is unknown.
        """
        for name in reversed(self._ids(re.compile(re.escape(kind) + "-" + RUN_ID.pattern))):
            with contextlib.suppress(CorruptFileError, OSError):
                yield name, self.document(name)

    def sweep_is_running(self, sweep_id: str) -> bool:
        """Whether a process works on a sweep now."""
        with unclaimed(self.root / sweep_id) as free:
            return not free

    def resolve_sweep(self, word: str) -> str:
        """Return the id of the sweep that a user's word means: an id, a unique beginning, or ``latest``.

        Raises:
            InvalidInputError: none or several match.
        """
        return self._match(word, self.sweep_ids(), "sweep")

    def _match(self, word: str, ids: Sequence[str], kind: str) -> str:
        self.check_readable()
        if ANY_ID.fullmatch(word) and kind_of(word) != kind and self._is_folder(word):
            remedy = f"show it: {command('show', word, results=self.root)}"
            raise InvalidInputError([Problem(word, f"is a {kind_of(word)}, not a {kind}", remedy)])
        return match_id(word, ids, kind)

    def resume_sweep(self, word: str) -> SweepLog:
        """Go on with a sweep; `pending` says with what.

        Raises:
            InvalidInputError: none or several match, or another process runs it.
            CorruptFileError: its files cannot be trusted.
            OSError: it cannot be written.
        """
        sweep_id = self.resolve_sweep(word)
        try:
            return SweepLog(self.root / sweep_id)
        except BlockingIOError as error:
            problem = Problem(sweep_id, "another process runs this sweep", "wait for it, or stop it")
            raise InvalidInputError([problem]) from error

    def read_sweep(self, word: str) -> SweepRecord:
        """Return what a sweep asked for and which runs it started.

        Raises:
            InvalidInputError: none or several match.
            CorruptFileError: naming the file and what is wrong.
            FutureVersionError: a newer optbench wrote it.
        """
        return read_sweep_folder(self.root / self.resolve_sweep(word))

    def pending(self, sweep: SweepRecord) -> list[int]:
        """Return the indexes of the specs that resuming runs: never started, incomplete, or no longer readable.

        Every other outcome stands, failures too: the same cell would most likely fail again.
        """
        return [index for index, run_id in enumerate(sweep.run_ids) if not self._stands(run_id)]

    def _stands(self, run_id: str | None) -> bool:
        if run_id is None or not RUN_ID.fullmatch(run_id) or not self._is_folder(run_id):
            return False
        try:
            return self._read(self.root / run_id)[0].outcome != "incomplete"
        except (CorruptFileError, OSError):
            return False


def _numbers(record: RunRecord) -> str:
    """Return all that a record has measured, as text: a NaN is equal to itself."""
    return record.model_dump_json(include={"metrics"})
