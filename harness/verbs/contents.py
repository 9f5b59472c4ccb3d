"""What ``optbench show`` lists: the latest runs of a store, and what else it holds."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.errors import OptbenchError
from harness.invocation import command
from harness.reports import quantities
from harness.reports.printable import copied, printable
from harness.run_ids import kind_of
from harness.varying import varying

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.store import RunRow, Store

RECENT = 50
"""Runs in the list; ``--json`` has them all."""

FEW = 10
"""Sweeps, comparisons and certificates in the list, of each."""


def document(store: Store) -> dict[str, Any]:
    """Return what ``--json`` prints: a row for each run, and the ids of all else, by kind."""
    found: dict[str, Any] = {"runs": [row.model_dump(mode="json") for row in store.runs()]}
    found |= {f"{kind}s": [] for kind in SUMMARIES}
    for each in store.every_id():
        if kind_of(each) != "run":
            found.setdefault(f"{kind_of(each)}s", []).append(each)
    return found


def render(store: Store) -> RenderableType:
    """Return the latest runs, and the latest of what else there is."""
    ids = store.every_id()
    if not ids:
        start = command("run", "quickstart", results=store.root)
        return Group(Text(f"Nothing in {store.root} yet. Start with:"), copied(f"  {start}"))
    rows = store.runs()
    parts: list[RenderableType] = [runs(rows, store.root) if rows else Text("No runs.")]
    for kind, summary in SUMMARIES.items():
        found = [each for each in ids if kind_of(each) == kind]
        if found:
            parts += [Text(""), _others(kind, found, store, summary)]
    parts += [Text(""), copied(f"One of them: {command('show', ids[-1], results=store.root)}", style="dim")]
    return Group(*parts)


def runs(rows: Sequence[RunRow], store: Path) -> RenderableType:
    """Return the latest runs of a store as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("run", "workload", "optimizer", "strategy", "outcome"):
        table.add_column(name, overflow="fold", no_wrap=name in {"run", "strategy"})
    table.add_column("step", justify="right", no_wrap=True)
    enough = _distinct([row.run_id for row in rows])
    for row, words in zip(rows[-RECENT:], _apart(rows[-RECENT:]), strict=True):
        table.add_row(
            row.run_id[:enough],  # to be copied from one line of 80 columns
            " ".join(filter(None, (row.workload, row.size))),
            Text(printable(f"{row.optimizer or ''} {words}".strip())),
            f"{row.strategy or ''} x{row.world_size or '?'}",
            row.problem or row.outcome or "running",
            quantities.seconds(row.step_time_s),
        )
    left_out = len(rows) - RECENT
    every = command("show", "--json", results=store)
    more = [copied(f"{left_out} earlier runs; all of them: {every}", style="dim")] if left_out > 0 else []
    return Group(table, *more)


def _apart(rows: Sequence[RunRow]) -> list[str]:
    """Return for each run whatever tells it from those of its workload, optimizer and strategy."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault((row.workload, row.size, row.optimizer, row.strategy, row.world_size), []).append(index)
    found = [""] * len(rows)
    for indexes in alike.values():
        fields = ("precision", "device", "seed", "steps")
        told = [{field: getattr(rows[i], field) for field in fields} | rows[i].options for i in indexes]
        for index, words in zip(indexes, varying(told), strict=True):
            found[index] = words
    return found


def _distinct(sorted_ids: Sequence[str], least: int = 20) -> int:
    """Return how many characters tell each id from all others."""
    length = least
    for one, other in itertools.pairwise(sorted_ids):
        while one[:length] == other[:length] and length < len(one):
            length += 1
    return length


def _others(kind: str, ids: Sequence[str], store: Store, summary: Callable[[Store, str], str]) -> RenderableType:
    """Return the latest of one kind, a line each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(kind, no_wrap=True)
    table.add_column("", overflow="fold")
    enough = _distinct(ids, least=len(kind) + 21)
    for each in ids[-FEW:]:
        try:
            told = summary(store, each)
        except (OptbenchError, OSError) as error:
            told = f"unreadable: {error}"
        table.add_row(each[:enough], Text(printable(told)))
    left_out = len(ids) - FEW
    return Group(table, *([Text(f"{left_out} earlier {kind}s", style="dim")] if left_out > 0 else []))


def _sweep(store: Store, found: str) -> str:
    sweep = store.read_sweep(found)
    started = sum(run_id is not None for run_id in sweep.run_ids)
    return f"{sweep.name}: {started} of {len(sweep.specs)} runs started"


def _comparison(store: Store, found: str) -> str:
    from harness.verbs import comparing

    made = comparing.load(store, found)[1]
    return f"{' against '.join([made.arms[0].name, ', '.join(a.name for a in made.arms[1:])])}: {made.outcome}"


def _certificate(store: Store, found: str) -> str:
    from harness.verbs import verifying

    made = verifying.load(store, found)
    return f"{made.optimizer}, {made.strategy} {made.precision}: {made.outcome}"


SUMMARIES: dict[str, Callable[[Store, str], str]] = {
    "sweep": _sweep,
    "comparison": _comparison,
    "certificate": _certificate,
}
"""By kind, what the list tells of one in a line."""
