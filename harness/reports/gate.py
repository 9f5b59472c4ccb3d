"""A gate's outcome for a terminal, for a pull request and as JSON: what did not pass first, the rest in a line."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from harness.gating.model import RANKING
from harness.reports import quantities
from harness.reports.comparison import draw
from harness.reports.document import finite
from harness.reports.encoded import Encoded
from harness.reports.forest import Forest
from harness.reports.forest import row as forest_row
from harness.reports.markdown import code, escaped, folded
from harness.reports.printable import copied, printable
from harness.reports.words import interval_of, percent, times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gating.model import Gate, Row

STYLES = {"passed": "green", "regressed": "red", "inconclusive": "yellow", "invalid": "red"}
MARKS = {"passed": "🟢", "regressed": "🔴", "inconclusive": "🟡", "invalid": "⛔"}
MEANING = {
    "passed": "nothing got worse beyond its margin",
    "regressed": "something got worse",
    "inconclusive": "too little evidence to pass or to fail",
    "invalid": "there is no evidence to judge by",
}
NAME = 40
"""Characters of a name beside a plot."""


def render(gate: Gate) -> RenderableType:
    """Return the gate for a terminal or a pipe."""
    spent = quantities.duration(gate.spent_s)
    title = f"gate {printable(gate.name)}: {gate.verdict}: {MEANING[gate.verdict]} ({spent} spent)"
    parts: list[RenderableType] = [Text(title, style=f"bold {STYLES[gate.verdict]}")]
    cell = None
    for row in _worst_first(gate.rows):
        if row.cell != cell:
            parts.append(Text(f"  {printable(row.cell)}", style="bold"))
            cell = row.cell
        parts.append(Text(f"    {row.verdict}: {row.axis}: {_told(row)}", style=STYLES[row.verdict]))
    for each in _remedies(gate):
        words, _, again = each.partition("\n")
        parts += [Text(f"    {printable(words)}"), *([copied(f"      {again}")] if again else [])]
    passed = Counter(row.axis for row in gate.rows if row.verdict == "passed" and not row.reservation)
    quiet = passed.pop("self-check", 0)
    if passed:
        parts.append(Text("  passed: " + ", ".join(f"{axis} {count}" for axis, count in passed.items())))
    parts += [Text(f"  {printable(each)}", style="yellow") for each in _reservations(gate)]
    if quiet:
        parts.append(Text("  self-check: no alarm"))
    plot = forest(gate)
    parts += [Text(""), draw(plot)] if plot is not None else []
    parts += [Text(f"  note: {printable(note)}", style="dim") for note in gate.notes]
    return Encoded(Group(*parts))


def markdown(gate: Gate) -> str:
    """Return the gate for a pull request's comment or a job's summary."""
    parts = [
        f"### {MARKS[gate.verdict]} optbench gate {code(gate.name)}: {gate.verdict}",
        f"{MEANING[gate.verdict]}; {quantities.duration(gate.spent_s)} spent".capitalize(),
    ]
    failing = _worst_first(gate.rows)
    passing = [row for row in gate.rows if row.verdict == "passed"]
    if failing:
        parts.append(_table(failing))
    if remedies := _remedies(gate):
        parts.append("\n".join(f"- {escaped(each)}" for each in remedies))
    if reservations := _reservations(gate):
        parts.append("\n".join(f"- {escaped(each)}" for each in reservations))
    if passing:
        parts.append(folded(f"{len(passing)} passed", _table(passing)))
    if gate.notes:
        parts.append(folded("Notes", "\n".join(f"- {escaped(each)}" for each in gate.notes)))
    return "\n\n".join(parts) + "\n"


def document(gate: Gate) -> dict[str, Any]:
    """Return what ``--json`` prints: every number finite or null."""
    numbers = ("ratio", "low", "high", "margin", "smallest_effect")
    return {
        "kind": gate.kind,
        "version": gate.version,
        "name": gate.name,
        "verdict": gate.verdict,
        "rows": [row.model_dump() | {each: finite(getattr(row, each)) for each in numbers} for row in gate.rows],
        "notes": list(gate.notes),
        "spent_s": finite(gate.spent_s),
    }


def forest(gate: Gate) -> Forest | None:
    """Return the gate's ratios as a plot, its widest margin shaded; None: it has none."""
    known = [row for row in gate.rows if row.ratio is not None]
    rows = tuple(
        forest_row(
            printable(f"{row.what} {row.cell}", NAME),
            row.ratio,
            row.low,
            row.high,
            row.verdict,
            significant=row.verdict == "regressed",
        )
        for row in known
    )
    margin = max((row.margin for row in known if row.margin is not None), default=0.0)
    return Forest("now against the baseline", rows, margin, left="better", right="worse") if rows else None


def _worst_first(rows: Sequence[Row]) -> list[Row]:
    cells = list(dict.fromkeys(row.cell for row in rows))
    failing = [row for row in rows if row.verdict != "passed"]
    return sorted(failing, key=lambda row: (cells.index(row.cell), RANKING.index(row.verdict)))


def _reservations(gate: Gate) -> list[str]:
    """Return what keeps rows that passed from being proofs, and of which cells."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in gate.rows:
        if row.verdict == "passed" and row.reservation:
            cells.setdefault((row.axis, row.reservation), []).append(row.cell)
    return [f"{axis} of {', '.join(dict.fromkeys(names))}: {told}" for (axis, told), names in cells.items()]


def _remedies(gate: Gate) -> list[str]:
    """Return what to do, each thing once; of several cells it names those that it is for."""
    cells: dict[str, list[str]] = {}
    for row in gate.rows:
        if row.verdict != "passed" and row.remedy:
            cells.setdefault(row.remedy, []).append(row.cell)
    if len({row.cell for row in gate.rows}) < 2:
        return list(cells)
    return [f"{', '.join(dict.fromkeys(names))}: {remedy}" for remedy, names in cells.items()]


def _told(row: Row) -> str:
    return "; ".join(printable(each) for each in (row.what, _numbers(row), row.detail) if each)


def _numbers(row: Row) -> str:
    """Write ratio, interval and margin; empty: there are none."""
    if row.ratio is None:
        return ""
    words = [times(row.ratio)]
    if row.low is not None or row.high is not None:
        words.append(f"({interval_of(row.low, row.high)})")
    if row.margin is not None:
        words.append(f"margin {percent(row.margin)}")
    if row.smallest_effect is not None and row.verdict == "inconclusive":
        words.append(f"could have seen {percent(row.smallest_effect)}")
    return " ".join(words)


def _table(rows: Sequence[Row]) -> str:
    lines = ["| verdict | of | cell | what | ratio | found |", "| :-- | :-- | :-- | :-- | :-- | :-- |"]
    lines += [
        f"| {MARKS[row.verdict]} {row.verdict} | {row.axis} | {code(row.cell)} | {escaped(row.what)} "
        f"| {escaped(_numbers(row))} | {escaped(row.detail)} |"
        for row in rows
    ]
    return "\n".join(lines)
