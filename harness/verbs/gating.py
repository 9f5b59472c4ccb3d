"""What ``optbench gate`` does: one look after the other at every cell, and one verdict over them."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from harness import targets
from harness.comparison.designing import TooShortError
from harness.comparison.model import STEP_TIME, Arm
from harness.counts import baseline
from harness.errors import CorruptFileError, InvalidInputError, OptbenchError, Problem
from harness.gating import counted
from harness.gating.model import Gate, Row
from harness.invocation import command
from harness.verbs.comparing import Kept, build_kernels
from launch import counting
from launch.sitting import ALLOWED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.comparison.model import Comparison
    from harness.counts.baseline import Entry
    from harness.counts.model import Counts, Measured
    from harness.gating.file import Baseline, Convergence, GateFile
    from harness.gating.model import Axis
    from harness.machine import Machine
    from harness.plan import Cell, Plan
    from harness.spec import RunSpec
    from harness.store import Store
    from harness.verification.certificate import Certificate


class LiveComparison(Protocol):
    """What compares arms live: `launch.comparing.compare`."""

    def __call__(
        self,
        arms: Sequence[Arm],
        *,
        margin: float,
        budget_s: float,
        self_check: bool,
        ready: Callable[[Comparison], bool],
        told: Callable[[str], None],
        kept: Callable[[Comparison], object],
    ) -> Comparison:
        """Return all that was measured.

        Raises:
            OptbenchError: there is nothing to compare.
        """
        ...


NOT_VERIFIED = "correctness was not looked at (--no-verify, or [gate] verify = false)"
HELD_TO_NONE = "no fault found (no reference: only the checks that need none)"
NO_TIMES = 'speed and memory were not compared live; [baseline] path = "../main" does'
NO_DRIFT = "drift was not looked at; [gate] drift_steps = 300 does"
NOTHING_ELSE = "nothing else was looked at"
NO_COUNTS = 'noise-free counts were not looked at; [baseline] counts = "counts.json" does'


@dataclass
class Session:
    """One gate on this machine.

    Attributes:
        file: what is asked.
        plan: its cells, resolved for the machine, in the file's order.
        machine: this one.
        store: where certificates and runs lie.
        told: hears what is being done.
        compare: does live comparisons.
        verify: whether every optimizer needs a certificate.
    """

    file: GateFile
    plan: Plan
    machine: Machine
    store: Store
    told: Callable[[str], None]
    compare: LiveComparison
    verify: bool = True
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Build kernels for all looks in one place: what could not be built is not tried again."""
        from launch.building import Kernels

        self.kernels = Kernels(self.told)

    @property
    def cells(self) -> list[tuple[str, Cell]]:
        """The cells that can run here, by name."""
        named = zip(self.file.cells, self.plan.cells, strict=True)
        return [(each.name, cell) for each, cell in named if cell.unsupported is None]

    def counted(self) -> list[tuple[str, Cell]]:
        """The cells that can run here, with one thread unless the file says how many.

        Kernels that share their work out allocate for it, and machines differ in cores.
        """
        alone = {each.name for each in self.file.cells if each.spec.threads is None}
        return [
            (name, cell.model_copy(update={"spec": cell.spec.model_copy(update={"threads": 1})}))
            if name in alone
            else (name, cell)
            for name, cell in self.cells
        ]

    def refuse_unsupported(self) -> None:
        """Make a row of each cell that cannot run: what was not looked at did not pass."""
        for each, cell in zip(self.file.cells, self.plan.cells, strict=True):
            if cell.unsupported is not None:
                self.rows.append(_invalid("correctness", each.name, "cannot run here", cell.unsupported))


def gate(session: Session) -> Gate:
    """Look at everything that the file asks for, and return the verdict.

    Raises:
        InvalidInputError: convergence asks for a metric that a workload does not evaluate.
        OSError: certificates cannot be written.
        KeyboardInterrupt: passed on; nothing is left running.
    """
    began = time.monotonic()
    _refuse_unknown_metrics(session)
    missing = _missing_code(session.file.baseline)
    if missing is None:
        _look(session)
    else:  # nothing that the other looks tell, some of them long, could make this one pass
        session.rows.append(missing)
        session.notes.append(NOTHING_ELSE)
    return Gate(
        name=session.file.name,
        rows=tuple(session.rows),
        notes=tuple(session.notes),
        spent_s=time.monotonic() - began,
    )


