"""Starts a torchrun world on this machine, watches it, and says how it ended."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import launching, user_path
from harness.errors import NO_SPACE_EXIT_CODE, OptbenchError
from harness.rankfile import read_rank_file
from launch import memory_kills, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.record import Outcome
    from harness.spec import RunSpec

POLL_S = 0.25
"""Between two looks at a running world: rare enough not to disturb what it measures."""

RANK_EXIT = re.compile(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s*exitcode\s*:\s*(-?\d+) \(pid: (\d+)\)")
"""A rank's end in the report that torchrun prints: rank, exit code, process id."""

CLOSING = re.compile(r"(?:Sending process|Unable to shutdown process) (\d+) ")
"""A rank that torchrun ends itself, since another one has failed."""

TOLD_TO_END = re.compile(r"SignalException: Process \d+ got signal: (\d+)")

SMALLER = "use a smaller size, a smaller global_batch, more accumulation or fewer ranks"


@dataclass(frozen=True)
class Ended:
    """How a world ended; ``outcome`` None: the ranks' own files tell."""

    outcome: Outcome | None
    reason: str | None = None
    rank_files_first: bool = True
    """A reason that a rank wrote down beats this one."""


def torchrun(
    spec: RunSpec,
    target: Sequence[str],
    port: int | None,
    *,
    log_dir: Path | None = None,
    python: str | None = None,
) -> list[str]:
    """Return the torchrun command line of a spec's world on this machine.

    Args:
        spec: resolved.
        target: what each rank runs: ``-m MODULE`` or a file, and its words.
        port: of the rendezvous; None: torchrun's own choice.
        log_dir: of torchrun's own files; None: a temporary folder, which it leaves behind.
        python: interpreter; None: this one.
    """
    return [
        python or sys.executable,
        "-m",
        "torch.distributed.run",
        *([] if log_dir is None else [f"--log-dir={log_dir}"]),
        "--nnodes=1",
        f"--nproc-per-node={spec.world_size or 1}",
        *(["--standalone"] if port is None else ["--master-addr=127.0.0.1", f"--master-port={port}"]),
        "--max-restarts=0",
        *target,
    ]


def command(spec: RunSpec, target: Sequence[str], port: int | None, log_dir: Path | None = None) -> list[str]:
    """Return the torchrun command line that trains a spec; see `torchrun`.

    Args:
        spec: resolved.
        target: the worker's own words: ``--prepared FOLDER``, or a plan file.
        port: of the rendezvous.
        log_dir: of torchrun's own files.
    """
    return torchrun(spec, ["-m", "harness.worker", *target], port, log_dir=log_dir)


