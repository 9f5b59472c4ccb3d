"""The process that compiles DeepSpeed's kernels for `kernels.ensure`: ``PARENT REPORT DEVICE NAME…``.

It ends with PARENT, and finds in ``TORCH_EXTENSIONS_DIR`` the folder that all goes to. Builds run side by side,
each in a process of its own; a line of JSON about each goes to the descriptor REPORT, all else to a log a kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from harness.kernels import KERNELS, STAMP, kill_below
from harness.system import cores_usable

if TYPE_CHECKING:
    from collections.abc import Sequence

_DEBUG_FLAG = "-g"
"""Left out: the machine code is the same without it, and made in 6 to 7 tenths of the CPU time (GCC 12)."""
_COMPILER_BYTES = 2 << 30
"""Of memory that a compiler reads torch's headers into, and then some."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def build(parent: int, report: int, device: str, names: Sequence[str]) -> None:
    """Build kernels, several at a time, until done or until the parent ends."""
    _die_with(parent)
    os.set_inheritable(report, False)  # noqa: FBT003  # compilers must not hold it open
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    with contextlib.suppress(Exception):  # once for all builds, each of which will say what is wrong
        importlib.import_module("deepspeed.ops.op_builder")
    waiting = [(name, device == "cpu") for name in names]
    building: dict[int, tuple[str, bool]] = {}
    while waiting or building:
        while waiting and len(building) < at_a_time():
            name, as_one = waiting.pop(0)
            building[_fork_build(name, folder, report, as_one=as_one)] = name, as_one
        pid, status = os.wait()
        if pid not in building:
            continue
        name, as_one = building.pop(pid)
        if status and as_one:  # then its sources one by one, as DeepSpeed has them
            shutil.rmtree(folder / name, ignore_errors=True)
            waiting.append((name, False))
        elif status:
            _tell(report, name, f"its build ended with status {os.waitstatus_to_exitcode(status)}", 0)


def at_a_time() -> int:
    """Return how many compilers the cores and the free memory allow."""
    return max(1, min(cores_usable(), psutil.virtual_memory().available // _COMPILER_BYTES))


def _fork_build(name: str, folder: Path, report: int, *, as_one: bool) -> int:
    """Start a build in a process of its own; return its pid. It exits with 0 once it has told its result."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _die_with(parent)
        _one_file(folder, name).unlink(missing_ok=True)
        with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)  # compilers inherit these
            os.dup2(log.fileno(), 2)
            started = time.monotonic()
            error = _build(name, folder, as_one=as_one)
            sys.stdout.flush()
            sys.stderr.flush()
        if error is None or not _one_file(folder, name).exists():
            _tell(report, name, error, time.monotonic() - started)
            code = 0
    finally:
        os._exit(code)


def _one_file(folder: Path, name: str) -> Path:
    """Return where a kernel's sources are named to be compiled as one."""
    return folder / f"{name}.cpp"


def _tell(report: int, name: str, error: str | None, seconds: float) -> None:
    os.write(report, f"{json.dumps({'name': name, 'error': error, 'seconds': seconds})}\n".encode())


def _build(name: str, folder: Path, *, as_one: bool) -> str | None:
    """Compile one kernel and stamp it; return what went wrong.

    Args:
        name: key of KERNELS.
        folder: of all kernels.
        as_one: its sources are compiled as one: most of the time goes into torch's headers, which each includes.
    """
    try:
        accelerator: Any = importlib.import_module("deepspeed.accelerator").get_accelerator()
        builder = accelerator.create_op_builder(KERNELS[name].builder)
        if builder is None or builder.name != name:
            return f"DeepSpeed has no {name} for {accelerator._name}"  # noqa: SLF001  # its only name
        flags = list(builder.cxx_args())
        builder.cxx_args = lambda: [flag for flag in flags if flag != _DEBUG_FLAG]
        sources = [builder.deepspeed_src_path(each) for each in builder.strip_empty_entries(builder.sources())]
        if as_one and len(sources) > 1:
            one = _one_file(folder, name)
            one.write_text("".join(f'#include "{each}"\n' for each in sources), encoding="utf-8")
            builder.sources = lambda: [str(one)]
        module = builder.load(verbose=True)
        stamp = folder / name / STAMP
        stamp.parent.mkdir(exist_ok=True)
        partial = stamp.with_suffix(".partial")
        partial.write_text(json.dumps({"file": module.__file__}), encoding="utf-8")
        partial.replace(stamp)
    except Exception as error:  # noqa: BLE001  # compilers and libraries raise anything; the others go on
        traceback.print_exc()
        first = next(iter(str(error).strip().splitlines()), "")
        return f"{type(error).__name__}: {first.removesuffix(': ')}"
    return None


def _die_with(parent: int) -> None:
    """End this process and its compilers when the one that started it ends, however that happens."""

    def end(*_: object) -> None:
        kill_below(os.getpid())
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before we asked to be told
        end()


if __name__ == "__main__":
    build(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
