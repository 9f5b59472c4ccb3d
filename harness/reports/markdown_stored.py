"""Stored runs side by side as Markdown: what moved first, conditions next, times folded away under their label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.compare import SITTINGS
from harness.reports.markdown import code, escaped, folded
from harness.reports.stored import (
    FEW,
    MOST_ROWS,
    bounded,
    counted,
    metric_label,
    moved,
    quantity,
    rank,
    shown_times,
    shown_value,
    told,
    unmatched_lines,
)
from harness.reports.words import times

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.compare import Side, StoredComparison, StoredPair


def markdown(found: StoredComparison) -> str:
    """Return stored runs for a pull request's comment or a job's summary."""
    parts = [part for pair in found.pairs for part in _pair(pair)]
    if found.alone:
        lines = [f"- {_named(side)}: {escaped(side.outcome.replace('_', ' '))}" for side in found.alone[:FEW]]
        lines += [f"- {len(found.alone) - FEW} more"] if len(found.alone) > FEW else []
        if found.unmatched is not None:
            parts.append("\n".join(f"- {escaped(line.strip())}" for line in unmatched_lines(found.unmatched)))
        parts += ["**Without a partner**", "\n".join(lines)]
    return "\n\n".join(parts or ["No runs to compare."]) + "\n"


def _pair(pair: StoredPair) -> list[str]:
    parts = [f"### {_headline(pair)}", f"- A: {_named(pair.a)}\n- B: {_named(pair.b)}"]
    if pair.refused is not None:
        parts.append(f"**Not compared**: {escaped(pair.refused)}")
    changed = sorted(pair.changed, key=rank)
    if changed:
        counts = [
            (code(each.name), escaped(counted(each.a)), escaped(counted(each.b)), moved(each))
            for each in changed[:MOST_ROWS]
        ]
        parts.append(_table(("count", "A", "B", "change"), counts))
    if pair.bounded:
        parts.append("\n".join(f"- {escaped(bounded(each))}" for each in pair.bounded))
    if pair.losses is not None:
        parts.append(f"Losses: {escaped(told(pair.losses)[0])}")
    if pair.differences:
        unlike = [
            (code(each.what), code(shown_value(each.a)), code(shown_value(each.b))) for each in pair.differences
        ]
        parts.append(folded(f"{len(pair.unlike)} unlike conditions", _table(("difference", "A", "B"), unlike)))
    timed = shown_times(pair)
    if timed:
        cells = (
            (escaped(metric_label(each.name)), quantity(each, each.a), quantity(each, each.b), times(each.ratio))
            for each in timed
        )
        parts.append(folded(f"Times: {SITTINGS}", _table(("time", "A", "B", "B/A"), cells)))
    return parts


def _headline(pair: StoredPair) -> str:
    if pair.refused is not None:
        return "⛔ not compared"
    known = sum(each.same is not None for each in pair.exact)
    parted = pair.losses is not None and pair.losses.parted_at is not None
    losses = ", losses part" if parted else ""
    if pair.changed:
        return f"🔴 {len(pair.changed)} of {known} exact counts differ{losses}"
    return f"{'🔴' if parted else '🟢'} all {known} exact counts equal{losses}"


def _named(side: Side) -> str:
    return f"{code(side.name)} {escaped(side.where)} ({code(side.run_id)})"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"| :-- {'| --: ' * (len(heads) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])
