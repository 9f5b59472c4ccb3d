"""JSON with a checksum: how lines and documents of a results folder are put on disk and read back.

A sealed document is one JSON object whose last key is ``crc32``: eight hexadecimal digits over the exact bytes of
the object without that key. JSON has no NaN or infinity: they are stored as strings.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import stat
import zlib
from typing import TYPE_CHECKING, Any

import pydantic_core

from harness.errors import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How a float that JSON cannot hold is written."""

_SEAL_LENGTH = len(',"crc32":"00000000"}')


def encode(document: Mapping[str, object]) -> bytes:
    """Return compact ASCII JSON of ``document``; non-finite floats become strings.

    Raises:
        TypeError: for a value that JSON does not know.
    """
    try:
        text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_storable(document), separators=(",", ":"), allow_nan=False)
    if "\\ud" in text:  # a lone surrogate, from an undecodable file name say, is not text to other JSON readers
        text = json.dumps(_storable(document), separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _storable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_storable(key): _storable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(inner) for inner in value]
    return value


def seal(document: Mapping[str, object]) -> bytes:
    """Return ``document``, which has at least one key, as sealed JSON without a newline."""
    body = encode(document)
    return body[:-1] + _seal_of(body)


def _seal_of(body: bytes) -> bytes:
    return b',"crc32":"%08x"}' % zlib.crc32(body)


def unseal(data: bytes) -> dict[str, Any]:
    """Return the document that `seal` was given; non-finite numbers stay strings.

    Raises:
        ValueError: the checksum does not match, or it is no JSON object.
    """
    body = data[:-_SEAL_LENGTH] + b"}"
    if data[-_SEAL_LENGTH:] != _seal_of(body):
        raise ValueError("its checksum does not match its content")
    return parse(body)


def looks_sealed(data: bytes) -> bool:
    """Say whether ``data`` ends in a checksum, right or wrong."""
    return re.fullmatch(rb',"crc32":"[0-9a-f]{8}"}', data[-_SEAL_LENGTH:]) is not None


def parse(data: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ValueError: it is something else.
    """
    document = pydantic_core.from_json(data, allow_inf_nan=False)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  # the caller asks about text, not types
    return document


def number(value: object) -> float | int | None:
    """Return a stored number, None for unknown.

    Raises:
        ValueError: it is no number, or none that a float can hold.
    """
    if value is None or (isinstance(value, float | int) and not isinstance(value, bool)):
        if isinstance(value, int) and abs(value) >= 2**1023:
            raise ValueError("a number is out of range")
        return value
    if isinstance(value, str) and value in NON_FINITE:
        return NON_FINITE[value]
    raise ValueError(f"expected a number or null, found {str(value)[:40]!r}")


def read_bytes(path: Path) -> bytes:
    """Read a regular file, following no symbolic link and waiting for no pipe: the folder may be a stranger's.

    Raises:
        CorruptFileError: it is a link, a folder or a device.
        OSError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CorruptFileError(
                f"{path}: is a symbolic link; results are read from regular files only"
            ) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptFileError(f"{path}: is no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that a reader finds the old one or the new one.

    Args:
        path: the file.
        data: its content.
        durable: also after a power cut.

    Raises:
        OSError: with the file's name; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