def environment(spec: RunSpec, run_id: str, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a world's processes: without what steers other launchers (`harness.launching`).

    The user's folder is appended to the import path by the ranks; PYTHONSAFEPATH keeps it off the front.
    """
    threads = str(spec.threads or 1)
    settings = {
        **launching.clean(base),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        user_path.VARIABLE: base.get(user_path.VARIABLE) or str(Path.cwd()),
        processes.MARKER: run_id,
        "OPTBENCH_STARTED_UNIX_S": repr(time.time()),
        "OPTBENCH_COMMAND": json.dumps(sys.argv),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    if spec.device == "cpu":
        settings["CUDA_VISIBLE_DEVICES"] = ""
        settings["DS_ACCELERATOR"] = "cpu"
        # One node: no need to resolve the host's name, which fails on machines without a name service.
        if sys.platform == "linux":
            settings.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return settings


_ASKED = itertools.count(random.SystemRandom().randrange(1 << 16))
"""Where to look for the next free port: in one process no two worlds that are yet to start are given the same."""
_FIRST_PORT = 10_000


def free_port() -> int:
    """Return a TCP port that nobody listens on now.

    Seconds pass until a world listens on it. Connections that any process makes meanwhile take their own end's
    port from the kernel's ephemeral range: what is below is looked at first.
    """
    below = range(_FIRST_PORT, _first_ephemeral_port())
    for _ in below:
        port = below[next(_ASKED) % len(below)]
        if port_taken(port) is None:
            return port
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _first_ephemeral_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 32768  # Linux's own default; others begin higher


def port_taken(port: int) -> str | None:
    """Return why a port cannot be listened on, with the remedy, or None."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))  # as torchrun's store does
        except OSError as error:
            told = "is taken by another process" if error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
            return f"port {port} {told}; choose another with --master-port, or leave it out for a free one"
    return None


def run(
    spec: RunSpec,
    folder: Path,
    progress: Callable[[int], None],
    master_port: int | None = None,
) -> Ended:
    """Run one world to its end, whatever that is; none of its processes is left when this returns.

    Args:
        spec: resolved.
        folder: the run's, prepared by the store.
        progress: told the number of steps done, now and then.
        master_port: of the rendezvous; None: a free one.

    Raises:
        KeyboardInterrupt: passed on once all processes have ended.
    """
    if master_port is not None:
        taken = port_taken(master_port)
        if taken is not None:
            return Ended("failed", taken)
    place = folder.absolute()
    port = master_port or free_port()
    words = command(spec, ["--prepared", str(place)], port, place / "log" / "torchrun")
    log = folder / "log" / "torchrun.log"
    kills_before = memory_kills.count()
    settings = environment(spec, folder.name, os.environ)
    log.write_text(f"$ {shlex.join(words)}\n")
    process = None
    with contextlib.ExitStack() as stack:
        try:
            process = processes.start(words, settings, log)
            stack.enter_context(processes.guarded(folder.name))
            code = _watch(process, spec, folder, progress)
            never = code is None and not _begun(folder)
        finally:
            try:
                processes.end(folder.name, process)
            except KeyboardInterrupt:
                processes.end(folder.name, process)
                raise
    if never:
        outcome: Outcome = "timed_out" if spec.timeout_s <= launching.BEGIN_S else "failed"
        where = f"127.0.0.1:{port}"
        return Ended(outcome, launching.not_begun(_patience_s(spec), where, os.environ, log, kept=True))
    if code is None:
        return Ended(
            "timed_out",
            f"not done after timeout_s = {spec.timeout_s:g}{_stacks(folder / 'log')}",
            rank_files_first=False,
        )
    return _ended(code, spec.world_size or 1, folder, kills_before)


def _watch(
    process: subprocess.Popen[bytes], spec: RunSpec, folder: Path, progress: Callable[[int], None]
) -> int | None:
    """Return torchrun's exit code; None at the time limit, or once a rank should have begun and none has."""
    started = time.monotonic()
    deadline, begin_by = started + spec.timeout_s, started + _patience_s(spec)
    seen, offset = 0, 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=min(POLL_S, max(0.0, deadline - time.monotonic())))
        steps, offset = _steps_done(folder / "rank-0.jsonl", offset)
        if steps > seen:
            seen = steps
            progress(seen)
        if time.monotonic() >= min(deadline, begin_by) and not _begun(folder):
            return None
        if time.monotonic() >= deadline:
            pids = [p.pid for p in processes.of_run(folder.name)]
            processes.dump_stacks(_ranks_among(pids, process.pid))
            return None


def _patience_s(spec: RunSpec) -> float:
    return min(launching.BEGIN_S, spec.timeout_s)


def _begun(folder: Path) -> bool:
    return any(folder.glob("rank-*.jsonl"))


def _steps_done(rank_file: Path, offset: int) -> tuple[int, int]:
    """Return the steps that the lines after ``offset`` tell of, and where the next look begins."""
    try:
        with rank_file.open("rb") as file:
            file.seek(offset)
            whole = file.read().rpartition(b"\n")[0]
    except FileNotFoundError:
        return 0, offset
    done = 0
    for line in whole.splitlines():
        with contextlib.suppress(ValueError, AttributeError, TypeError):  # checked when the record is made
            fields = json.loads(line)
            if fields.get("kind") == "samples" and fields.get("step") is not None:
                done = fields["step"] + max(len(series) for series in fields["samples"].values())
    return done, offset + len(whole) + (1 if whole else 0)


def _ranks_among(pids: Sequence[int], torchrun: int) -> list[int]:
    """Return the workers' pids: SIGUSR1 would kill a process that does not expect it, torchrun among them."""
    import psutil

    ranks = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            if pid != torchrun and "harness.worker" in psutil.Process(pid).cmdline():
                ranks.append(pid)
    return ranks


