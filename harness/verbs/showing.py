"""What ``optbench show ID`` prints."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.checks.curves import amplifies
from harness.errors import InvalidInputError, Problem
from harness.invocation import command
from harness.record import is_curve
from harness.reports import ledger, quantities
from harness.reports.printable import copied, printable
from harness.reports.standing import results_of
from harness.run_ids import kind_of
from harness.verbs.console import output, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.record import Metric, RunRecord
    from harness.store import Store

UNWATCHED = "(which operators its step calls is seen from two warm-up steps on)"


def show(store: Store, found: str, *, as_json: bool) -> None:
    """Print what has this id.

    Raises:
        CorruptFileError: it is damaged; the message names the file.
        InvalidInputError: it is of a kind that this optbench does not know.
    """
    kind = kind_of(found)
    if kind not in KINDS:
        what = f"is a {kind}, which this optbench cannot show"
        raise InvalidInputError([Problem(found, what, f"read {store.root / found}, or upgrade optbench")])
    KINDS[kind](store, found, as_json=as_json)


def _run(store: Store, found: str, *, as_json: bool) -> None:
    record = results_of(store.read(found))
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        output.print(run(record), crop=False)


def _sweep(store: Store, found: str, *, as_json: bool) -> None:
    from harness.checks.curves import parted
    from harness.reports.table import render
    from harness.verbs import training

    sweep, records = store.read_sweep(found), training.records(store, found)
    pending = len(store.pending(sweep))
    if as_json:
        runs = [record.model_dump(mode="json") for record in records]
        told = {"sweep": found, "name": sweep.name, "pending": pending}
        print_json({**told, "runs": runs, "notes": parted(records, store.root)})
        return
    output.print(Text(f"{found}: {printable(sweep.name)}", style="bold"))
    output.print(render(records, store.root), crop=False)
    if pending and store.sweep_is_running(found):
        output.print(f"Still running: {pending} of {len(sweep.specs)} runs to go.")
    elif pending:
        again = command("run", "--resume", found, results=store.root)
        output.print(f"{pending} of {len(sweep.specs)} runs to go. Go on with:")
        output.print(copied(f"  {again}"), soft_wrap=True)


def _comparison(store: Store, found: str, *, as_json: bool) -> None:
    from harness.verbs import compared, comparing

    compared.show_stored(found, comparing.load(store, found)[1], store, as_json=as_json)


def _certificate(store: Store, found: str, *, as_json: bool) -> None:
    from harness.verbs import verifying

    made = verifying.load(store, found)
    if as_json:
        print_json(verifying.one_document(found, made))
    else:
        output.print(verifying.page(found, made))


KINDS: dict[str, Callable[..., None]] = {
    "run": _run,
    "sweep": _sweep,
    "comparison": _comparison,
    "certificate": _certificate,
}
"""What prints each kind."""


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
        *_verification(record),
        *ledger.render(record),
        *([] if record.outcome == "wrong" else [_metrics(record)]),
        *(Text(note, style="yellow") for note in (*record.notes, amplifies(record)) if note),
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


def _verification(record: RunRecord) -> list[RenderableType]:
    """Return what is proved of its optimizer."""
    found = record.verification
    words = [found.get("outcome"), found.get("cause"), found.get("reason"), found.get("certificate")]
    told = ": ".join(str(each) for each in words if each)
    return [Text(f"optimizer {printable(told)}"), Text("")] if told else []


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
        copied(shlex.join(found.command)),
        Text(""),
    ]


def _metrics(record: RunRecord) -> RenderableType:
    """Return a row a metric: of a sample its percentiles, of a curve its ends and its best point."""
    samples, curves = (
        _table("metric", "value", "p10", "p90", "p99"),
        _table("curve", "first", "last", "best", "at step"),
    )
    for metric in record.metrics.values():
        if ledger.is_told(metric.name):
            continue
        name = Text(printable(metric.name))
        if is_curve(metric):
            curves.add_row(name, *_ends(metric))
            continue
        # Of what grows over the steps, memory say, percentiles would tell nothing.
        quantiles = metric.quantiles if metric.series_steps is None else None
        samples.add_row(
            name,
            f"{'>= ' if metric.at_least else ''}{quantities.metric(metric, metric.value)}",
            *(quantities.metric(metric, quantiles.get(q)) if quantiles else "" for q in ("p10", "p90", "p99")),
        )
    return Group(samples, Text(""), curves) if curves.row_count else samples


def _ends(metric: Metric) -> list[str]:
    """Return a curve's first, last and best value, and the step of the best; empty where none is better."""
    series = metric.series or ()
    steps = metric.series_steps or range(1, len(series) + 1)
    ends = [quantities.metric(metric, value) for value in (series[:1] + series[-1:])]
    known = [(value, step) for step, value in zip(steps, series, strict=True) if value is not None]
    finite = [(value, step) for value, step in known if math.isfinite(value)]
    if metric.better == "neither" or not finite:
        return [*ends, "", ""]
    sign = 1 if metric.better == "lower" else -1
    best, step = min(finite, key=lambda each: sign * each[0])
    return [*ends, quantities.metric(metric, best), str(step)]


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
