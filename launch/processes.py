"""Process trees that end when they should: with their parent, at a limit, or on request."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MARKER = "OPTBENCH_RUN_ID"
"""Environment variable that every process of a run inherits; found again by it, however it detached itself."""

PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    """Run in the child before exec: Linux kills it when the launcher is gone, SIGKILL included."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, so that the terminal's Ctrl-C reaches only the launcher."""
    parent = os.getpid()
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=(lambda: _die_with(parent)) if sys.platform == "linux" else None,  # noqa: PLW1509  # one thread
        )


@contextlib.contextmanager
def guarded(run_id: str, *folders: Path) -> Iterator[None]:
    """Have a run's processes ended should this one be killed inside the context (see `launch.guardian`).

    Args:
        run_id: that the processes carry.
        folders: temporary ones, removed in that case.
    """
    guardian = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("guardian.py")), f"{MARKER}={run_id}", *folders],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):  # somebody ended it
            guardian.communicate(b"x")


def of_run(run_id: str) -> list[psutil.Process]:
    """Return the live processes that carry the run's marker, but not the caller."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARKER) == run_id:
                found.append(process)
    return found


def dump_stacks(pids: Iterable[int], wait_s: float = 1.0) -> None:
    """Ask ranks to write the stacks of all threads to their logs, stopped ones included; wait for the writing.

    What a rank forked writes to the same log: it is asked afterwards, or the two would mix their lines.
    """
    parents: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            parents[pid] = psutil.Process(pid).ppid()
    for forked in (False, True):
        asked = False
        for pid in (pid for pid, parent in parents.items() if (parent in parents) is forked):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGUSR1)
                os.kill(pid, signal.SIGCONT)
                asked = True
        if asked:
            time.sleep(wait_s)


def end(run_id: str, process: subprocess.Popen[bytes] | None, wait_s: float = 5.0) -> None:
    """Kill every process of a run and wait until they are gone."""
    doomed = of_run(run_id)
    if process is not None and process.poll() is None:
        with contextlib.suppress(psutil.Error):
            doomed += [found for found in [psutil.Process(process.pid)] if found not in doomed]
    while doomed:
        for found in doomed:
            with contextlib.suppress(psutil.Error):
                found.kill()
        psutil.wait_procs(doomed, timeout=wait_s)
        again = of_run(run_id)
        if {p.pid for p in again} == {p.pid for p in doomed}:  # unkillable: in the kernel's hands
            break
        doomed = again
    if process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=wait_s)
