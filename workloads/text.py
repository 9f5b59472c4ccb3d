"""Text for language models: the Python standard library's sources, or a token file of the user's."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from pydantic import JsonValue

MAXIMUM_BYTES = 16 * 2**20
"""Of source files read; Python 3.11's come to 11 MB."""

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_SKIPPED_PREFIX = "_sysconfigdata"  # how this interpreter was built: differs between machines of one version
_HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Text:
    """Tokens to train on and tokens held out, and where they come from.

    Attributes:
        train: token ids, shape (tokens,), any integer dtype, possibly memory-mapped.
        held_out: likewise.
        bytes_per_token: 1 for bytes; None: unknown.
        source: for messages: the file's name, or what was read.
        facts: what a record should say of the text.
    """

    train: NDArray[np.integer[Any]]
    held_out: NDArray[np.integer[Any]]
    bytes_per_token: float | None
    source: str
    facts: dict[str, JsonValue]


def library_files(root: Path) -> list[Path]:
    """Return the ``.py`` files below ``root``, sorted by their path relative to it.

    Left out are installed packages, the library's own tests, and the generated ``_sysconfigdata*.py``.
    """
    found: list[tuple[str, Path]] = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in _SKIPPED_FOLDERS]
        for name in files:
            if name.endswith(".py") and not name.startswith(_SKIPPED_PREFIX):
                path = Path(folder, name)
                found.append((path.relative_to(root).as_posix(), path))
    return [path for _, path in sorted(found)]


def standard_library(root: Path | None = None, maximum_bytes: int = MAXIMUM_BYTES) -> Text:
    """Read the sources of the running Python's standard library as bytes; every tenth file is held out.

    Args:
        root: the library's folder; None: the running Python's.
        maximum_bytes: files are read in sorted order until this many bytes are reached.

    Raises:
        ValueError: where the folder holds no sources, as for a zipped library.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    digest, total = hashlib.sha256(), 0
    for index, text in enumerate(_contents(library_files(root), maximum_bytes)):
        parts[index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1].append(text)
        digest.update(text)
        total += len(text)
    train, held_out = (b"".join(files) for files in parts)
    if not held_out:
        raise ValueError(
            f"{root}: found {len(parts[0])} Python source files, need at least {_HELD_OUT_EVERY}; "
            "this Python ships its library without sources: give a token file as data"
        )
    facts: dict[str, JsonValue] = {
        "data_source": "sources of the Python standard library, every tenth file held out",
        "corpus_sha256": digest.hexdigest(),
        "corpus_bytes": total,
        "corpus_files": len(parts[0]) + len(parts[1]),
        "held_out_tokens": len(held_out),
    }
    return Text(
        np.frombuffer(train, dtype=np.uint8),
        np.frombuffer(held_out, dtype=np.uint8),
        bytes_per_token=1.0,
        source="the Python standard library",
        facts=facts,
    )


def _contents(files: list[Path], maximum_bytes: int) -> Iterator[bytes]:
    left = maximum_bytes
    for path in files:
        if left <= 0:
            return
        text = path.read_bytes()
        left -= len(text)
        yield text


def token_file(path: Path, dtype: str = "uint16", header_bytes: int = 0) -> Text:
    """Map a file of token ids into memory; its last tenth is held out.

    Args:
        path: raw ids, one after the other in the machine's byte order after ``header_bytes`` bytes; or a ``.npy``
            file of one dimension, whose own header says the dtype.
        dtype: of the raw ids: an integer type by numpy's name. uint8 is read as text, a byte a token.
        header_bytes: to skip in a raw file (1024 in llm.c's ``.bin`` files).

    Raises:
        ValueError: naming the file, where it is missing, empty, torn or holds no integers.
    """
    tokens = _mapped_npy(path) if path.suffix == ".npy" else _mapped_raw(path, dtype, header_bytes)
    if tokens.size < 2:
        raise ValueError(f"{path}: holds {tokens.size} tokens; expected a file of token ids")
    cut = tokens.size - max(1, tokens.size // 10)
    facts: dict[str, JsonValue] = {
        "data_source": str(path),
        "corpus_sha256": _sha256(path),
        "corpus_bytes": path.stat().st_size,
        "corpus_tokens": tokens.size,
        "corpus_dtype": str(tokens.dtype),
        "held_out_tokens": tokens.size - cut,
    }
    bytes_per_token = 1.0 if tokens.dtype == np.uint8 else None
    return Text(tokens[:cut], tokens[cut:], bytes_per_token, source=str(path), facts=facts)


def _mapped_npy(path: Path) -> NDArray[np.integer[Any]]:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: is not a readable .npy file: {error}") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind not in "ui":
        found = f"{tokens.dtype} of shape {tokens.shape}" if isinstance(tokens, np.ndarray) else "an archive"
        raise ValueError(f"{path}: holds {found}; expected integers of one dimension")
    return tokens


def _mapped_raw(path: Path, dtype: str, header_bytes: int) -> NDArray[np.integer[Any]]:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype("float64")  # refused below, together with every other type that is no integer
    if kind.kind not in "ui":
        raise ValueError(
            f"data_dtype = {dtype!r}: expected an integer type: uint8, uint16, uint32, int32 or int64"
        )
    try:
        size = path.stat().st_size - header_bytes
        if size <= 0 or size % kind.itemsize:
            raise ValueError(
                f"{path}: {max(0, size)} bytes after the header of {header_bytes} are no whole number of {kind} "
                f"tokens ({kind.itemsize} bytes each); see the options data_dtype and data_header_bytes"
            )
        return np.memmap(path, dtype=kind, mode="r", offset=header_bytes)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _sha256(path: Path) -> str | None:
    """Return the file's digest; None for a file too large to read for that alone."""
    if path.stat().st_size > 2**28:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def windows(
    tokens: NDArray[np.integer[Any]], starts: NDArray[np.int64], length: int, rows: int, source: str
) -> NDArray[np.int64]:
    """Cut windows out of a text.

    Args:
        tokens: shape (tokens,).
        starts: first token of each window, shape (windows,).
        length: tokens a window.
        rows: of the embedding: ids must be below.
        source: named in the message.

    Returns:
        Shape (windows, length), int64.

    Raises:
        ValueError: for an id out of range. Only the windows that are used are checked: a file can be huge.
    """
    cut: NDArray[np.int64] = tokens[starts[:, None] + np.arange(length)].astype(np.int64)
    lowest, highest = int(cut.min()), int(cut.max())
    if lowest < 0 or highest >= rows:
        raise ValueError(
            f"{source}: holds token id {lowest if lowest < 0 else highest}, but the model has ids 0 … {rows - 1}; "
            "check data_dtype and data_header_bytes, or use a size with a larger vocabulary"
        )
    return cut
