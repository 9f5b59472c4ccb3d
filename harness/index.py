"""A run in a list, and a cache of such rows that may vanish at any time.

The cache is one file with a checksum that is replaced whole: writers at the same time cost each other a reread,
never a wrong row. A row holds as long as its manifest is the same file: inode, size and modification time.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from harness.errors import CorruptFileError
from harness.manifest import MANIFEST, read_sealed
from harness.record import SCHEMA_VERSION, Outcome
from harness.sealed import number, read_bytes, write_atomically
from harness.varying import unusual

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

INDEX = ".index.json"
LAYOUT = 2

Stamp = tuple[int, ...]
"""Inode, size and modification time (ns) of a manifest; of an incomplete run also what `rank_stamp` tells."""


class RunRow(BaseModel):
    """What a list shows of a run. What the files do not tell is None."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, ser_json_inf_nan="strings")

    run_id: str
    workload: str | None = None
    size: str | None = None
    optimizer: str | None = None
    strategy: str | None = None
    precision: str | None = None
    device: str | None = None
    world_size: int | None = None
    seed: int | None = None
    steps: int | None = None
    outcome: Outcome | None = None
    """None: still running, or unreadable."""
    reason: str | None = None
    started_unix_s: float | None = None
    step_time_s: float | None = None
    train_loss: float | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Whatever else of the spec is not as by default: ``lr``, ``optimizer.weight_decay``, …"""
    problem: str | None = None
    """Why the run cannot be read, naming the file."""


class _Cache(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, ser_json_inf_nan="strings")

    layout: int
    schema_version: int
    rows: dict[str, tuple[Stamp, RunRow]]


SPEC_FIELDS = ("workload", "size", "optimizer", "strategy", "precision", "device", "world_size", "seed", "steps")
METRICS = ("step_time_s", "train_loss")


def stamp(folder: Path | str) -> Stamp | None:
    """Return what tells a run's manifest from its next one; None: there is no manifest."""
    try:
        found = os.stat(f"{folder}/{MANIFEST}", follow_symlinks=False)  # noqa: PTH116  # 10,000 times a list
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def rank_stamp(folder: Path | str) -> Stamp:
    """Return what changes when rank files are copied in later: their number, their bytes, the latest change."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.stat(follow_symlinks=False) for entry in entries if entry.name.startswith("rank-")]
    except OSError:
        return ()
    return len(found), sum(each.st_size for each in found), max((each.st_mtime_ns for each in found), default=0)


def row_of(run_id: str, document: Mapping[str, Any]) -> RunRow:
    """Return the row of a run's record, given as the document that its manifest holds.

    Raises:
        CorruptFileError: a field has the wrong type.
    """
    spec, metrics = document.get("spec"), document.get("metrics")
    try:
        spec_fields = {key: spec.get(key) for key in SPEC_FIELDS} if isinstance(spec, dict) else {}
        if document.get("outcome") == "wrong":  # its speed is no result
            metrics = None
        values = {key: number(metrics[key]["value"]) for key in METRICS if key in metrics} if metrics else {}
        return RunRow(
            run_id=run_id,
            outcome=document.get("outcome"),
            reason=document.get("reason"),
            started_unix_s=number(document.get("started_unix_s")),
            options=unusual(spec, shown=SPEC_FIELDS) if isinstance(spec, dict) else {},
            **spec_fields,
            **values,
        )
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        raise CorruptFileError(
            f"{run_id}/{MANIFEST}: is no record of a run: {str(error).splitlines()[0]}"
        ) from error


def row_from_manifest(folder: Path) -> RunRow:
    """Read the row of a finished run, without the cost of its whole record.

    Raises:
        FileNotFoundError: there is no manifest.
        CorruptFileError: naming the file and what is wrong.
    """
    return row_of(folder.name, read_sealed(folder / MANIFEST))


def load_rows(root: Path) -> dict[str, tuple[Stamp, RunRow]]:
    """Return the cached rows by run; none where the cache is missing, corrupt or of another version."""
    try:
        checksum, _, body = read_bytes(root / INDEX).partition(b"\n")
        if checksum != _checksum(body):
            return {}
        cache = _Cache.model_validate_json(body)
    except (OSError, ValueError, CorruptFileError):
        return {}
    return cache.rows if (cache.layout, cache.schema_version) == (LAYOUT, SCHEMA_VERSION) else {}


def store_rows(root: Path, rows: dict[str, tuple[Stamp, RunRow]]) -> None:
    """Replace the cache. Where that fails (a read-only store, a full disk), lists only stay slow."""
    cache = _Cache.model_construct(layout=LAYOUT, schema_version=SCHEMA_VERSION, rows=rows)
    body = cache.model_dump_json().encode()
    with contextlib.suppress(OSError):
        write_atomically(root / INDEX, _checksum(body) + b"\n" + body, durable=False)


def _checksum(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)
