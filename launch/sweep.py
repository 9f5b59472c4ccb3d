"""Runs the cells of a plan one after another; whatever becomes of one, the others go on."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

from harness.summary import summarise
from harness.verification.proofs import NOT_ASKED, NOT_PROVED, barred
from launch import local

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from harness.plan import Cell, Plan
    from harness.record import Outcome, RunRecord
    from harness.store import Store, SweepLog
    from launch.building import Kernels


class Display(Protocol):
    """Shows a sweep while it runs."""

    def begin(self, cell: Cell, position: int, total: int) -> None:
        """A cell starts, number ``position`` (from 1) of ``total``."""
        ...

    def steps(self, done: int) -> None:
        """The running cell has done so many steps."""
        ...

    def end(self, record: RunRecord) -> None:
        """A cell has ended."""
        ...

    def tell(self, text: str) -> None:
        """Something else to know, a kernel being built say."""
        ...


def run(
    plan: Plan,
    store: Store,
    log: SweepLog,
    display: Display,
    *,
    pending: Collection[int],
    master_port: int | None = None,
    built: Kernels,
    prove: Callable[[Sequence[int]], Mapping[int, Mapping[str, JsonValue]]] | None = None,
) -> None:
    """Run what can run, write a row for what cannot.

    Cells that need no kernel are proved and trained first, so that their rows do not wait for a compiler. Then the
    kernels of the others are built, and after that those are proved and trained.

    Args:
        plan: all cells of the sweep.
        store: where the runs go.
        log: told which run belongs to which cell.
        display: shows what happens.
        pending: indices of the cells to run; an earlier start has finished the others.
        master_port: of the rendezvous; None: a free one each time.
        built: builds the kernels.
        prove: given indices of cells, returns by index what is proved of the cell's optimizer; a cell proved
            wrong, or that needs what it does not declare, is not started. None: nothing is to be proved, and the
            records say so.

    Raises:
        KeyboardInterrupt: after the running cell was stopped and written down as incomplete.
        OSError: the results cannot be written any more.
    """
    for cell in plan.cells:
        if cell.unsupported is not None and cell.index in pending:
            display.end(_row(cell, store, log, "unsupported", cell.unsupported))
    cells = [cell for cell in plan.runnable() if cell.index in pending]
    position = 0
    for stage in _stages(cells):
        if stage[0].kernels:
            display.begin(stage[0], position + 1, len(cells))  # the run that waits; its own time begins below
        reasons = built.build([cell.spec for cell in stage])
        proofs = None if prove is None else prove([cell.index for cell in stage])
        for cell, reason in zip(stage, reasons, strict=True):
            position += 1
            proof = NOT_ASKED if proofs is None else proofs.get(cell.index, NOT_PROVED)
            refused = barred(proof)
            if refused is not None:
                display.end(_row(cell, store, log, *refused, proof))
            elif reason is not None:
                display.end(_row(cell, store, log, "failed", reason, proof))
            else:
                display.begin(cell, position, len(cells))
                display.end(_run(cell, store, log, display, master_port, proof))


def _stages(cells: Sequence[Cell]) -> Iterator[Sequence[Cell]]:
    """Yield the cells that need no kernel, then those that do; the plan's order runs them so."""
    for _, stage in itertools.groupby(cells, key=lambda cell: bool(cell.kernels)):
        yield list(stage)


def _row(
    cell: Cell,
    store: Store,
    log: SweepLog,
    outcome: Outcome,
    reason: str,
    proof: Mapping[str, JsonValue] | None = None,
) -> RunRecord:
    folder = store.new_run(cell.spec)
    log.started(cell.index, folder.name, cell.spec)
    return store.finish(folder.name, outcome, reason, verification=proof)


def _run(
    cell: Cell,
    store: Store,
    log: SweepLog,
    display: Display,
    master_port: int | None,
    proof: Mapping[str, JsonValue],
) -> RunRecord:
    folder = store.new_run(cell.spec)
    log.started(cell.index, folder.name, cell.spec)
    try:
        ended = local.run(cell.spec, folder, display.steps, master_port)
    except KeyboardInterrupt:
        store.finish(folder.name, "incomplete", "interrupted", verification=proof)
        raise
    if ended.rank_files_first and summarise(folder).outcome not in {"completed", "incomplete"}:
        return store.finish(folder.name, verification=proof)  # a rank wrote down what went wrong
    return store.finish(folder.name, ended.outcome, ended.reason, verification=proof)