def _look(session: Session) -> None:
    session.refuse_unsupported()
    if session.verify:
        _correctness(session)
    else:
        session.notes.append(NOT_VERIFIED)
    _counts_and_drift(session)
    _speed_and_memory(session)
    _convergence(session)


def _missing_code(base: Baseline) -> Row | None:
    """Return a row where the baseline's code is not there: what is installed would be compared with itself."""
    what, remedy = None, None
    if base.path is not None and not base.path.is_dir():
        what, remedy = f"[baseline] path: there is no folder {base.path}", "check the other code out there"
    elif base.python is not None and not base.python.is_file():
        what, remedy = f"[baseline] python: there is no program {base.python}", "name an interpreter"
    if what is None:
        return None
    return _invalid("speed", "every cell", "the baseline's code", what).model_copy(update={"remedy": remedy})


def _correctness(session: Session) -> None:
    from harness.verbs import verifying

    like = {each.name: each.like for each in session.file.cells}
    for name, cell in session.cells:
        able, _ = verifying.jobs(session.plan.model_copy(update={"cells": (cell,)}), like[name])
        certificates = verifying.certified(
            able, session.machine, session.store, session.told, built=session.kernels
        )
        for folder, made in certificates:
            more = _more(cell, like[name], folder, session.store)
            session.rows.append(certificate_row(name, folder, made, more))


def certificate_row(cell: str, folder: str, made: Certificate, more: str) -> Row:
    """Return the row of one proof; what was held to no reference passes with a reservation."""
    passed = made.outcome == "passed"
    unheld = passed and made.reference is None
    return Row(
        axis="correctness",
        cell=cell,
        what=f"certificate of {made.optimizer}: {HELD_TO_NONE if unheld else made.outcome}",
        verdict="passed" if passed else "invalid",
        detail=": ".join(filter(None, [made.cause, made.reason])) or folder,
        remedy=None if passed else more,
        reservation=f'{HELD_TO_NONE}; like = "adamw", say, in its cell holds it to a reference'
        if unheld
        else None,
    )


def _more(cell: Cell, like: str | None, folder: str, store: Store) -> str:
    """Return what tells more of a proof that did not pass: its certificate, or the proof again."""
    spec = cell.spec
    words = ["show", folder]
    if not folder:
        where = ["--optimizer", spec.optimizer, "--strategy", spec.strategy, "--precision", spec.precision]
        words = ["verify", *where, *(["--nproc", str(spec.world_size)] if spec.world_size else [])]
        words += ["--like", like] if like else []
    return f"a speed counts only if the answer is right; more:\n{command(*words, results=store.root)}"


def _counts_and_drift(session: Session) -> None:
    settings, file = session.file.settings, session.file.baseline.counts
    if not settings.drift_steps:
        session.notes.append(NO_DRIFT)
    if file is None:
        session.notes.append(NO_COUNTS)
    if file is None and not settings.drift_steps:
        return
    entries = _baseline(session, file)
    if entries is None and not settings.drift_steps:
        return
    for name, cell in session.counted():
        try:
            found = measured(session, name, cell, settings.drift_steps)
            if file is not None and entries is not None:
                _judge(session, name, cell, found.counts, entries)
        except OptbenchError as error:
            session.rows.append(_invalid("counts", name, "could not be counted", str(error)))
            continue
        if settings.drift_steps:
            session.rows += counted.drifted(name, found.drift)


