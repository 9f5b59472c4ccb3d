"""A sweep's folder: what was asked for, in order, and which run was started for each cell."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pydantic import ValidationError

from harness.claims import claim
from harness.errors import CorruptFileError
from harness.manifest import read_sealed
from harness.rankfile import append_lines, read_rank_file
from harness.record import SCHEMA_VERSION
from harness.sealed import seal, write_atomically
from harness.spec import RunSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DOCUMENT = "sweep.json"
LOG = "runs.jsonl"


@dataclass(frozen=True)
class SweepRecord:
    """A sweep as its folder tells it.

    Attributes:
        sweep_id: the folder's name.
        name: the user's.
        specs: in the order asked for.
        run_ids: the last run started for each spec; None: none yet.
        started: each spec as its last run was started, with every default resolved; as asked for, where none was.
    """

    sweep_id: str
    name: str
    specs: tuple[RunSpec, ...]
    run_ids: tuple[str | None, ...]
    started: tuple[RunSpec, ...]


def write_sweep(folder: Path, name: str, specs: Sequence[RunSpec]) -> None:
    """Write what was asked for. The folder's name is the sweep's id only once it is in its place.

    Raises:
        OSError: with the file's name.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": "sweep",
        "name": name,
        "specs": [spec.model_dump() for spec in specs],
    }
    write_atomically(folder / DOCUMENT, seal(document) + b"\n")


def read_sweep_folder(folder: Path) -> SweepRecord:
    """Read a sweep.

    Raises:
        CorruptFileError: naming the file and what is wrong.
        FutureVersionError: a newer optbench wrote it.
    """
    path, log = folder / DOCUMENT, folder / LOG
    try:
        document = read_sealed(path)
        specs = tuple(RunSpec.model_validate(spec) for spec in document["specs"])
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path}: is missing: the folder holds no sweep") from error
    except (KeyError, TypeError, ValidationError) as error:
        raise CorruptFileError(f"{path}: is no sweep: {str(error).splitlines()[0]}") from error
    run_ids: list[str | None] = [None] * len(specs)
    started = list(specs)
    lines = read_rank_file(log).of_kind("run") if log.exists() else []
    for line in lines:
        index, run_id = line.fields.get("index"), line.fields.get("run_id")
        if type(index) is not int or not 0 <= index < len(specs) or not isinstance(run_id, str):
            raise CorruptFileError(f"{log}:{line.seq + 1}: names no cell of the sweep")
        run_ids[index] = run_id
        with contextlib.suppress(ValidationError):  # an older log tells no spec
            started[index] = RunSpec.model_validate(line.fields.get("spec"))
    return SweepRecord(folder.name, str(document.get("name")), specs, tuple(run_ids), tuple(started))


class SweepLog:
    """A sweep that this process runs; its lock keeps another process from running it too.

    Attributes:
        sweep_id: the folder's name.
        folder: the sweep's.
    """

    def __init__(self, folder: Path) -> None:
        """Take over a sweep's folder.

        Raises:
            BlockingIOError: another process runs it.
            CorruptFileError: its log cannot be trusted.
            OSError: it cannot be written.
        """
        self.folder = folder
        self.sweep_id = folder.name
        self._lock: int | None = claim(folder)
        try:
            self._writer, _ = append_lines(folder / LOG)
        except BaseException:
            self._release()
            raise

    def started(self, index: int, run_id: str, spec: RunSpec | None = None) -> None:
        """Note that a run was made for the spec of that index (from 0); of several, the last counts.

        Args:
            index: of the spec.
            run_id: of the run.
            spec: with every default resolved, for readers who find the run's folder gone; None: as asked for.

        Raises:
            OSError: with the file's name.
        """
        resolved = {} if spec is None else {"spec": spec.model_dump()}
        self._writer.write("run", index=index, run_id=run_id, **resolved)

    def close(self) -> None:
        """Give the sweep back; a second call does nothing."""
        self._writer.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
