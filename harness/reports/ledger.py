"""The memory ledger and the communication of one run, for people: measured, expected, and the ratio of the two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from harness.reports import quantities
from harness.tracing.collectives import COLLECTIVES
from harness.tracing.ledger import CATEGORIES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from harness.record import RunRecord

UNATTRIBUTED_LIMIT = 0.1
"""Share of the peak above which storages that nobody claims are flagged, where they grow or are not small:"""

UNATTRIBUTED_LEAST = 2**20
"""Bytes. A few kilobytes are most of what a model of two parameters holds."""

BESIDE = (
    ("allocator's peak", "ledger_allocator_peak_bytes"),
    ("host memory's peak", "ledger_host_peak_bytes"),
    ("resident above imports", "ledger_rss_above_imports_bytes"),
)
"""What stands beside the ledger and is no part of its sum."""


def is_told(name: str) -> bool:
    """Whether a metric stands in one of these tables."""
    return name.startswith("ledger_") or (
        name.startswith("communication_") and name != "communication_buffer_bytes"
    )


def unattributed(record: RunRecord) -> str | None:
    """Return the warning about storages that nobody claims, or None."""
    at_peak, peak = _ranks(record, "ledger_unattributed_at_peak_bytes"), _ranks(record, "ledger_peak_bytes")
    grown = _value(record, "ledger_unattributed_growth_bytes")
    least = 0 if grown else UNATTRIBUTED_LEAST
    pairs = zip(at_peak, peak, strict=False)
    shares = [held / whole for held, whole in pairs if held is not None and whole and held > least]
    if max(shares, default=0.0) <= UNATTRIBUTED_LIMIT:
        return None
    grows = f", {quantities.size(grown)} more a step" if grown else ""
    return f"{max(shares):.0%} of the peak is unattributed: storages that nobody claims{grows}"


def lower_bound(record: RunRecord) -> str | None:
    """Say of a state that is a lower bound what is missing in it, or None."""
    state = record.metrics.get("optimizer_state_bytes")
    if state is None or not state.at_least:
        return None
    missing = _value(record, "unclaimed_state_bytes")
    words = "whether there is more could not be traced"
    if missing:
        words = (
            f"{quantities.size(missing)} more outlive a step, and nothing that the optimizer holds refers to them"
        )
    return f"its state is at least {quantities.size(state.value)}: {words}"


def render(record: RunRecord) -> list[RenderableType]:
    """Return the tables of a run that was traced; nothing for one that was not."""
    return [*_ledger(record), *_communication(record)]


def _ledger(record: RunRecord) -> list[RenderableType]:
    if _value(record, "ledger_peak_bytes") is None:
        return []
    table = _table("memory", "largest", "expected", "ratio", "at the peak")
    for category in CATEGORIES:
        largest = _value(record, f"ledger_{category}_bytes")
        expected = _value(record, f"ledger_{category}_expected_bytes")
        if largest or expected:
            table.add_row(
                category,
                quantities.bound(record.metrics.get(f"ledger_{category}_bytes")),
                quantities.size(expected),
                _ratio(largest, expected),
                quantities.size(_value(record, f"ledger_{category}_at_peak_bytes")),
            )
    table.add_row("sum", "", "", "", quantities.size(_value(record, "ledger_peak_bytes")))
    for words, name in BESIDE:
        if _value(record, name) is not None:
            table.add_row(Text(words, style="dim"), quantities.size(_value(record, name)), "", "", "")
    told = unattributed(record)
    return [table, *([Text(f"! {told}", style="yellow")] if told else []), Text("")]


def _communication(record: RunRecord) -> list[RenderableType]:
    if _value(record, "communication_payload_bytes") is None:
        return []
    table = _table("a step", "number", "payload", "expected", "ratio")
    for collective in COLLECTIVES:
        sent = _value(record, f"communication_{collective}_payload_bytes")
        expected = _value(record, f"communication_{collective}_expected_bytes")
        if sent or expected:
            table.add_row(
                _with_dtypes(record, collective),
                quantities.number(_value(record, f"communication_{collective}_per_step")),
                quantities.size(sent),
                quantities.size(expected),
                _ratio(sent, expected),
            )
    if not table.row_count:
        return []
    words = f"by rings {quantities.size(_value(record, 'communication_wire_bytes'))} a rank (derived)"
    spent, hidden = (_value(record, f"communication_{each}_s") for each in ("time", "hidden_time"))
    if spent is not None:
        words += f"; {quantities.seconds(spent)} on the device, {quantities.seconds(hidden)} of it behind compute"
    return [table, Text(words, style="dim"), Text("")]


def _with_dtypes(record: RunRecord, collective: str) -> str:
    """Name a collective with the dtypes of its tensors."""
    first, last = f"communication_{collective}_", "_payload_bytes"
    names = [name for name in record.metrics if name.startswith(first) and name.endswith(last)]
    dtypes = [name.removeprefix(first).removesuffix(last) for name in names if name != first[:-1] + last]
    return f"{collective.replace('_', '-')} {', '.join(dtypes)}".rstrip()


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _ratio(measured: float | None, expected: float | None) -> str:
    return f"{measured / expected:.2f}" if measured is not None and expected else quantities.UNKNOWN


def _value(record: RunRecord, name: str) -> float | None:
    metric = record.metrics.get(name)
    return metric.value if metric is not None else None


def _ranks(record: RunRecord, name: str) -> tuple[float | None, ...]:
    metric = record.metrics.get(name)
    return metric.per_rank if metric is not None else ()