def _judge(session: Session, name: str, cell: Cell, now: Counts, entries: dict[str, Entry]) -> None:
    """Hold counts against the baseline; what moved is counted again, so that chance is never a finding."""
    file, ignore = session.file.baseline.counts, session.file.baseline.ignore
    assert file is not None, "there is a baseline"
    then, entry = entries.get(name), baseline.entry(cell.spec, now)
    alike = then is not None and not baseline.unlike(file, name, then, entry)
    again = None
    if then is not None and alike and counted.moved(then.counts, now, ignore):
        again = measured(session, f"{name}, again", cell, 0).counts
    rows, notes = counted.judged(file, name, then, entry, again, ignore)
    session.rows += rows
    session.notes += notes


def _baseline(session: Session, file: Path | None) -> dict[str, Entry] | None:
    if file is None:
        return None
    try:
        entries = baseline.read(file)
    except CorruptFileError as error:
        session.rows.append(_invalid("counts", "every cell", "baseline", str(error)))
        return None
    session.rows += counted.absent(file, entries, {cell.name for cell in session.file.cells})
    return entries


def _speed_and_memory(session: Session) -> None:
    """Compare every cell live, the baseline's code first, and judge all of them together."""
    settings, base = session.file.settings, session.file.baseline
    if not base.is_live:
        session.notes.append(NO_TIMES)
        return
    from harness.comparison.analysis import analyse, last_share
    from harness.gating import timed

    compared = []
    for name, cell in session.cells:
        margin = functools.partial(session.file.margin, on_cpu=cell.spec.device == "cpu")
        margins = timed.margins_of(settings.margins, margin)
        session.told(f"comparing {name} with the baseline's code, up to {settings.budget:.0f} s")
        kept = Kept(session.store)
        try:
            found = _compared(session, cell, margins, kept)
        except TooShortError as error:
            row = _invalid("speed", name, "live comparison", f"[gate] budget: {error.what}")
            enough = f'{error.why} need [gate] budget = "{error.needed_s} s" here'
            session.rows.append(row.model_copy(update={"remedy": enough}))
            continue
        except OptbenchError as error:
            what, _, log = str(error).replace(ALLOWED, "").partition("\n")
            again = command("compare", "--from", kept.name or "", results=session.store.root)
            more = f"the end of its log:\n{again}" if log and kept.name else None
            row = _invalid("speed", name, "live comparison", what)
            session.rows.append(row.model_copy(update={"remedy": more}))
            continue
        if found.reason is not None:
            session.notes.append(f"{name}: {found.reason}")
        analysis = analyse(found, comparison_id=kept.name, whole=True)
        compared.append(timed.Compared(name, analysis, last_share(found), margins))
    kept_as = {each.cell: each.analysis.comparison for each in compared}
    session.rows += [_with_launches(row, kept_as[row.cell], session.store) for row in timed.judged(compared)]


def _with_launches(row: Row, comparison: str | None, store: Store) -> Row:
    """Let the remedy of a row go on with the command that shows its launches."""
    if row.remedy is None or comparison is None:
        return row
    again = command("show", comparison, results=store.root)
    return row.model_copy(update={"remedy": f"{row.remedy}; the launches:\n{again}"})


def _compared(session: Session, cell: Cell, margins: dict[str, float], kept: Kept) -> Comparison:
    """Return the live comparison of one cell; it is stored however it ended.

    Raises:
        OptbenchError: there is none, or it did not end as planned.
        KeyboardInterrupt: it was interrupted.
    """
    from harness.comparison.analysis import analyse, last_share
    from harness.gating import timed

    family = len(margins) * len(session.cells)

    def ready(so_far: Comparison) -> bool:
        looked = timed.Compared("", analyse(so_far, whole=True), last_share(so_far), margins)
        return all(row.verdict != "inconclusive" for row in timed.judged([looked], family))

    build_kernels([cell], session.kernels)
    spec = cell.spec
    settings, base = session.file.settings, session.file.baseline
    python, path = (None if each is None else str(each) for each in (base.python, base.path))
    other = spec if base.path is None else _in_folder(spec, base.path)
    arms = (Arm(name="baseline", spec=other, python=python, path=path), Arm(name="now", spec=spec))
    found = session.compare(
        arms,
        margin=margins[STEP_TIME],
        budget_s=settings.budget,
        self_check=settings.self_check,
        ready=ready,
        told=session.told,
        kept=kept.write,
    )
    kept.write(found)
    if found.outcome == "interrupted":
        raise KeyboardInterrupt
    if found.outcome != "completed":
        raise OptbenchError(f"{found.outcome}: {found.reason}")
    return found


