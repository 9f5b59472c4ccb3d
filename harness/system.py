"""The machine without torch: processor, memory, cores, compilers, installed packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness import cgroup
from harness.cgroup import ROOT

PACKAGES = (
    "torch",
    "numpy",
    "deepspeed",
    "apex",
    "triton",
    "pytorch-triton-rocm",
    "ninja",
    "torchao",
    "bitsandbytes",
    "heavyball",
    "pytorch-optimizer",
    "schedulefree",
    "transformer-engine",
    "transformers",
    "accelerate",
    "scikit-learn",
    "psutil",
    "pydantic",
    "nvidia-ml-py",
    "nvidia-cublas-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-nccl-cu12",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
    "nvidia-nccl-cu13",
    "intel-openmp",
    "mkl",
)
"""Distributions whose version can change an answer or a speed."""


@dataclass(frozen=True)
class CpuTimes:
    """The node's CPU time in seconds, summed over CPUs, since it was started."""

    total: float
    idle: float
    steal: float


def cores_usable(root: Path = ROOT, affinity: int | None = None) -> int:
    """Return the cores this process may use: the affinity mask and the CPU quota counted in, at least 1.

    Args:
        root: of the file system.
        affinity: cores in the affinity mask; None: asked of the system.
    """
    allowed = affinity if affinity is not None else len(affinity_mask())
    quota = cgroup.cpu_quota(root)
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def affinity_mask() -> list[int]:
    """Return the numbers of the cores that the scheduler may put this process on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def memory_usable(root: Path = ROOT, physical: int | None = None) -> int:
    """Return the bytes of memory this process may use: the machine's, or its group's limit where that is less."""
    present = physical if physical is not None else int(psutil.virtual_memory().total)
    limit = cgroup.memory_limit_bytes(root)
    return present if limit is None else min(present, limit)


def cpu_model(root: Path = ROOT) -> str:
    """Return the processor's model name, or the architecture's where the kernel names none."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for key in ("model name", "Model", "cpu model", "Hardware"):
        found = re.search(rf"^{key}\s*:\s*(\S.*)$", text, re.MULTILINE)
        if found:
            return " ".join(found[1].split())
    return platform.processor() or platform.machine() or "unknown"


def cpu_times() -> CpuTimes | None:
    """Return the node's CPU times; None where the system does not tell."""
    try:
        times = psutil.cpu_times()
    except (OSError, RuntimeError, psutil.Error):
        return None
    fields = times._asdict()
    # Linux counts guests' time into user and nice already (proc(5)).
    total = sum(value for name, value in fields.items() if name not in {"guest", "guest_nice"})
    return CpuTimes(total, fields.get("idle", 0.0) + fields.get("iowait", 0.0), fields.get("steal", 0.0))


def shares(before: CpuTimes | None, after: CpuTimes | None) -> tuple[float | None, float | None]:
    """Return the shares of CPU time between two readings that were busy, and stolen; None: no time passed.

    The kernel's counters of single CPUs can step back by a tick, so shares are kept within 0 and 1.
    """
    if before is None or after is None or after.total <= before.total:
        return None, None
    total = after.total - before.total
    steal = (after.steal - before.steal) / total
    busy = 1 - (after.idle - before.idle) / total - steal
    return min(1.0, max(0.0, busy)), min(1.0, max(0.0, steal))


def packages() -> dict[str, str | None]:
    """Return each distribution of `PACKAGES` with its version; None: not installed."""
    return {name: _version(name) for name in PACKAGES}


def program(name: str) -> str | None:
    """Return where a program is, on PATH or beside this interpreter; None: nowhere.

    An environment that is used without being activated has its programs beside the interpreter alone.
    """
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def compiler_programs() -> dict[str, str | None]:
    """Return where ``c++`` (or ``$CXX``), ``ninja`` and ``nvcc`` are."""
    cuda = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    own = os.environ.get("CXX", "").split()
    return {
        "c++": next(filter(None, map(program, [*own[:1], "c++", "g++", "clang++"])), None),
        "ninja": program("ninja"),
        "nvcc": shutil.which("nvcc") or shutil.which("nvcc", path=f"{cuda}/bin"),
    }


def compilers() -> dict[str, str | None]:
    """Return ``c++``, ``ninja`` and ``nvcc`` with what each says of its version; None: not found or broken."""
    return {name: path and _said_version(path) for name, path in compiler_programs().items()}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _said_version(path: str) -> str | None:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    # nvcc names itself first, its release later; a wrapper may print lines of its own.
    lines = [line.strip() for line in done.stdout.splitlines() if re.search(r"\d+\.\d", line)]
    telling = [line for line in lines if "release" in line] or lines
    return telling[0] if telling else None
