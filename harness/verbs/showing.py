"""What ``optbench show`` prints."""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.reports import ledger, quantities

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.record import Metric, RunRecord
    from harness.store import RunRow

RECENT = 50

UNWATCHED = "(which operators its step calls is seen from two warm-up steps on)"


def runs(rows: Sequence[RunRow], store: Path) -> RenderableType:
    """Return the latest runs of a store as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("run", "workload", "optimizer", "strategy", "outcome"):
        table.add_column(name, overflow="fold", no_wrap=name in {"run", "strategy"})
    table.add_column("step", justify="right", no_wrap=True)
    enough = _distinct([row.run_id for row in rows])
    for row in rows[-RECENT:]:
        table.add_row(
            row.run_id[:enough],  # to be copied from one line of 80 columns
            " ".join(filter(None, (row.workload, row.size))),
            row.optimizer or "",
            f"{row.strategy or ''} x{row.world_size or '?'}",
            row.problem or row.outcome or "running",
            quantities.seconds(row.step_time_s),
        )
    if not rows:
        return Text(f"No runs in {store}. Start with: optbench run quickstart")
    left_out = len(rows) - RECENT
    more = [Text(f"{left_out} earlier runs: optbench show --json lists all.", style="dim")] if left_out > 0 else []
    return Group(table, *more)


def _distinct(sorted_ids: Sequence[str], least: int = 20) -> int:
    """Return how many characters tell each id from all others."""
    length = least
    for one, other in itertools.pairwise(sorted_ids):
        while one[:length] == other[:length] and length < len(one):
            length += 1
    return length


def run(record: RunRecord) -> RenderableType:
    """Return a run's spec, what really ran, its memory and communication, and every other metric."""
    spec = {key: value for key, value in record.spec.items() if value not in (None, {}, [])}
    parts: list[RenderableType] = [
        Text(f"run {record.run_id}: {record.outcome}", style="bold"),
        *([Text(record.reason, style="red")] if record.reason else []),
        Text(""),
        Text(", ".join(f"{key}={value}" for key, value in spec.items())),
        Text(""),
        *_facts(record),
        *_environment(record),
        *_checks(record),
        *ledger.render(record),
        *([] if record.outcome == "wrong" else [_metrics(record)]),
        *(Text(note, style="yellow") for note in record.notes),
    ]
    return Group(*parts)


def _facts(record: RunRecord) -> list[RenderableType]:
    optimizer = record.facts.get("optimizer")
    if not isinstance(optimizer, dict):
        return []
    ran_as = record.facts.get("ran_as")
    return [
        Text(f"ran {optimizer.get('class')} {f'as {ran_as}' if ran_as else UNWATCHED}"),
        Text(f"constructor: {optimizer.get('arguments')}", style="dim"),
        Text(""),
    ]


def _checks(record: RunRecord) -> list[RenderableType]:
    """Return what was looked at while it ran, the verdicts together."""
    checks = record.facts.get("checks")
    found: dict[str, list[str]] = {}
    for name, each in checks.items() if isinstance(checks, dict) else ():
        if isinstance(each, dict):
            found.setdefault(str(each.get("verdict")), []).append(name)
    told = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in found.items())
    return [Text(f"checks {told}"), Text("")] if told else []


def _environment(record: RunRecord) -> list[RenderableType]:
    """Return where it ran, in a few lines; the rest is in ``--json``."""
    found = record.environment
    if not found.hardware:
        return []
    accelerators = found.hardware.get("accelerators")
    listed = accelerators if isinstance(accelerators, list) else []
    devices = [str(each.get("name")) for each in listed if isinstance(each, dict)]
    optbench = found.source.get("optbench")
    commit = optbench.get("commit") if isinstance(optbench, dict) else None
    changed = " with changes" if isinstance(optbench, dict) and optbench.get("dirty") else ""
    words = [
        f"{found.hardware.get('cpu')}, {found.hardware.get('cores_usable')} cores",
        *(f"{count} x {name}" for name, count in Counter(devices).items()),
        f"torch {found.software.get('torch')}",
        f"Python {found.software.get('python')}",
        *([f"optbench {str(commit)[:9]}{changed}"] if commit else []),
    ]
    return [
        Text(f"on {found.hardware.get('hostname')}: {', '.join(words)}"),
        Text(shlex.join(found.command)),
        Text(""),
    ]


def _metrics(record: RunRecord) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("metric", overflow="fold")
    for name in ("value", "p10", "p90", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    for metric in record.metrics.values():
        if ledger.is_told(metric.name):
            continue
        quantiles = metric.quantiles or {}
        table.add_row(
            metric.name,
            f"{'>= ' if metric.at_least else ''}{_format(metric, metric.value)}",
            *(_format(metric, quantiles.get(q)) if quantiles else "" for q in ("p10", "p90", "p99")),
        )
    return table


def _format(metric: Metric, value: float | None) -> str:
    if metric.unit == "s":
        return quantities.seconds(value)
    if metric.unit == "By" or metric.name.endswith("_bytes"):
        return quantities.size(value)
    if metric.name.endswith("_per_s"):
        return quantities.rate(value)
    return quantities.number(value)