def _refuse_unknown_metrics(session: Session) -> None:
    asked = session.file.convergence
    if asked is None or asked.metric is None:
        return
    from harness.plan import workload_traits

    problems = []
    for workload in dict.fromkeys(cell.spec.workload for _, cell in session.cells):
        known = workload_traits(workload, session.machine).metrics
        if asked.metric not in known or (known[asked.metric] == "neither" and asked.better is None):
            what = f"{workload} evaluates no {asked.metric} that is better higher or lower"
            told = ", ".join(f"{name} ({better})" for name, better in known.items()) or "nothing"
            problems.append(Problem("convergence.metric", what, f"it evaluates {told}"))
    if problems:
        raise InvalidInputError(problems)


def _convergence(session: Session) -> None:
    """Train every cell over the seeds with both codes; what is compared is steps, which no neighbour changes."""
    if session.file.convergence is None:
        return
    from harness.gating import converged

    for name, cell in session.cells:
        try:
            row, note = _converged(session, name, cell, session.file.convergence)
        except OptbenchError as error:
            session.rows.append(_invalid("convergence", name, converged.WHAT, str(error)))
            continue
        session.rows.append(row)
        session.notes += [note] if note else []


def _in_folder(spec: RunSpec, folder: Path) -> RunSpec:
    """Return the spec with each file of the current folder that it names as the other folder has it."""
    fields = {"workload": spec.workload, "optimizer": spec.optimizer, "strategy": spec.strategy}
    return spec.model_copy(update={field: targets.moved(name, folder) for field, name in fields.items()})


def _converged(session: Session, name: str, cell: Cell, asked: Convergence) -> tuple[Row, str | None]:
    """Return the row of one cell, and a note.

    Raises:
        OptbenchError: a run did not end by itself.
    """
    from harness.gating import converged
    from harness.plan import workload_traits
    from launch import elsewhere

    if asked.metric is not None and asked.better is None:
        better = workload_traits(cell.spec.workload, session.machine).metrics[asked.metric]
        asked = asked.model_copy(update={"better": better})
    interval = cell.spec.evaluate_every or converged.finest(cell.spec.steps, asked.margin)
    each_seed = dict.fromkeys(asked.seeds)
    specs = [cell.spec.model_copy(update={"seed": each, "evaluate_every": interval}) for each in each_seed]
    base = session.file.baseline
    met = []
    for python, path, whose in ((base.python, base.path, "the baseline's code"), (None, None, "this code")):
        runs = f"{len(specs)} runs of {cell.spec.steps} steps, one after the other, beside the budget"
        session.told(f"training {name} over its seeds with {whose}: {runs}")
        theirs = specs if path is None else [_in_folder(spec, path) for spec in specs]
        records = elsewhere.train(theirs, python, path)
        failed = next((each for each in records if each.outcome not in converged.ENDED), None)
        if failed is not None:
            raise OptbenchError(f"with {whose}: {failed.outcome}: {failed.reason}")
        met.append([converged.steps_to_target(each, asked) for each in records])
    before, after = (dict(zip(each_seed, steps, strict=True)) for steps in met)
    return converged.judged(name, before, after, asked.margin, interval)


def measured(session: Session, name: str, cell: Cell, drift_steps: int) -> Measured:
    """Count one cell, and follow it further for drift.

    Raises:
        OptbenchError: it could not be counted.
    """
    session.told(f"counting {name}" + (f", {drift_steps} steps more for drift" if drift_steps else ""))
    build_kernels([cell], session.kernels)
    return counting.measure(cell.spec, drift_steps)


def _invalid(axis: Axis, cell: str, what: str, detail: str) -> Row:
    return Row(axis=axis, cell=cell, what=what, verdict="invalid", detail=detail)
