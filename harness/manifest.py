"""``manifest.json``: a run's record, sealed. Its presence says that the run is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from harness.errors import CorruptFileError
from harness.record import RunRecord
from harness.sealed import looks_sealed, parse, read_bytes, seal, unseal, write_atomically
from harness.versions import check_version, upgrade

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = "manifest.json"


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a sealed document of any version up to today's.

    Raises:
        FileNotFoundError: there is none.
        CorruptFileError: naming the file and what is wrong.
    """
    try:
        data = read_bytes(path).removesuffix(b"\n")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        document = unseal(data)
    except ValueError as error:
        _check_future(data, path)
        raise CorruptFileError(f"{path}: is corrupt: {error}") from error
    return upgrade(document, path)


def _check_future(data: bytes, path: Path) -> None:
    """Tell a newer file, sealed in another way, from a broken one, whose version may be what is broken."""
    if looks_sealed(data):
        return
    try:
        document = parse(data)
    except ValueError:
        return
    if isinstance(document.get("schema_version"), int):
        check_version(document, path)


def read_manifest(folder: Path) -> RunRecord:
    """Read a finished run's record.

    Raises:
        FileNotFoundError: the run is not over, or nobody wrote its manifest.
        CorruptFileError: naming the file and what is wrong.
    """
    path = folder / MANIFEST
    document = read_sealed(path)
    try:
        record = RunRecord.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CorruptFileError(f"{path}: {place}: {first['msg']}") from error
    if record.run_id != folder.name:
        raise CorruptFileError(f"{path}: is the record of {record.run_id}, not of {folder.name}")
    return record


def write_manifest(folder: Path, record: RunRecord) -> None:
    """Write a run's record, whole or not at all.

    Raises:
        OSError: with the file's name.
    """
    write_atomically(folder / MANIFEST, seal(record.model_dump()) + b"\n")
