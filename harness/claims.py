"""Who works on a run or sweep: a lock that its launcher holds, and that the system drops when it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from harness.errors import CorruptFileError
from harness.rankfile import read_rank_file
from harness.versions import FutureVersionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LOCK = "lock"
CLOCK_ERROR_S = 2.0
"""How much later than its first line a process may seem to have started: process start times are coarse."""


def claim(folder: Path) -> int:
    """Lock a folder for this process and return the open lock; closing it, or dying, gives it back.

    Raises:
        BlockingIOError: another process has it.
        OSError: the lock cannot be made: a read-only folder, say.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            raise BlockingIOError(error.errno, "is being written by another process", str(folder)) from error
        raise
    return descriptor


@contextlib.contextmanager
def unclaimed(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock together with other readers; the value is False where a launcher has it.

    True also where there is no lock, or it cannot be opened: then the ranks tell, if anything does.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield True
        return
    try:
        yield _shares(descriptor)
    finally:
        os.close(descriptor)


def _shares(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in {errno.EWOULDBLOCK, errno.EACCES}
    return True


def ranks_alive(folder: Path, spec: Mapping[str, Any]) -> bool:
    """Say whether a rank of a run that has no end line still runs.

    A rank of another machine cannot be asked: it counts as alive until the run's time limit is over.
    """
    return any(_is_alive(path, spec.get("timeout_s")) for path in sorted(folder.glob("rank-*.jsonl")))


def _is_alive(path: Path, timeout_s: object) -> bool:
    try:
        file = read_rank_file(path, lenient=True)
    except FutureVersionError:
        raise
    except (OSError, CorruptFileError):
        return False
    if file.ended or not file.lines or file.lines[0].kind != "begin":
        return False
    begin = file.lines[0]
    if begin.fields.get("hostname") != socket.gethostname():
        limit = timeout_s if isinstance(timeout_s, float | int) else 0.0
        return time.time() < begin.time_unix_s + limit
    return _process_is_alive(begin.fields.get("pid"), begin.time_unix_s)


def _process_is_alive(pid: object, began_unix_s: float) -> bool:
    """Say whether the process runs that wrote the line, and not a later one with its number."""
    import psutil

    if not isinstance(pid, int):
        return False
    with contextlib.suppress(psutil.Error, ValueError, OverflowError):
        process = psutil.Process(pid)
        started = process.create_time()
        return process.status() != psutil.STATUS_ZOMBIE and started <= began_unix_s + CLOCK_ERROR_S
    return False
