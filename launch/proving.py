"""Starts the processes that make proofs; one that dies or hangs costs its own proof only."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from harness import launching
from harness.verification.certificate import Certificate
from launch import local, placing, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from harness.comparison.model import Arm
    from harness.machine import Machine
    from harness.verification.identity import Job

POLL_S = 0.05
QUIET_S = 240.0
"""A proof takes seconds, one that compiles up to a minute; past this it hangs."""

KNOWN = "machine.json"
"""File beside the jobs: the machine that they were planned for."""

UNREADABLE = "its prover wrote a certificate that cannot be read"
OTHER_VERSION = "optbench of the arm's path or interpreter may be of another version: update the older one"


def prove(
    jobs: Sequence[Job],
    done: Callable[[Job, Certificate], None],
    quiet_s: float = QUIET_S,
    *,
    arm: Arm | None = None,
    machine: Machine | None = None,
) -> None:
    """Make every proof, and hand over each certificate as it is made.

    Args:
        jobs: what to prove; those over plain tensors share one process, those of one world size a world.
        done: told each job and its certificate; a process that died, hung or wrote what cannot be read gives one
            with outcome ``failed``.
        quiet_s: seconds without a certificate after which a process hangs.
        arm: whose code is proved, in a process of its own place; None: the driver's.
        machine: that the jobs were planned for; None: a rank of each world looks, which its peers wait for.

    Raises:
        KeyboardInterrupt: passed on once all processes have ended.
    """
    for group in _groups(jobs):
        waiting = list(group)
        while waiting:
            made = 0
            for certificate in _made(waiting, quiet_s, arm, machine):
                done(waiting[made], certificate)
                made += 1
            waiting = waiting[made:]


def _groups(jobs: Sequence[Job]) -> Iterable[list[Job]]:
    groups: dict[tuple[bool, int, str | None], list[Job]] = {}
    for job in jobs:
        spec = job.spec
        groups.setdefault((spec.strategy == "single", spec.world_size or 1, spec.device), []).append(job)
    return groups.values()


def _certificate(job: Job, line: bytes) -> Certificate:
    """Return what a prover wrote of a job; where that cannot be read, a proof that failed and says why."""
    try:
        return Certificate.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        told = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        return _failed(job, f"{UNREADABLE}: {told}; {OTHER_VERSION}")


def _failed(job: Job, reason: str) -> Certificate:
    """Return the certificate of a job that its prover has not told of."""
    spec = job.spec
    known = {
        "optimizer": spec.optimizer,
        "strategy": spec.strategy,
        "precision": spec.precision,
        "world_size": spec.world_size or 1,
        "options": spec.optimizer_options,
        "like": job.like,
        "reference": None,
        "made_unix_s": time.time(),
        "outcome": "failed",
        "reason": reason,
    }
    return Certificate.model_validate(known)


def _made(jobs: Sequence[Job], quiet_s: float, arm: Arm | None, machine: Machine | None) -> Iterator[Certificate]:
    """Yield a certificate a job until the process ends; that of the job that ended it early says how."""
    with tempfile.TemporaryDirectory(prefix="optbench-proofs-") as folder:
        out, log = Path(folder) / "certificates.jsonl", Path(folder) / "log"
        asked = Path(folder) / "jobs.json"
        asked.write_text(json.dumps([job.model_dump(mode="json") for job in jobs]), encoding="utf-8")
        out.touch()
        if machine is not None:
            (Path(folder) / KNOWN).write_text(machine.model_dump_json(), encoding="utf-8")
        marker = f"proofs-{secrets.token_hex(8)}"
        base = os.environ if arm is None else placing.settings(arm, os.environ)
        settings = local.environment(jobs[0].spec, marker, base) | {launching.BEGUN: folder}
        port = local.free_port()
        words = _words(jobs[0], asked, out, Path(folder), port, None if arm is None else arm.python)
        process = processes.start(words, settings | ({} if arm is None else arm.env), log)
        told = 0
        told_why = False
        try:
            with processes.guarded(marker):
                code: int | None = None
                for line, job in zip(_watched(process, out, quiet_s, Path(folder)), jobs, strict=False):
                    certificate = _certificate(job, line)
                    told += 1
                    told_why = certificate.outcome == "failed"
                    yield certificate
                code = process.poll()
        finally:
            processes.end(marker, process)
        # A world ends after a proof that failed, of which it has told; the next job has no part in that.
        if told < len(jobs) and not told_why:
            begun = code is not None or launching.begun(Path(folder))
            never = launching.not_begun(min(launching.BEGIN_S, quiet_s), f"127.0.0.1:{port}", os.environ, log)
            yield _failed(jobs[told], _ended(code, log, quiet_s) if begun else never)


def _words(job: Job, asked: Path, out: Path, folder: Path, port: int, python: str | None) -> list[str]:
    if job.spec.strategy == "single":
        return [python or sys.executable, "-m", "harness.verification.prove", str(asked), str(out)]
    known = [f"--machine={folder / KNOWN}"] if (folder / KNOWN).exists() else []
    target = ["-m", "harness.verification.world", *known, str(asked), str(out)]
    return local.torchrun(job.spec, target, port, log_dir=folder / "torchrun", python=python)


def _watched(process: subprocess.Popen[bytes], out: Path, quiet_s: float, folder: Path) -> Iterator[bytes]:
    """Yield the lines of a growing file until the process has ended, or has not begun or written for too long."""
    offset, last = 0, time.monotonic()
    begin_by = last + launching.BEGIN_S
    while True:
        ended = process.poll() is not None
        with out.open("rb") as file:
            file.seek(offset)
            whole = file.read().rpartition(b"\n")[0]
        yield from whole.split(b"\n") if whole else ()
        if whole:
            offset, last = offset + len(whole) + 1, time.monotonic()
        if ended or time.monotonic() - last > quiet_s:
            return
        if time.monotonic() > begin_by and not launching.begun(folder):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)


def _ended(code: int | None, log: Path, quiet_s: float) -> str:
    if code is None:
        return f"the proof wrote nothing for {quiet_s:g} s and was ended"
    told = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = f": {told[-1][:300]}" if told else ""
    if code < 0:
        return f"the proof's process was ended by {signal.Signals(-code).name}{last}"
    return f"the proof's process ended with code {code}{last}"
