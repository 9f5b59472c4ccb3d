"""Stored runs side by side, for people and as JSON: differences, exact metrics, then times with their label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.compare import SITTINGS
from harness.invocation import command
from harness.reports import quantities
from harness.reports.encoded import Encoded
from harness.reports.printable import copied, printable
from harness.reports.words import label, times

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from harness.compare import Exact, Losses, Side, StoredComparison, StoredPair, Timed, Unmatched
    from harness.likeness import Difference

SHOWN = ("step_time_s", "data_time_s", "forward_time_s", "backward_time_s", "optimizer_time_s")
"""Times of the table; ``--json`` has them all."""

BESIDE = (
    *("compile_time_s", "samples_per_s", "tokens_per_s", "energy_joules"),
    *("rss_peak_bytes", "peak_allocated_bytes"),
)

LIVE = "For evidence time both in one sitting"

MOST_ROWS = 24
"""Counts of a pair in the table; ``--json`` has them all."""

FEW = 5
"""Runs without a partner that are listed; ``--json`` has them all."""

LONGEST = 300


def render(found: StoredComparison, results: Path | None = None) -> RenderableType:
    """Return every pair, then the runs without a partner.

    Args:
        found: what to show.
        results: the store in use; None: no matter.
    """
    parts: list[RenderableType] = []
    for pair in found.pairs:
        parts += [*_pair(pair, results), Text("")]
    if found.unmatched is not None:
        parts += [Text(line, style="yellow") for line in unmatched_lines(found.unmatched)]
    for side in found.alone[:FEW]:
        reason = f": {printable(side.reason, LONGEST)}" if side.reason and side.outcome != "completed" else ""
        parts.append(Text(f"no partner: {_named(side)} {side.outcome.replace('_', ' ')}{reason}", style="yellow"))
    more = len(found.alone) - FEW
    parts += [Text(f"{more} more without a partner: --json lists all", style="dim")] if more > 0 else []
    return Encoded(Group(*parts))


def unmatched_lines(found: Unmatched) -> list[str]:
    """Say how many runs have no partner, what keeps them from having one, and which two come nearest."""
    lines = [f"without a partner: {_runs(found.left)} of A, {_runs(found.right)} of B"]
    if found.differ:
        told = ", ".join(f"{field} ({count} of {found.left})" for field, count in found.differ.items())
        lines.append(f"  A's runs differ from the most alike of B in: {told}")
    if found.a is not None and found.b is not None and found.fields:
        values = ", ".join(
            f"{field} {shown_value(a)} / {shown_value(b)}" for field, (a, b) in found.fields.items()
        )
        lines.append(f"  nearest: A {_named(found.a)}")
        lines.append(f"           B {_named(found.b)}")
        lines.append(f"           in which differ: {values}")
    return lines


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def document(found: StoredComparison) -> dict[str, Any]:
    """Return what ``--json`` prints; times are under a key that says what they are worth."""
    return {
        "kind": found.kind,
        "pairs": [
            {
                "a": pair.a.model_dump(mode="json"),
                "b": pair.b.model_dump(mode="json"),
                "refused": pair.refused,
                "unlike": [each.model_dump(mode="json") for each in pair.unlike],
                "differences": [each.model_dump(mode="json") for each in pair.differences],
                "exact": [each.model_dump(mode="json") for each in pair.exact],
                "changed": [each.name for each in pair.changed],
                "losses": pair.losses.model_dump(mode="json") if pair.losses else None,
                "losses_not_compared": pair.losses_unlike,
                "times": {
                    "evidence": False,
                    "label": SITTINGS,
                    "metrics": {each.name: each.model_dump(mode="json", exclude={"name"}) for each in pair.timed},
                },
            }
            for pair in found.pairs
        ],
        "unmatched": found.unmatched.model_dump(mode="json") if found.unmatched is not None else None,
        "alone": [side.model_dump(mode="json") for side in found.alone],
    }


def _pair(pair: StoredPair, results: Path | None) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Text(f"A  {_named(pair.a)}", style="bold"),
        Text(f"B  {_named(pair.b)}", style="bold"),
    ]
    if pair.refused is not None:
        parts.append(Text(f"not compared: {printable(pair.refused, LONGEST)}", style="red"))
        for letter, side in (("A", pair.a), ("B", pair.b)):
            if side.outcome != "completed" and side.reason:
                parts.append(Text(f"  {letter}: {printable(side.reason, LONGEST)}"))
    told = [each for each in pair.differences if each.kind != "condition"]
    parts += _differences("They differ in", told, "")
    parts += _differences("Unlike conditions", list(pair.unlike), "yellow")
    if pair.refused is None:
        parts += [*_exact(pair), *_losses(pair), *_times(pair, results)]
    return parts


def _named(side: Side) -> str:
    return f"{printable(side.name, 60)}  {printable(side.where, 60)}  [{printable(side.run_id, 60)}]"


def _differences(title: str, found: Sequence[Difference], style: str) -> list[RenderableType]:
    if not found:
        return []
    table = _table(title, "A", "B")
    for each in found:
        table.add_row(
            Text(f"  {printable(each.what, 60)}", style=style), *(shown_value(v) for v in (each.a, each.b))
        )
    return [table]


def _exact(pair: StoredPair) -> list[RenderableType]:
    return [*_known(pair), *(Text(f"  {bounded(each)}", style="yellow") for each in pair.bounded)]


def bounded(each: Exact) -> str:
    """Say of a lower bound that it is not compared."""
    a, b = (
        f"{'at least ' if bound else ''}{counted(value)}"
        for value, bound in ((each.a, each.a_at_least), (each.b, each.b_at_least))
    )
    return f"{each.name}: {a} in A, {b} in B: not compared"


def _known(pair: StoredPair) -> list[RenderableType]:
    known = [each for each in pair.exact if each.same is not None]
    changed = list(pair.changed)
    if not known:
        return [Text("Exact: neither run has counts that the other has too", style="dim")]
    if not changed:
        return [Text(f"Exact: all {len(known)} counts and sizes are equal", style="green")]
    table = _table(f"Exact: {len(changed)} of {len(known)} differ", "A", "B", "B-A")
    for each in sorted(changed, key=rank)[:MOST_ROWS]:
        name = Text(f"  {printable(each.name, 60)}", style="red")
        table.add_row(name, Text(counted(each.a)), Text(counted(each.b)), moved(each))
    more = len(changed) - MOST_ROWS
    return [table, *([Text(f"  {more} more: --json lists all", style="dim")] if more > 0 else [])]


def rank(each: Exact) -> int:
    """Order counts by how much they tell: totals, operators, collectives, then the ledger's many parts."""
    parts = ("operator ", "communication_", "ledger_")
    return next((place for place, start in enumerate(parts, 1) if each.name.startswith(start)), 0)


