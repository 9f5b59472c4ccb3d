"""Memory: what each category of tensors holds, what the allocator peaked at, what the process occupies."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from harness.interfaces import Reading
from harness.record import MetricInfo
from harness.tracing.extents import extent, local_parts
from harness.tracing.ledger import unclaimed
from harness.tracing.recording import COUNTED_STEP
from harness.tracing.storages import length, union

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from harness.interfaces import Category, Observed, Phase, StepResult
    from harness.tracing.reading import Traced

    Span = tuple[int, int]  # addresses: the first byte, the one past the last


def _bytes(name: str, **meaning: Any) -> MetricInfo:
    # The fullest rank decides whether a job fits: the job's number is the largest; per_rank gives the sum.
    return MetricInfo(name=name, unit="B", better="lower", **meaning)


CATEGORIES: dict[Category, MetricInfo] = {
    "parameters": _bytes("parameter_bytes"),
    "gradients": _bytes("gradient_bytes"),
    "master": _bytes("master_weight_bytes"),
    "state": _bytes("optimizer_state_bytes", at_least_beside="unclaimed_state_bytes"),
    "buffers": _bytes("buffer_bytes"),
    "communication": _bytes("communication_buffer_bytes"),
}
"""Exact and this rank's own. Memory that two categories share is counted for the first of them, in this order."""

UNCLAIMED = _bytes("unclaimed_state_bytes")
"""What outlives the traced steps, may be the optimizer's, and is not reachable from it; None: the trace failed."""

PEAK_ALLOCATED = _bytes("peak_allocated_bytes")
"""Of training steps alone, those of the warm-up left out where there are others: evaluations and the run's own
checks allocate between turns, and a compiler tries its kernels while it warms up."""
PEAK_RESERVED = _bytes("peak_reserved_bytes")
RSS_PEAK = _bytes("rss_peak_bytes")
"""Since the process began until the last turn's end, imports and model construction included."""
RSS_GROWTH = _bytes("rss_growth_bytes")
"""From the end of the warm-up to the end of the run: what leaks shows here."""
RSS = _bytes("rss_bytes", over_steps="max", keep_series=True)


class Memory:
    """Bytes of parameters, gradients, optimizer state and buffers; the allocator's peaks; resident memory.

    Tensors are walked after the first turn and after the last step, and the larger of the two is reported: what an
    engine frees between steps (gradients set to None) counts where it was seen. The state is a lower bound where
    the traced steps show memory that an optimizer may keep where nobody finds it.
    """

    def __init__(self) -> None:
        self._observed: Observed | None = None
        self._held: dict[Category, int] = {}
        self._steps = 0
        self._reported = 0
        self._settled: tuple[int, int] | None = None
        self._turn_begun = self._measured = False
        self._peaks: dict[str, int | None] = {}
        self._resident_peak: int | None = None

    def start(self, observed: Observed) -> None:
        """Take the run's engine."""
        self._observed = observed

    def mark(self, phase: Phase, step: int) -> None:
        """Forget the allocator's peak of what came between two turns, as the first step of a turn begins."""
        if self._turn_begun or self._observed is None:
            return
        self._turn_begun = True
        if self._observed.world.device.type != "cpu":
            _ask("reset_peak_memory_stats", self._observed.world.device)

    def observe(self, step: int, result: StepResult) -> None:
        """Count the steps."""
        self._steps = step + 1

    def turn(self) -> Iterable[Reading]:
        """Report resident memory, take the peaks of the steps since the last turn; walk the tensors once."""
        if self._observed is None or self._steps == self._reported:
            return
        self._take_peaks(self._observed, warming_up=self._reported < self._observed.spec.warmup_steps)
        if not self._reported:
            self._walk(self._observed)
        self._reported = self._steps
        resident = resident_bytes()
        if self._settled is None and self._steps >= self._observed.spec.warmup_steps:
            self._settled = (self._steps, resident)
        yield Reading(RSS, series=(resident,), steps=(self._steps,))

    def evaluated(self, step: int, train_time_s: float, values: Mapping[str, float]) -> None:
        """Nothing to take."""

    def stop(self) -> Iterable[Reading]:
        """Report what the tensors hold and the peaks."""
        assert self._observed is not None, "start() comes first"
        self._walk(self._observed)
        for category, info in CATEGORIES.items():
            yield Reading(info, value=self._held[category])
        yield Reading(PEAK_ALLOCATED, value=self._peaks.get("max_memory_allocated"))
        yield Reading(PEAK_RESERVED, value=self._peaks.get("max_memory_reserved"))
        yield Reading(RSS_PEAK, value=self._resident_peak)
        # No growth can be told where nothing came after the turn in which the warm-up ended.
        known = self._settled is not None and self._settled[0] < self._steps
        grown = resident_bytes() - self._settled[1] if known and self._settled is not None else None
        yield Reading(RSS_GROWTH, value=grown)

    def traced(self, traced: Traced) -> Iterator[Reading]:
        """Report the memory that nobody claims and the optimizer may keep."""
        trace = traced.trace
        found = None if trace is None else unclaimed(trace.storages, trace.marks, COUNTED_STEP)
        yield Reading(UNCLAIMED, value=found)

    def _take_peaks(self, observed: Observed, *, warming_up: bool) -> None:
        """Keep the peaks of a turn that has just ended, before anything else allocates."""
        self._turn_begun = False
        self._resident_peak = peak_resident_bytes()
        device = observed.world.device
        if device.type == "cpu":
            return
        if not warming_up and not self._measured:
            self._measured, self._peaks = True, {}
        for what in ("max_memory_allocated", "max_memory_reserved"):
            found, before = _ask(what, device), self._peaks.get(what)
            self._peaks[what] = found if before is None or found is None else max(found, before)

    def _walk(self, observed: Observed) -> None:
        for category, held in occupied(observed.engine.tensors()).items():
            self._held[category] = max(held, self._held.get(category, 0))


def occupied(tensors: Iterable[tuple[Category, Tensor]]) -> dict[Category, int]:
    """Return the bytes of memory that each category occupies in this process, every byte counted once.

    Views, tied weights and flat buffers with their slices share memory; what counts is the addresses covered.

    Args:
        tensors: with their categories, in any order.
    """
    spans: dict[Category, dict[str, list[Span]]] = {category: {} for category in CATEGORIES}
    for category, tensor in tensors:
        for part in local_parts(tensor):
            place = extent(part)
            if place is not None:
                spans[category].setdefault(place.device, []).append((place.first, place.end))
    held: dict[Category, int] = {}
    covered: dict[str, list[Span]] = {}  # by device: two devices may use the same addresses
    for category, by_device in spans.items():
        held[category] = 0
        for device, found in by_device.items():
            before = covered.get(device, [])
            covered[device] = union([*before, *found])
            held[category] += length(covered[device]) - length(before)
    return held


def resident_bytes() -> int:
    """Return the memory that this process occupies now, in bytes."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return int(psutil.Process().memory_info().rss)
    return pages * resource.getpagesize()


def peak_resident_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Return the most memory that this process ever occupied, in bytes.

    Args:
        status: the kernel's account of the process; without it getrusage is asked, which on Linux may carry
            the peak of the program that started this one.
    """
    try:
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _ask(what: str, device: torch.device) -> int | None:
    """Ask torch.accelerator's allocator; None where the backend keeps no such account."""
    try:
        answer = getattr(torch.accelerator, what)(device)
    except (AttributeError, RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    return None if answer is None else int(answer)
