"""The memory ledger: what each category held in a traced step, what theory says of it, and what nobody claims."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from harness.collectors.memory import CATEGORIES as HELD
from harness.interfaces import Category, Reading
from harness.record import MetricInfo
from harness.tracing.ledger import CATEGORIES, LedgerCategory, balance
from harness.tracing.recording import COUNTED_STEP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from harness.interfaces import Observed
    from harness.tracing.ledger import Ledger
    from harness.tracing.reading import Traced


STATE = HELD["state"]


def _bytes(name: str) -> MetricInfo:
    # The fullest rank decides whether a job fits; per_rank keeps the others.
    beside = STATE.at_least_beside if name == "state" else None
    return MetricInfo(name=f"ledger_{name}_bytes", unit="B", better="lower", at_least_beside=beside)


ENGINES: tuple[Category, ...] = get_args(Category)

PEAK = _bytes("peak")
"""The largest sum of live storages in the traced step; the categories at the peak add up to it."""
LARGEST: dict[LedgerCategory, MetricInfo] = {each: _bytes(each) for each in CATEGORIES}
"""Each category's own largest sum, whenever in the step it was."""
AT_PEAK: dict[LedgerCategory, MetricInfo] = {each: _bytes(f"{each}_at_peak") for each in CATEGORIES}
EXPECTED: dict[Category, MetricInfo] = {
    each: MetricInfo(name=f"ledger_{each}_expected_bytes", unit="B", better="neither") for each in ENGINES
}
GROWTH = _bytes("unattributed_growth")
"""A step: unattributed bytes at its end above those at the end of the one before."""
HOST_PEAK = _bytes("host_peak")
"""Where the model is on an accelerator: the same for host memory (offloaded state), beside it and not in it."""
HOST: dict[LedgerCategory, MetricInfo] = {each: _bytes(f"host_{each}") for each in CATEGORIES}
ALLOCATOR = _bytes("allocator_peak")
"""The device allocator's own account of the traced steps; None on CPUs."""
RSS = _bytes("rss_above_imports")
"""The most resident memory seen at the traced steps' marks, above that of the imports. Beside the ledger, never in
it: it has what torch's allocators never saw (numpy arrays, bytes, what a strategy imports as it starts)."""


class MemoryLedger:
    """Bytes of parameters, gradients, state, activations, temporaries, … in a traced step; what nobody claims.

    Traced are storages that torch's allocators gave. Claims come from the engine's live tensors, looked at as each
    phase begins, from the arguments of collectives, and from lifetimes; never from the theory beside them.
    """

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
        """Report the ledger of the device that the model is on, and that of the host beside it."""
        trace, expected = traced.trace, traced.expected
        ledger = host = None
        if trace is not None:
            device = trace.device
            ledger = balance(trace.storages, trace.marks, COUNTED_STEP, lambda each: each == device)
            if device != "cpu":
                host = balance(trace.storages, trace.marks, COUNTED_STEP, lambda each: each == "cpu")
        yield Reading(PEAK, value=ledger.peak_bytes if ledger else None)
        for category in CATEGORIES:
            yield Reading(LARGEST[category], value=ledger.largest[category] if ledger else None)
            yield Reading(AT_PEAK[category], value=ledger.at_peak[category] if ledger else None)
        for each in ENGINES:
            held = None if expected is None else expected.held_bytes.get(each)
            yield Reading(EXPECTED[each], value=held)
        yield Reading(GROWTH, value=ledger.unattributed_growth_bytes if ledger else None)
        yield Reading(ALLOCATOR, value=trace.allocator_peak_bytes if trace else None)
        yield Reading(RSS, value=trace.rss_bytes - traced.imported_rss_bytes if trace else None)
        yield from _on_host(host)


def _on_host(host: Ledger | None) -> Iterator[Reading]:
    if host is not None:
        yield Reading(HOST_PEAK, value=host.peak_bytes)
        for category, held in host.largest.items():
            yield Reading(HOST[category], value=held)