def _losses(pair: StoredPair) -> list[RenderableType]:
    if pair.losses is None:
        return [Text(f"Losses: not compared: {printable(pair.losses_unlike or '', LONGEST)}", style="dim")]
    text, style = told(pair.losses)
    return [Text(f"Losses: {text}", style=style)]


def told(losses: Losses) -> tuple[str, str]:
    """Say how two loss curves compare, and in which style."""
    if losses.equal_steps == losses.steps:
        return f"equal in all {losses.steps} steps", "green"
    apart = "not finite on one side" if losses.largest is None else f"at most {losses.largest:.1e} relative"
    differ = f"differ from step {losses.equal_steps + 1} of {losses.steps} on, {apart}"
    if losses.parted_at is None:
        return f"{differ}: rounding", ""
    return f"{differ}; part in step {losses.parted_at}, which rounding does not explain", "red"


def _times(pair: StoredPair, results: Path | None) -> list[RenderableType]:
    known = shown_times(pair)
    if not known:
        return []
    table = _table(f"Times: {SITTINGS}", "A", "B", "B/A")
    for each in known:
        cells = [quantity(each, each.a), quantity(each, each.b), times(each.ratio)]
        table.add_row(*(Text(cell, style="dim") for cell in (f"  {metric_label(each.name)}", *cells)))
    if pair.live:
        again = copied(f"  {command(*pair.live, results=results)}", style="dim")
        return [table, Text(f"{LIVE}:", style="dim"), again]
    return [table, *([Text(f"{LIVE}: write a file of arms", style="dim")] if pair.live is None else [])]


def shown_times(pair: StoredPair) -> list[Timed]:
    """Return the times that a report shows, in the order of a step."""
    by_name = {each.name: each for each in pair.timed}
    return [by_name[name] for name in (*SHOWN, *BESIDE) if name in by_name and by_name[name].ratio is not None]


def metric_label(metric: str) -> str:
    """Name a metric for people; a rate keeps its unit."""
    return metric.removesuffix("_per_s") + "/s" if metric.endswith("_per_s") else label(metric)


def quantity(of: Timed, value: float | None) -> str:
    """Return a value in its unit."""
    if of.name.endswith("_bytes"):
        return quantities.size(value)
    if of.name.endswith("_per_s"):
        return f"{quantities.rate(value)}/s"
    return quantities.number(value) if of.name.endswith("_joules") else quantities.seconds(value)


def counted(value: JsonValue) -> str:
    """Return a count with its thousands apart."""
    whole = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:,.10g}" if whole else shown_value(value)


def moved(each: Exact) -> str:
    """Return by how much a count moved; empty: it is no number."""
    if isinstance(each.a, (int, float)) and isinstance(each.b, (int, float)):
        return f"{each.b - each.a:+,.10g}"
    return ""


def shown_value(value: JsonValue) -> str:
    """Return any stored value as one line."""
    if value is None:
        return "unknown"
    return printable(value if isinstance(value, str) else str(value), LONGEST)


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    table.add_column(title, overflow="fold", min_width=min(len(title), 34))
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    return table
