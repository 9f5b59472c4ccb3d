"""Quick measurements of a machine as it is now: memory bandwidth, steadiness, who else is at work."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil

from harness.cgroup import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK = 1 << 15
"""Iterations of one timed piece of the busy loop: about a millisecond in CPython."""


@dataclass(frozen=True)
class Steadiness:
    """How evenly one busy core was served.

    Attributes:
        jitter_ratio: p99 of equal pieces of work over their median; 1 is perfect.
        pieces: how many were timed.
    """

    jitter_ratio: float
    pieces: int


@dataclass(frozen=True)
class Busy:
    """A process that takes part of a core.

    Attributes:
        pid: its number.
        name: of its program, as the process itself chose it.
        cores: CPU seconds it took a second.
        stuck: it cannot be interrupted (waiting for a disk, a network file system or a driver).
    """

    pid: int
    name: str
    cores: float
    stuck: bool = False


def memory_bandwidth(threads: int, memory_bytes: int, rounds: int = 5, root: Path = ROOT) -> float | None:
    """Return the memory bandwidth in bytes a second, the best of several rounds.

    The add kernel of STREAM (McCalpin 1995): ``c = a + b`` over three arrays of doubles much larger than the last
    cache, 24 bytes counted for each element. Each thread works on a part of its own.

    Args:
        threads: cores to use.
        memory_bytes: what may be used in all; a sixteenth of it is, at most.
        rounds: how often to measure.
        root: of the file system, whose /sys tells the size of the last cache.

    Returns:
        None where there is too little memory to leave the caches.
    """
    size = min(max(128 << 20, 4 * last_cache_bytes(root)), memory_bytes // 48)
    if size < 4 << 20:
        return None
    elements = size // 8
    bounds = [elements * part // threads for part in range(threads + 1)]
    slices = [slice(first, end) for first, end in itertools.pairwise(bounds)]
    a, b, c = np.empty(elements), np.empty(elements), np.empty(elements)

    def fill(part: slice) -> None:  # by the thread that will use it, so that its pages lie near its core
        a[part], b[part], c[part] = 1.0, 2.0, 0.0

    def add(part: slice) -> None:
        np.add(a[part], b[part], out=c[part])

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, slices))
        for _ in range(rounds):
            started = time.perf_counter()
            list(pool.map(add, slices))
            best = min(best, time.perf_counter() - started)
    return 24 * elements / best


def last_cache_bytes(root: Path = ROOT) -> int:
    """Return the size of the first core's largest cache; 0: not told."""
    sizes = [0]
    for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = path.read_text(encoding="ascii").strip()
            scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)
            sizes.append(int(text.rstrip("KMG")) * scale)
    return max(sizes)


def timer_resolution_s(samples: int = 1000) -> float:
    """Return the smallest step seen between two neighbouring readings of the clock that runs are timed with."""
    readings = [time.perf_counter_ns() for _ in range(samples)]
    steps = [later - earlier for earlier, later in itertools.pairwise(readings) if later > earlier]
    return min(steps, default=0) * 1e-9


def steadiness(duration_s: float = 0.5) -> Steadiness:
    """Time equal pieces of a busy loop for a while.

    Args:
        duration_s: for how long.
    """
    pieces = []
    end = time.perf_counter() + duration_s
    while (started := time.perf_counter()) < end:
        for _ in range(CHUNK):
            pass
        pieces.append(time.perf_counter() - started)
    if len(pieces) < 2:
        return Steadiness(1.0, len(pieces))
    return Steadiness(
        statistics.quantiles(pieces, n=100, method="inclusive")[98] / statistics.median(pieces), len(pieces)
    )


class Company:
    """Which other processes take CPU time between its construction and a call."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._before = dict(_cpu_seconds())

    def busy(self, threshold: float = 0.1) -> list[Busy]:
        """Return the processes that took more than ``threshold`` of a core, and those stuck; the heaviest first.

        This process and its children are left out.
        """
        passed = max(1e-9, time.perf_counter() - self._began)
        own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
        found = []
        for process, seconds in _cpu_seconds():
            if process.pid in own:
                continue
            with contextlib.suppress(psutil.Error, OSError):
                cores = (seconds - self._before.get(process, seconds)) / passed
                stuck = process.status() == psutil.STATUS_DISK_SLEEP
                if cores > threshold or stuck:
                    found.append(Busy(process.pid, process.name(), cores, stuck))
        return sorted(found, key=lambda each: -each.cores)


def _cpu_seconds() -> Iterator[tuple[psutil.Process, float]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            times = process.cpu_times()
            yield process, times.user + times.system
