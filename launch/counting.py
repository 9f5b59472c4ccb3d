"""Starts the world of ranks that counts a cell; one that dies or hangs is an error with its last words."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from harness import launching
from harness.counts.model import Job, RankResult, together
from harness.errors import OptbenchError
from launch import local, processes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.counts.model import Counts, Measured
    from harness.spec import RunSpec

TOLD = 12
"""Last lines of a world's log that an error repeats."""


def collect(spec: RunSpec) -> Counts:
    """Count a cell in a world of its own; see `measure`."""
    return measure(spec).counts


def measure(spec: RunSpec, drift_steps: int = 0) -> Measured:
    """Count a cell in a world of its own, and train on to see what grows.

    Args:
        spec: with every default resolved; its ``steps`` matter to the schedule only.
        drift_steps: steps of the long run; 0: none.

    Raises:
        OptbenchError: the world failed, or was not done after ``timeout_s``.
        KeyboardInterrupt: passed on once all processes have ended.
    """
    return measured([Job(spec=spec, drift_steps=drift_steps)])[0]


def measured(jobs: Sequence[Job]) -> list[Measured]:
    """Count several cells of one world size one after the other in the same processes.

    Quicker than a world each, but what a cell imports counts for the first that imports it only.

    Raises:
        OptbenchError: as `measure`.
    """
    spec = jobs[0].spec
    with tempfile.TemporaryDirectory(prefix="optbench-counts-") as name:
        folder = Path(name)
        log, asked = folder / "log", folder / "jobs.json"
        asked.write_text(json.dumps([job.model_dump(mode="json") for job in jobs]), encoding="utf-8")
        marker = f"counts-{secrets.token_hex(8)}"
        settings = local.environment(spec, marker, os.environ) | {launching.BEGUN: str(folder)}
        port = local.free_port()
        process = processes.start(_words(spec, asked, folder, port), settings, log)
        try:
            with processes.guarded(marker):
                code = _waited(process, folder, sum(job.spec.timeout_s for job in jobs))
            if code is None:
                told = launching.not_begun(launching.BEGIN_S, f"127.0.0.1:{port}", os.environ, log)
                raise OptbenchError(f"counting {_name(spec)}: {told}")
        except subprocess.TimeoutExpired as error:
            raise OptbenchError(f"counting {_name(spec)}: not done after timeout_s{_last(log)}") from error
        finally:
            processes.end(marker, process)
        return _read(jobs, folder, code, log)


def _waited(process: subprocess.Popen[bytes], folder: Path, limit_s: float) -> int | None:
    """Return the world's exit code; None: no rank of it began.

    Raises:
        subprocess.TimeoutExpired: it was not done in time.
    """
    begin_s = min(launching.BEGIN_S, limit_s)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(begin_s)
    return process.wait(limit_s - begin_s) if launching.begun(folder) else None


def _words(spec: RunSpec, asked: Path, out: Path, port: int) -> list[str]:
    target = ["-m", "harness.counts.rank", str(asked), str(out)]
    return local.torchrun(spec, target, port, log_dir=out / "torchrun")


def _read(jobs: Sequence[Job], folder: Path, code: int, log: Path) -> list[Measured]:
    size = jobs[0].spec.world_size or 1
    files = [folder / f"rank-{rank}.jsonl" for rank in range(size)]
    lines = [file.read_text(encoding="utf-8").splitlines() if file.exists() else [] for file in files]
    done = min(len(each) for each in lines)
    if done < len(jobs):
        why = launching.failure(folder)
        told = f": {why}" if why is not None else _last(log)
        raise OptbenchError(f"counting {_name(jobs[done].spec)}: the ranks ended with code {code}{told}")
    try:
        ranks = [[RankResult.model_validate_json(line) for line in each] for each in lines]
    except ValidationError as error:
        raise OptbenchError(
            f"counting {_name(jobs[0].spec)}: a rank wrote what cannot be read: {error}"
        ) from error
    return [together(list(each)) for each in zip(*ranks, strict=True)]


def _name(spec: RunSpec) -> str:
    return f"{spec.workload} {spec.optimizer} {spec.strategy}"


def _last(log: Path) -> str:
    """Return the last lines of a log that a person would read first: the exception, not torchrun's report."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if "torch/distributed" not in line and not line.startswith(("W", "E1", "==="))]
    raised = [line.strip() for line in ours if "Error: " in line and not line.startswith("torch.")]
    shown = raised[:1] or ours[-TOLD:]
    return ": " + " | ".join(shown) if shown else ""
