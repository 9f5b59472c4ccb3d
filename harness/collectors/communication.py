"""Communication: collectives of a traced step by kind and dtype, what they carry, and the time that they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.interfaces import Reading
from harness.record import MetricInfo
from harness.tracing.collectives import COLLECTIVES
from harness.tracing.storages import intersection, length, union

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from harness.interfaces import Collective, Observed
    from harness.tracing.collectives import Call
    from harness.tracing.reading import Traced
    from harness.tracing.recording import Trace

ALWAYS: tuple[Collective, ...] = ("all_reduce", "reduce_scatter", "all_gather", "broadcast")
"""Told of even where there are none."""


def _count(name: str) -> MetricInfo:
    return MetricInfo(name=f"communication_{name}_per_step", unit="1", better="lower")


def _bytes(name: str) -> MetricInfo:
    return MetricInfo(name=f"communication_{name}_bytes", unit="B", better="lower")


PAYLOAD = _bytes("payload")
"""A step's: of the whole (unsharded) tensor for each collective, counted."""
WIRE = _bytes("wire")
"""What a rank would send for it by rings, 2(N-1)/N of an all-reduce say: derived from the payload, never measured,
as the backend may do it otherwise."""
TIME = MetricInfo(name="communication_time_s", unit="s", better="lower")
"""A step's: with a collective kernel on the device; None where the profiler sees no kernels (CPUs)."""
HIDDEN = MetricInfo(name="communication_hidden_time_s", unit="s", better="higher", across_ranks="min")
"""The part of it with a computing kernel on the device at the same time."""


class Communication:
    """Collectives of a step: number and payload by kind and dtype, ring traffic derived, time on the device."""

    def start(self, observed: Observed) -> None:
        """Nothing to do before the pass."""

    def turn(self) -> Iterable[Reading]:
        """Nothing to report from measured steps."""
        return ()

    def evaluated(self, step: int, train_time_s: float, values: Mapping[str, float]) -> None:
        """Nothing to take."""

    def stop(self) -> Iterable[Reading]:
        """Nothing to report from measured steps."""
        return ()

    def traced(self, traced: Traced) -> Iterator[Reading]:
        """Report what the traced steps sent, a step on average."""
        trace = traced.trace
        known = trace is not None and not trace.captured
        steps = trace.calls if trace is not None and known else ()
        calls = [call for step in steps for call in step]
        yield from _totals(calls, len(steps))
        for collective in COLLECTIVES:
            mine = [call for call in calls if call.collective == collective]
            predicted = None if traced.expected is None else traced.expected.payload_bytes.get(collective, 0.0)
            if mine or predicted or collective in ALWAYS:
                yield from _of(collective, mine, len(steps))
                info = MetricInfo(name=f"communication_{collective}_expected_bytes", unit="B", better="neither")
                yield Reading(info, value=predicted)
            for dtype in sorted({call.dtype for call in mine}):
                yield from _of(f"{collective}_{dtype}", [c for c in mine if c.dtype == dtype], len(steps))
        yield from _times(trace)


def _totals(calls: Sequence[Call], steps: int) -> Iterator[Reading]:
    wires = [call.wire_bytes for call in calls]
    known = [wire for wire in wires if wire is not None]
    yield Reading(PAYLOAD, value=_mean(sum(call.payload_bytes for call in calls), steps))
    yield Reading(WIRE, value=_mean(sum(known), steps) if len(known) == len(wires) else None)


def _of(name: str, calls: Sequence[Call], steps: int) -> Iterator[Reading]:
    yield Reading(_count(name), value=_mean(len(calls), steps))
    yield Reading(_bytes(f"{name}_payload"), value=_mean(sum(call.payload_bytes for call in calls), steps))


def _mean(total: float, steps: int) -> float | None:
    """Return a step's share, whole where it is; None without steps."""
    if not steps:
        return None
    return total // steps if total % steps == 0 else total / steps


def _times(trace: Trace | None) -> Iterator[Reading]:
    spent = hidden = None
    if trace is not None and trace.collective_kernels is not None and trace.other_kernels is not None:
        sending, computing = union(trace.collective_kernels), union(trace.other_kernels)
        steps = len(trace.calls)
        spent = length(sending) * 1e-9 / steps
        hidden = length(intersection(sending, computing)) * 1e-9 / steps
    yield Reading(TIME, value=spent)
    yield Reading(HIDDEN, value=hidden)
