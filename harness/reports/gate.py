"""A gate for people: the verdict first, what did not pass, and the rest in one line or folded away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.gating.model import RANKING
from harness.reports.markdown import code, escaped
from harness.reports.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gating.model import Gate, Row

STYLES = {"passed": "green", "regressed": "bold red", "inconclusive": "yellow", "invalid": "bold red"}
MARKS = {"passed": "🟢", "regressed": "🔴", "inconclusive": "🟡", "invalid": "⛔"}

MEANING = {
    "passed": "nothing got worse beyond its margin.",
    "regressed": "something got worse.",
    "inconclusive": "too little evidence to pass; a larger budget or margin decides.",
    "invalid": "there is no evidence to judge by.",
}


def render(gate: Gate) -> RenderableType:
    """Return the gate for a terminal."""
    title = Text.assemble((gate.verdict, STYLES[gate.verdict]), f": {gate.name}: {MEANING[gate.verdict]}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("verdict", "of", "cell"):
        table.add_column(name, no_wrap=name != "cell", overflow="fold")
    table.add_column("what", overflow="fold", ratio=1)
    for row in _sorted(gate.rows):
        told = "; ".join(filter(None, [row.what, numbers(row), row.detail]))
        table.add_row(
            Text(row.verdict, style=STYLES[row.verdict]),
            row.axis,
            Text(printable(row.cell)),
            Text(printable(told)),
        )
    remedies = dict.fromkeys(row.remedy for row in gate.rows if row.verdict != "passed" and row.remedy)
    notes = [Text(f"  remedy: {printable(each)}") for each in remedies]
    notes += [Text(f"  {printable(each)}", style="dim") for each in gate.notes]
    return Group(title, table, *notes, Text(f"  {gate.spent_s:.0f} s", style="dim"))


def markdown(gate: Gate) -> str:
    """Return the gate for a pull request's comment or a job's summary."""
    parts = [f"### {MARKS[gate.verdict]} optbench gate {code(gate.name)}: {gate.verdict}", MEANING[gate.verdict]]
    told = [row for row in _sorted(gate.rows) if row.verdict != "passed"]
    passed = [row for row in gate.rows if row.verdict == "passed"]
    if told:
        parts.append(_table(told))
    remedies = dict.fromkeys(row.remedy for row in told if row.remedy)
    if remedies:
        parts.append("\n".join(f"- {escaped(each)}" for each in remedies))
    if passed:
        parts.append(_folded(f"{len(passed)} passed", _table(passed)))
    if gate.notes:
        parts.append(_folded("Notes", "\n".join(f"- {escaped(each)}" for each in gate.notes)))
    return "\n\n".join(parts) + "\n"


def document(gate: Gate) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {**gate.model_dump(mode="json"), "verdict": gate.verdict}


def numbers(row: Row) -> str:
    """Write ratio, bounds and margin of a row; empty: it has none."""
    if row.ratio is None:
        return ""
    words = [f"x{row.ratio:.4g}"]
    if row.low is not None and row.high is not None:
        words.append(f"(99 %: {row.low:.4g} to {row.high:.4g})")
    if row.margin is not None:
        words.append(f"margin {row.margin:.2%}")
    if row.smallest_effect is not None:
        words.append(f"could have seen {row.smallest_effect:.2%}")
    return " ".join(words)


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: RANKING.index(row.verdict))


def _table(rows: Sequence[Row]) -> str:
    lines = ["| verdict | of | cell | what |", "| :-- | :-- | :-- | :-- |"]
    for row in rows:
        told = "; ".join(escaped(each) for each in (row.what, numbers(row), row.detail) if each)
        lines.append(f"| {MARKS[row.verdict]} {row.verdict} | {row.axis} | {code(row.cell)} | {told} |")
    return "\n".join(lines)


def _folded(summary: str, inside: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{inside}\n\n</details>"
