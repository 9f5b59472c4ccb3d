"""Step time and its phases, throughput, model FLOP/s: host clock on CPUs, device events on accelerators."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Protocol

import torch

from harness.collectors.peaks import peak_flops
from harness.interfaces import Phase, Reading
from harness.record import MetricInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.interfaces import Observed

PHASES = (Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)


def _seconds(name: str) -> MetricInfo:
    return MetricInfo(name=name, unit="s", better="lower")


STEP = _seconds("step_time_s")
PHASE_INFO = {phase: _seconds(f"{phase.value}_time_s") for phase in PHASES}
STARTUP = MetricInfo(name="startup_time_s", unit="s", better="lower", over_steps="last")


def _rate(name: str, unit: str) -> MetricInfo:
    # The slowest rank's step is the job's, hence the smallest rate.
    return MetricInfo(name=name, unit=unit, better="higher", scope="job", across_ranks="min")


class Clock(Protocol):
    """Notes instants without waiting for the device, and tells their distances once it has been synchronised."""

    def note(self) -> None:
        """Note now."""
        ...

    def distances(self) -> list[float]:
        """Return the seconds between neighbouring notes since the last call, and forget them."""
        ...


class HostClock:
    """CPU work is over when the call returns: the host's monotonic clock is right."""

    def __init__(self) -> None:
        self._notes: list[int] = []

    def note(self) -> None:
        """Note now."""
        self._notes.append(time.perf_counter_ns())

    def distances(self) -> list[float]:
        """Return the seconds between neighbouring notes."""
        notes, self._notes = self._notes, []
        return [(later - earlier) * 1e-9 for earlier, later in itertools.pairwise(notes)]


class EventClock:
    """Accelerator work is queued: events are stamped by the device when it gets there."""

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._spare: list[torch.Event] = []
        self._notes: list[torch.Event] = []

    def note(self) -> None:
        """Record an event in the current stream."""
        event = self._spare.pop() if self._spare else torch.Event(self._device_type, enable_timing=True)
        event.record()
        self._notes.append(event)

    def distances(self) -> list[float]:
        """Return the seconds between neighbouring events, which must have happened."""
        notes, self._notes = self._notes, []
        found = [
            float(earlier.elapsed_time(later)) * 1e-3 for earlier, later in itertools.pairwise(notes)
        ]  # torch gives milliseconds
        self._spare += notes
        return found


class Timing:
    """Durations from phase marks; every step's sample is kept."""

    def __init__(self) -> None:
        self._marks: list[tuple[Phase, int]] = []
        self._clock: Clock = HostClock()
        self._observed: Observed | None = None
        self._started_unix_s: float | None = None

    def start(self, observed: Observed) -> None:
        """Choose the clock of the rank's device."""
        self._observed = observed
        device = observed.world.device.type
        self._clock = HostClock() if device == "cpu" else EventClock(device)

    def mark(self, phase: Phase, step: int) -> None:
        """Note the instant and what begins."""
        if self._started_unix_s is None:
            self._started_unix_s = time.time()
        self._marks.append((phase, step))
        self._clock.note()

    def turn(self) -> Iterable[Reading]:
        """Report the turn's steps; a phase that the engine did not separate is unknown."""
        marks, self._marks = self._marks, []
        spent: dict[int, dict[Phase, float]] = {}
        for (phase, step), duration in zip(marks, self._clock.distances(), strict=False):
            phases = spent.setdefault(step, {})
            if phase is not Phase.END:  # from the end of a step to the next is the harness's own time
                phases[phase] = phases.get(phase, 0.0) + duration
        steps = [phases for phases in spent.values() if phases]
        totals = [sum(phases.values()) for phases in steps]
        yield Reading(STEP, series=totals)
        for phase, info in PHASE_INFO.items():
            yield Reading(info, series=[phases.get(phase) for phases in steps])
        yield from self._rates(totals)

    def _rates(self, totals: Sequence[float]) -> Iterable[Reading]:
        observed = self._observed
        assert observed is not None, "start() comes first"
        spec, size = observed.spec, observed.workload.size(observed.spec.size)
        batch = spec.global_batch or size.global_batch
        yield Reading(_rate("samples_per_s", "1/s"), series=[batch / t for t in totals])
        if size.tokens_per_sample:
            tokens = batch * size.tokens_per_sample
            yield Reading(_rate("tokens_per_s", "1/s"), series=[tokens / t for t in totals])
        flops = observed.flops_per_step
        if flops is None:
            return
        yield Reading(_rate("model_flops_per_s", "1/s"), series=[flops / t for t in totals])
        peak = peak_flops(observed.world.device, spec.precision)
        if peak is not None:
            job_peak = peak * observed.world.size
            yield Reading(_rate("mfu", "1"), series=[flops / t / job_peak for t in totals])

    def evaluated(self, step: int, train_time_s: float, values: Mapping[str, float]) -> None:
        """Nothing to take: evaluation is not timed."""

    def stop(self) -> Iterable[Reading]:
        """Report how long it took from the launcher's start to the first step."""
        observed = self._observed
        known = observed is not None and observed.process_started_unix_s is not None
        if known and self._started_unix_s is not None and observed is not None:
            yield Reading(STARTUP, value=self._started_unix_s - (observed.process_started_unix_s or 0.0))
        else:
            yield Reading(STARTUP, value=None)
