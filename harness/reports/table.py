"""The table for people: speed relative to the best of its group, memory and loss beside it, failures as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.checks.curves import amplifies, parted
from harness.record import is_evaluation
from harness.reports import ledger, quantities
from harness.reports.printable import copied, printable
from harness.targets import short
from harness.varying import varying

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.record import RunRecord

CAUTION = (
    "Times of runs made one after another: on a shared machine differences under about 10 % mean little.\n"
    "step: median of the slowest rank's; opt: clipping and update alone; rel: step / best step of the group."
)

LONGEST_HEAD = 40

SHORT_OUTCOME = {"unsupported": "unsupp.", "timed_out": "timed out", "out_of_memory": "memory"}
"""For a narrow column; the whole word and the reason stand below the table."""

SHORT = {"validation_loss": "val loss", "validation_accuracy": "val acc", "validation_auc": "val auc"}
"""Heads of evaluations; another's is its name, a word a line."""


def render(records: Sequence[RunRecord], results: Path | None = None) -> RenderableType:
    """Return one table a group (workload, size, strategy, ranks, precision, batch), in the order given.

    Args:
        records: of the runs.
        results: the store that they are in; None: no matter.
    """
    parts: list[RenderableType] = []
    for members in grouped(records):
        parts += [_heading(members[0]), _table(members), *_notes(members), Text("")]
    for note in parted(records, results):
        words, _, again = note.partition("\n")
        parts += [Text(f"  {words}", style="red"), copied(f"    {again}", style="red")]
    if any(record.outcome == "completed" for record in records):
        parts.append(Text(CAUTION, style="dim"))
    return Group(*parts)


def grouped(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Return the runs whose speeds can stand in one table, in the order given."""
    groups: dict[tuple[Any, ...], list[RunRecord]] = {}
    for record in records:
        groups.setdefault(_group(record), []).append(record)
    return list(groups.values())


def _group(record: RunRecord) -> tuple[Any, ...]:
    fields = ("workload", "size", "strategy", "world_size", "precision", "device", "global_batch", "steps")
    return tuple(str(record.spec.get(field)) for field in fields)


def _heading(record: RunRecord) -> Text:
    return Text("  |  ".join(heading(record)), style="bold")


def heading(record: RunRecord) -> list[str]:
    """Return what the runs of a group share."""
    spec = record.spec
    ranks = f"{spec.get('world_size')} rank{'s' if spec.get('world_size') != 1 else ''}"
    device = "cpu" if spec.get("device") == "cpu" else "gpu"
    return [
        f"{short(str(spec.get('workload')))} {spec.get('size') or ''}".strip(),
        f"{spec.get('strategy')}, {ranks}, {device}",
        str(spec.get("precision")),
        f"batch {spec.get('global_batch')}",
        f"{spec.get('steps')} steps",
    ]


def _table(members: Sequence[RunRecord]) -> Table:
    evaluation = evaluation_of(members)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, expand=False)
    table.add_column("optimizer", overflow="fold", ratio=1)
    for name in ("step", "rel", "opt", "state", "peak", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    if evaluation is not None:
        table.add_column(Text(head(evaluation)), justify="right", overflow="fold", min_width=8)
    best = best_step(members)
    for record, named in zip(members, labels(members), strict=True):
        name = printable(named)  # a stranger's: as Text it is no markup of rich's
        if record.outcome == "completed":
            table.add_row(Text(name), *row(record, best, evaluation))
        else:
            table.add_row(Text(name), Text(SHORT_OUTCOME.get(record.outcome, record.outcome), style="red"))
    return table


def labels(members: Sequence[RunRecord]) -> list[str]:
    """Name each optimizer, and whatever else tells the members of the group apart."""
    words = varying([each.spec for each in members], shown=("optimizer",))
    names = [str(each.spec.get("optimizer")) for each in members]
    return [f"{short(name, names)} {told}".strip() for name, told in zip(names, words, strict=True)]


def best_step(members: Sequence[RunRecord]) -> float | None:
    """Return the shortest step time of a group, in seconds; None: no run has one."""
    known = [_step(record) for record in members if record.outcome == "completed"]
    return min((step for step in known if step is not None), default=None)


def row(record: RunRecord, best: float | None, evaluation: str | None) -> list[str | Text]:
    """Return a completed run's cells: step, rel, opt, state, peak, loss and, where there is one, evaluation."""
    step = _step(record)
    relative = "-" if step is None or best is None else f"{step / best:.2f}x"
    peak = _value(record, "peak_allocated_bytes")
    cells: list[str | Text] = [
        quantities.seconds(step),
        Text(relative, style="green" if step is not None and step == best else ""),
        quantities.seconds(_value(record, "optimizer_time_s")),
        quantities.bound(record.metrics.get("optimizer_state_bytes")),
        quantities.size(peak if peak is not None else _value(record, "rss_peak_bytes")),
        quantities.number(_value(record, "train_loss"), digits=4),
    ]
    if evaluation is not None:
        found = record.metrics.get(evaluation)
        cells.append(quantities.UNKNOWN if found is None else quantities.metric(found, found.value, digits=4))
    return cells


def head(evaluation: str) -> str:
    """Return the head of an evaluation's column."""
    return SHORT.get(evaluation, printable(evaluation.replace("_", " "), LONGEST_HEAD))


def evaluation_of(members: Sequence[RunRecord]) -> str | None:
    """Choose the one evaluation to show, accuracy where there is one; None: the workload evaluates nothing."""
    found = {m.name: m for each in members for m in each.metrics.values() if is_evaluation(m)}
    words = ("accuracy", "auc", "loss")
    ranked = sorted(found.values(), key=lambda m: (m.better == "neither", *(word not in m.name for word in words)))
    return ranked[0].name if ranked else None


def _notes(members: Sequence[RunRecord]) -> Sequence[RenderableType]:
    """Explain failures, name cells that ran the same code, and pass on what records warn of."""
    notes = []
    for record, name in zip(members, labels(members), strict=True):
        if record.outcome != "completed":
            told = f"{record.outcome.replace('_', ' ')}: {record.reason or 'no reason recorded'}"
            notes.append(Text(f"  {name} {told} [{record.run_id}]"))
        flagged = [ledger.lower_bound(record), ledger.unattributed(record), amplifies(record)]
        notes += [Text(f"  {name}: {note}", style="yellow") for note in [*record.notes, *filter(None, flagged)]]
    return notes + same_code(members)


def same_code(members: Sequence[RunRecord]) -> list[Text]:
    """Name the runs whose optimizer step called the very same operators on the same class."""
    first: dict[str, RunRecord] = {}
    notes = []
    for record in members:
        optimizer = record.facts.get("optimizer")
        operators = record.facts.get("step_operators")
        if record.outcome != "completed" or not operators or not isinstance(optimizer, dict):
            continue
        twin = first.setdefault(f"{optimizer.get('class')} {operators}", record)
        here, there = record.spec.get("optimizer"), twin.spec.get("optimizer")
        if here != there:
            notes.append(f"  {here} ran the same operators as {there}: the same code")
    return [Text(note, style="yellow") for note in dict.fromkeys(notes)]


def _step(record: RunRecord) -> float | None:
    return _value(record, "step_time_s")


def _value(record: RunRecord, name: str) -> float | None:
    metric = record.metrics.get(name)
    return metric.value if metric is not None else None
