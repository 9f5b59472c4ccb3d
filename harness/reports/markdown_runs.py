"""Runs as Markdown: a table a group, failures as rows, their reasons folded away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.checks.curves import parted
from harness.reports.ledger import lower_bound
from harness.reports.markdown import code, escaped, folded
from harness.reports.standing import results_of
from harness.reports.table import CAUTION, best_step, evaluation_of, grouped, head, heading, labels, row, same_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.record import RunRecord

COLUMNS = ("optimizer", "step", "rel", "opt", "state", "peak", "loss")


def markdown(records: Sequence[RunRecord]) -> str:
    """Return runs for a pull request's comment or a job's summary; of a wrong run no number."""
    shown = [results_of(record) for record in records]
    parts = [part for members in grouped(shown) for part in _group(members)]
    parts += [f"> **Warning** {escaped(note)}" for note in parted(shown)]
    if any(record.outcome == "completed" for record in shown):
        parts.append(f"<sub>{escaped(CAUTION)}</sub>")
    return "\n\n".join(parts or ["No runs."]) + "\n"


def _group(members: Sequence[RunRecord]) -> list[str]:
    evaluation, best = evaluation_of(members), best_step(members)
    named = list(zip(members, labels(members), strict=True))
    heads = [*COLUMNS, *([head(evaluation)] if evaluation is not None else [])]
    lines = [
        f"| {' | '.join(escaped(each) for each in heads)} |",
        f"| :-- {'| --: ' * (len(heads) - 1)}|",
        *(_line(record, name, best, evaluation, len(heads)) for record, name in named),
    ]
    notes = [each for record, name in named for each in _notes(record, name)]
    notes += [f"- {escaped(each.plain.strip())}" for each in same_code(members)]
    folds = [folded(f"{len(notes)} note{'s' if len(notes) > 1 else ''}", "\n".join(notes))] if notes else []
    return [f"**{escaped(', '.join(heading(members[0])))}**", "\n".join(lines), *folds]


def _line(record: RunRecord, name: str, best: float | None, evaluation: str | None, width: int) -> str:
    if record.outcome == "completed":
        cells = [escaped(str(cell)) for cell in row(record, best, evaluation)]
    else:
        cells = [f"**{record.outcome.replace('_', ' ')}**", *[""] * (width - 2)]
    return f"| {' | '.join([code(name), *cells])} |"


def _notes(record: RunRecord, name: str) -> list[str]:
    notes = [escaped(note) for note in record.notes]
    if bounded := lower_bound(record):
        notes.append(escaped(bounded))
    if record.outcome != "completed":
        notes.insert(0, escaped(record.reason or "no reason recorded"))
    return [f"- {code(name)}: {note}" for note in notes]
