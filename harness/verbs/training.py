"""What ``optbench run`` does: every run of a plan, then the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.invocation import command
from harness.verbs import here
from harness.verbs.console import FAILED, INTERRUPTED, console, errors, exit_code, output, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from harness.machine import Machine
    from harness.plan import Plan
    from harness.record import RunRecord
    from harness.store import Store, SweepLog


def run(
    found: Plan, store: Store, log: SweepLog, master_port: int | None, *, proving: Machine | None, as_json: bool
) -> int:
    """Run the plan; print the records of all its cells, also when interrupted.

    ``proving``: the machine that proves the optimizers right first; None: nothing is proved.
    """
    from harness.reports.table import render
    from harness.verbs import verifying
    from harness.verbs.display import SweepDisplay
    from launch import sweep
    from launch.building import Kernels

    interrupted = False
    try:
        with log, SweepDisplay(console(stderr=True), [cell.spec for cell in found.cells]) as display:
            pending = store.pending(store.read_sweep(log.sweep_id))
            built = Kernels(display.tell)

            def prove(indices: Sequence[int]) -> Mapping[int, Mapping[str, JsonValue]]:
                assert proving is not None, "asked only where something is to be proved"
                return verifying.for_runs(found, indices, proving, store, display.tell, built=built)

            sweep.run(
                found,
                store,
                log,
                display,
                pending=pending,
                master_port=master_port,
                built=built,
                prove=None if proving is None else prove,
            )
    except KeyboardInterrupt:
        interrupted = True
    except OSError as error:
        errors.print(f"optbench: cannot write results: {error}", markup=False, style="red")
        return FAILED
    ended = records(store, log.sweep_id)
    if as_json:
        rows = [{"run_id": r.run_id, "outcome": r.outcome, "reason": r.reason} for r in ended]
        from harness.checks.curves import parted

        notes = parted(ended, store.root)
        print_json({"sweep": log.sweep_id, "runs": rows, "notes": notes, "entry_points": here.faults()})
    else:
        output.print(render(ended, store.root), crop=False)
        again = _next_words(ended, log.sweep_id, store.root, interrupted=interrupted)
        errors.print(again, style="dim", markup=False)
    return INTERRUPTED if interrupted else exit_code([record.outcome for record in ended])


def records(store: Store, sweep_id: str) -> list[RunRecord]:
    """Return the records of a sweep's runs, in the order in which they were asked for.

    One whose folder is gone, or cannot be read, is a record too, which says so.
    """
    from harness.reports.standing import results_of

    sweep = store.read_sweep(sweep_id)
    pairs = zip(sweep.started, sweep.run_ids, strict=True)
    return [
        results_of(store.attempt(run_id, spec.model_dump(mode="json")))
        for spec, run_id in pairs
        if run_id is not None
    ]


def _next_words(ended: Sequence[RunRecord], sweep_id: str, results: Path, *, interrupted: bool) -> str:
    if interrupted:
        again = command("run", "--resume", sweep_id, results=results)
        return f"Interrupted; what is finished is kept. Go on with:\n  {again}"
    example = next((r.run_id for r in ended if r.outcome == "completed"), "latest")
    return f"""This table again:          {command("show", sweep_id, results=results)}
Everything about one run:  {command("show", example, results=results)}
All optimizers:            {command("list", "optimizers")}
Your own:                  --optimizer package.module:Class, in place of a name"""
