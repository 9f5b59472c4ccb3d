"""The folder of a store: whether it can be read, and whether it can be written."""

from __future__ import annotations

import difflib
import os
import secrets
import shutil
from pathlib import Path

from harness.errors import InvalidInputError, Problem

MIN_FREE_BYTES = 16 * 2**20
"""A run of the quickstart takes well under one MiB; below this a sweep would likely not get through."""


def check_readable(root: Path) -> None:
    """Refuse a folder that is not there: what is asked of it would seem to be none.

    Raises:
        InvalidInputError: it is missing, or cannot be read.
    """
    where = f"--results {root}"
    try:
        with os.scandir(root):
            return
    except FileNotFoundError:
        here = "" if root.is_absolute() else f" in {Path.cwd()}"
        what, remedy = f"there is no such folder{here}", _remedy(root)
    except NotADirectoryError:
        what, remedy = "is a file", "name a folder"
    except OSError as error:
        what, remedy = f"cannot be read: {error.strerror}", "name a folder that you may read"
    raise InvalidInputError([Problem(where, what, remedy)])


def _remedy(root: Path) -> str:
    """Name the folder beside it that was meant, or what makes one."""
    try:
        beside = [each.name for each in root.absolute().parent.iterdir() if each.is_dir()]
    except OSError:
        beside = []
    near = difflib.get_close_matches(root.name, beside, n=1)
    meant = f"did you mean {root.parent / near[0]}? " if near else ""
    return f"{meant}--results DIR names another; optbench run and compare make one"


def check_writable(root: Path) -> None:
    """Make the folder and try to write in it, so that a sweep isn't refused half-way.

    Raises:
        InvalidInputError: it cannot be made or written, or the disk is full.
    """
    where = f"--results {root}"
    for folder in [root, *root.parents]:
        if folder.is_file():
            raise InvalidInputError([Problem(where, f"{folder} is a file", "name another folder")])
    trial = root / f".trial-{secrets.token_hex(8)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        try:
            trial.write_bytes(bytes(4096))
        finally:
            trial.unlink(missing_ok=True)
        free = shutil.disk_usage(root).free
    except OSError as error:
        remedy = "name a folder that you may write to and that has space, --results ~/results say"
        raise InvalidInputError([Problem(where, f"cannot be written: {error.strerror}", remedy)]) from error
    if free < MIN_FREE_BYTES:
        what = f"its disk has {free // 2**20} MiB left, a sweep needs {MIN_FREE_BYTES // 2**20}"
        raise InvalidInputError([Problem(where, what, "make space, or name a folder on another disk")])