def _ended(code: int, world_size: int, folder: Path, kills_before: int | None) -> Ended:
    log = folder / "log" / "torchrun.log"
    text = log.read_text(errors="replace")
    ended_by_torchrun = set(re.findall(CLOSING, text))
    found = re.findall(RANK_EXIT, text)
    deaths = [(int(rank), int(status)) for rank, status, pid in found if pid not in ended_by_torchrun]
    if code != 0 and not deaths:
        return _torchrun_ended(code, text, log, any(folder.glob("rank-*.jsonl")), _rose(kills_before))
    # A rank that could still say why ends with 1: any other end came from outside the rank's Python and is the
    # cause; what its peers wrote (connection closed) is a consequence.
    silent = [death for death in deaths if death[1] != 1]
    if not silent and (mute := _mute(folder, world_size, {pid for _, _, pid in found} | ended_by_torchrun)):
        return Ended("failed", f"{mute} exited with 0 before the run was over", rank_files_first=False)
    if code == 0:
        return Ended(None)
    rank, exit_code = (silent or deaths)[0]
    outcome, reason = _death(rank, exit_code, folder / "log" / f"rank-{rank}.log", _rose(kills_before))
    # A peer's watchdog aborts when a rank is gone: not a cause while another rank wrote one down.
    return Ended(outcome, reason, rank_files_first=not silent or exit_code == -signal.SIGABRT)


def _mute(folder: Path, world_size: int, accounted: set[str]) -> str | None:
    """Name the ranks that began and left without an ``end`` line, though nothing is known to have ended them."""
    mute = []
    for rank in range(world_size):
        with contextlib.suppress(OSError, OptbenchError):
            file = read_rank_file(folder / f"rank-{rank}.jsonl", lenient=True)
            begin = file.of_kind("begin")
            if begin and not file.ended and not file.problems and str(begin[0].fields.get("pid")) not in accounted:
                mute.append(str(rank))
    return f"rank{'s' if len(mute) > 1 else ''} {', '.join(mute)}" if mute else None


def _torchrun_ended(code: int, text: str, log: Path, began: bool, kernel_killed: bool) -> Ended:  # noqa: FBT001  # one caller
    """Say what became of a torchrun that reports no rank's end."""
    told = re.findall(TOLD_TO_END, text)
    if code == -signal.SIGKILL and kernel_killed:
        return Ended("out_of_memory", f"the kernel killed torchrun for memory; {SMALLER}")
    if code < 0 or told:
        number = -code if code < 0 else int(told[-1])
        return Ended("failed", f"torchrun was ended by {_signal(number)}, sent from outside")
    last = " | ".join(line.strip() for line in text.strip().splitlines()[-3:])
    when = "" if began else " before a rank began"
    return Ended("failed", f"torchrun exited with {code}{when}: {last}{_see(log)}")


def _death(rank: int, exit_code: int, log: Path, kernel_killed: bool) -> tuple[Outcome, str]:  # noqa: FBT001  # one caller
    """Return outcome and reason for a rank that ended with a code, negative: a signal."""
    if exit_code == -signal.SIGKILL and kernel_killed:
        return "out_of_memory", f"the kernel killed rank {rank} for memory; {SMALLER}"
    if exit_code == NO_SPACE_EXIT_CODE:
        return "failed", f"rank {rank} could not write its results{_last_line(log)}"
    if exit_code < 0:
        return "failed", f"rank {rank} was killed by {_signal(-exit_code)}{_see(log)}"
    return "failed", f"rank {rank} exited with {exit_code}{_see(log)}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


STACKS = b"most recent call first"
"""What faulthandler writes above the stack of each thread."""


def _stacks(logs: Path) -> str:
    """Return where ranks wrote their stacks; that they wrote none, where they did not."""
    held = [log.name for log in sorted(logs.glob("rank-*.log")) if STACKS in log.read_bytes()]
    return f"; the ranks' stacks are in {logs}: {', '.join(held)}" if held else "; no rank wrote its stacks"


RAISED = re.compile(r"^(?:\[rank\d+\]: ?)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)$", re.MULTILINE)
"""The last line of a traceback."""


def _see(log: Path) -> str:
    """Point to a log that holds something; else tell what the log of the whole world holds of an exception."""
    if log.exists() and log.stat().st_size:
        return f"; see {log}"
    shared = log.with_name("torchrun.log")
    if not shared.exists():
        return "; it left no log"
    text = shared.read_text(encoding="utf-8", errors="replace")
    raised = [line for line in RAISED.findall(text) if "ChildFailedError" not in line]
    return f": {raised[0][:300]}; see {shared}" if raised else f"; see {shared}"


def _rose(before: int | None) -> bool:
    now = memory_kills.count()
    return before is not None and now is not None and now > before


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return f": {lines[-1]}"
    return _see(log)
