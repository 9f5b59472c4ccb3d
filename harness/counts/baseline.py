"""The baseline of counts: a small JSON file that a user commits, one count a line."""

from __future__ import annotations

import json
import tempfile
import zlib
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from harness import sealed
from harness.counts.model import Counts  # noqa: TC001  # pydantic evaluates it
from harness.errors import CorruptFileError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.spec import RunSpec

KIND = "optbench counts"
BASELINE_VERSION = 1
"""2026-11: the first."""

NOT_COUNTED = {"timeout_s", "collectors", "turn_steps", "warmup_steps", "evaluate_every", "data"}
"""Fields of a spec that no count depends on; a data file may lie elsewhere on each machine."""

UPDATE = "optbench gate FILE --update-baseline writes it anew"


class Entry(BaseModel):
    """What a baseline says of one cell."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    spec: dict[str, JsonValue]
    counts: Counts


def identity(spec: RunSpec) -> dict[str, JsonValue]:
    """Return what of a resolved spec its counts depend on."""
    fields: dict[str, JsonValue] = spec.model_dump(mode="json", exclude=NOT_COUNTED, exclude_none=True)
    if spec.schedule == "constant":
        del fields["steps"]
    return {key: value for key, value in fields.items() if value != {}}


def entry(spec: RunSpec, counts: Counts) -> Entry:
    """Return what a baseline keeps of a cell."""
    return Entry(spec=identity(spec), counts=counts)


def write(path: Path, cells: Mapping[str, Entry]) -> None:
    """Write a baseline so that a reader finds the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    rows = {}
    for name, each in sorted(cells.items()):
        body = each.model_dump(mode="json")
        rows[name] = {**body, "crc32": _checksum(body)}
    document = {"kind": KIND, "version": BASELINE_VERSION, "cells": rows}
    sealed.write_atomically(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def read(path: Path) -> dict[str, Entry]:
    """Return a baseline's cells by name.

    Raises:
        CorruptFileError: the file is missing, damaged or newer than this version can read; names file and remedy.
    """
    try:
        document = sealed.parse(path.read_bytes())
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path}: there is no such baseline; {UPDATE}") from error
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CorruptFileError(
            f"{path}: is no JSON document: {error}; restore it from version control, or {UPDATE}"
        ) from error
    version, kind = document.get("version"), document.get("kind")
    if kind != KIND:
        raise CorruptFileError(
            f"{path}: is no baseline of counts (kind = {kind!r}); name another file, or {UPDATE}"
        )
    if type(version) is not int or not 1 <= version <= BASELINE_VERSION:
        raise CorruptFileError(
            f"{path}: has version {version!r}, this optbench reads up to {BASELINE_VERSION}; "
            "install a newer optbench"
        )
    cells = document.get("cells")
    if not isinstance(cells, dict):
        raise CorruptFileError(f"{path}: holds no cells; restore it from version control, or {UPDATE}")
    return {name: _read_entry(path, name, fields) for name, fields in cells.items()}


def may_replace(path: Path) -> bool:
    """Say whether a new baseline may take the place of what is there: nothing, a baseline, or a damaged one.

    Raises:
        OSError: it cannot be read, or its folder is missing or cannot be written to.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent):
        data = path.read_bytes() if path.exists() else b""
    try:
        document = sealed.parse(data)
    except ValueError:
        return not data.strip() or KIND.encode() in data
    version = document.get("version")
    return document.get("kind") == KIND and not (isinstance(version, int) and version > BASELINE_VERSION)


def _read_entry(path: Path, name: str, fields: Any) -> Entry:
    if isinstance(fields, dict):
        body = {key: value for key, value in fields.items() if key != "crc32"}
        if fields.get("crc32") == _checksum(body):
            try:
                return Entry.model_validate_json(json.dumps(body))
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(each) for each in first["loc"])
                raise CorruptFileError(f"{path}: cells.{name}.{place}: {first['msg']}; {UPDATE}") from error
    raise CorruptFileError(
        f"{path}: cells.{name}: its checksum does not match its content: damaged, or edited by hand; {UPDATE}"
    )


def _checksum(body: Mapping[str, Any]) -> str:
    """Return a checksum that neither the order of keys nor white space changes."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return f"{zlib.crc32(text.encode()):08x}"


def unlike(path: Path, name: str, then: Entry, now: Entry) -> list[Problem]:
    """Return why a cell's counts cannot be compared with the baseline's; empty: they can."""
    where = f"{path}: cells.{name}"
    problems = [
        Problem(
            f"{where}.spec.{key}", f"the baseline has {then.spec.get(key)!r}, now it is {now.spec.get(key)!r}", fix
        )
        for key in sorted({*then.spec, *now.spec})
        if then.spec.get(key) != now.spec.get(key)
        for fix in ["change the cell back, or run optbench gate FILE --update-baseline"]
    ]
    for field in ("torch", "device", "world_size"):
        was, found = getattr(then.counts, field), getattr(now.counts, field)
        if was != found:
            fix = f"use the baseline's, or keep a baseline for each: {UPDATE}"
            problems.append(
                Problem(f"{where}.{field}", f"the baseline was counted with {was}, this with {found}", fix)
            )
    return problems
