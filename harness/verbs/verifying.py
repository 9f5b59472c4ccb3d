"""What ``optbench verify`` shows, and the proofs that a run rests on."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.errors import CorruptFileError, InvalidInputError, Problem
from harness.optimizers.algorithms import ALGORITHMS
from harness.registry import OPTIMIZERS
from harness.reports.printable import printable
from harness.spec import suggest
from harness.varying import word_of
from harness.verification import proofs, shelf
from harness.verification.certificate import Certificate
from harness.verification.identity import Job, key, plain_job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

    from harness.machine import Machine
    from harness.plan import Plan
    from harness.spec import RunSpec
    from harness.store import Store
    from harness.verification.certificate import Check
    from launch.building import Kernels

STYLES = {"passed": "green", "wrong": "bold red", "failed": "red", "unsupported": "dim"}

LONGEST_NAME = 30
"""Characters of an optimizer's name that a table of 80 columns has room for."""


def check_like(like: str | None) -> None:
    """Refuse a word that names no algorithm.

    Raises:
        InvalidInputError: with the near ones.
    """
    if like is not None and like not in ALGORITHMS:
        remedy = suggest(like, list(ALGORITHMS))
        raise InvalidInputError([Problem(f"--like {like}", "is no algorithm with a reference", remedy)])


def jobs(plan: Plan, like: str | None) -> tuple[list[Job], list[Certificate]]:
    """Return what can be proved of a plan's cells, and a certificate that says why for each that can't be."""
    able, refused = [], []
    for cell in plan.cells:
        spec = cell.spec
        unprovable = proofs.unprovable(spec, OPTIMIZERS.get(spec.optimizer).traits)
        if cell.unsupported is None and unprovable is not None:
            refused.append(_without_proof(spec, like, "unsupported", unprovable))
        elif cell.unsupported is None:
            job = plain_job(spec, like) if spec.strategy == "single" else Job(spec=spec, like=like)
            if job not in able:
                able.append(job)
        else:
            refused.append(_without_proof(cell.spec, like, "unsupported", cell.unsupported))
    return able, refused


def _without_proof(
    spec: RunSpec, like: str | None, outcome: Literal["unsupported", "failed"], reason: str
) -> Certificate:
    return Certificate(
        optimizer=spec.optimizer,
        strategy=spec.strategy,
        precision=spec.precision,
        world_size=spec.world_size or 1,
        options=spec.optimizer_options,
        like=like,
        reference=None,
        outcome=outcome,
        reason=reason,
    )


def certified(
    asked: Sequence[Job],
    machine: Machine,
    store: Store,
    told: Callable[[str], None],
    *,
    anew: bool = False,
    quiet_s: float = math.inf,
    built: Kernels | None = None,
) -> list[tuple[str, Certificate]]:
    """Return a stored certificate for each job, made now where there is none that holds.

    Kernels that the jobs need are built before anything is proved. What is stored is a belief about the optimizer:
    that it is right, or that it is wrong; a proof that could not be made is tried again the next time.

    Args:
        asked: the jobs.
        machine: what runs them.
        store: where certificates lie.
        told: hears of each proof that is made now, and of kernels being built.
        anew: believe no stored one.
        quiet_s: after so many seconds without one a proof hangs, if not sooner.
        built: builds kernels, and knows which could not be built; None: one of its own.

    Returns:
        Name of the folder in the store (empty: not stored) and certificate, in the order asked for.

    Raises:
        OSError: a certificate cannot be written.
        KeyboardInterrupt: passed on; what was proved is stored.
    """
    from launch import proving
    from launch.building import Kernels

    keys = [key(job, machine) for job in asked]
    found = {} if anew else shelf.find(store, keys)
    missing = [job for job, each in zip(asked, keys, strict=True) if each not in found]

    def done(job: Job, made: Certificate) -> None:
        each = key(job, machine)
        made = made.model_copy(update={"key": each})
        name = shelf.save(store, made) if made.outcome in shelf.BELIEFS else ""
        found[each] = (name, made)
        told(line(made))

    reasons = (built or Kernels(told)).build([job.spec for job in missing])
    able = []
    for job, reason in zip(missing, reasons, strict=True):
        if reason is None:
            able.append(job)
        else:  # which the builder has told already
            found[key(job, machine)] = ("", _without_proof(job.spec, job.like, "failed", reason))
    if able:
        told(_proving(able))
    proving.prove(able, done, min(proving.QUIET_S, quiet_s), machine=machine)
    return [found[each] for each in keys]


def _proving(jobs: Sequence[Job]) -> str:
    names = list(dict.fromkeys(job.spec.optimizer for job in jobs))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"proving {', '.join(names[:3])}{more}"


def line(made: Certificate) -> str:
    """Tell one proof in a line."""
    where = "" if made.strategy == "single" else f" {made.strategy}"
    kind = "" if made.precision == "fp32" else f" {made.precision}"
    told = {"passed": "proved right", "wrong": "WRONG", "failed": "no proof", "unsupported": "no proof"}
    name = f"{_named(made)}{where}{kind}"
    words = f"{name}: {told[made.outcome]}"
    if made.outcome == "passed" and made.reference is None:
        words = f"{name}: no fault found (no reference: only the checks that need none)"
    if made.cause is not None:
        words += f": {made.cause}"
    elif made.reason is not None:
        words += f": {made.reason}"
    took = "" if made.took_s is None else f"  [{made.took_s:.1f} s]"
    return words + _left_out(made) + took


def _left_out(made: Certificate) -> str:
    """Name the checks that were not made, with the reason, and what the user may do about what was found."""
    absent = [f"{check.name} ({check.detail})" for check in made.checks if check.verdict == "not applicable"]
    told = [f"{check.detail}; {check.remedy}" for check in made.checks if check.remedy is not None]
    return "".join(f"; {text}" for text in [*([f"left out: {', '.join(absent)}"] if absent else []), *told])


def for_runs(
    plan: Plan,
    pending: Sequence[int],
    machine: Machine,
    store: Store,
    told: Callable[[str], None],
    quiet_s: float = math.inf,
    *,
    built: Kernels | None = None,
) -> dict[int, dict[str, JsonValue]]:
    """Return by cell what is proved of its optimizer, for the cell's record.

    Raises:
        OSError: a certificate cannot be written.
    """
    cells = [cell for cell in plan.runnable() if cell.index in pending]
    wanted: dict[str, Job] = {}
    by_cell: dict[int, str] = {}
    unproved: dict[int, dict[str, JsonValue]] = {}
    for cell in cells:
        traits = OPTIMIZERS.get(cell.spec.optimizer).traits
        if (reason := proofs.unprovable(cell.spec, traits)) is not None:
            unproved[cell.index] = {"outcome": "not verified", "reason": reason}
            continue
        if traits.owns_reduction:
            continue  # steps within a world only
        job = plain_job(cell.spec)
        by_cell[cell.index] = job.model_dump_json()
        wanted[by_cell[cell.index]] = job
    certificates = certified(list(wanted.values()), machine, store, told, quiet_s=quiet_s, built=built)
    made = dict(zip(wanted, certificates, strict=True))
    return unproved | {index: proofs.of_run(*made[job]) for index, job in by_cell.items()}


def document(found: Sequence[tuple[str, Certificate]]) -> dict[str, JsonValue]:
    """Return the JSON of some certificates, each with the name of its folder (null: not stored)."""
    return {
        "certificates": [
            {"id": name or None, **made.model_dump(mode="json", exclude={"kind", "version"})}
            for name, made in found
        ]
    }


def one_document(name: str, made: Certificate) -> dict[str, JsonValue]:
    """Return the JSON of one certificate, with the name of its folder (null: not stored)."""
    return {"id": name or None, **made.model_dump(mode="json", exclude={"version"})}


def load(store: Store, name: str) -> Certificate:
    """Return a stored certificate.

    Raises:
        CorruptFileError: it is missing or damaged; the message names the file.
    """
    document = store.document(name)
    try:
        return Certificate.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CorruptFileError(f"{store.root / name}: is no certificate: {place}: {first['msg']}") from error


def page(name: str, made: Certificate) -> RenderableType:
    """Return one certificate with every check, for a terminal."""
    checks = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    checks.add_column("check", overflow="fold")
    checks.add_column("verdict", no_wrap=True)
    for column in ("error", "bound", "step"):
        checks.add_column(column, justify="right", no_wrap=True)
    checks.add_column("tensor", overflow="fold")
    for check in made.checks:
        checks.add_row(printable(check.name), check.verdict, *(Text(cell) for cell in _worst(check)))
        if check.detail:
            checks.add_row(Text(f"  {printable(check.detail)}", style="dim"))
    subject = ", ".join(f"{key} {value}" for key, value in made.subject.items() if not isinstance(value, dict))
    parts = [
        Text(f"{name}: {printable(made.optimizer)}: {made.outcome}", style="bold"),
        *([Text(f"likely cause: {printable(made.cause)}", style="red")] if made.cause else []),
        *([Text(printable(made.reason), style="red")] if made.reason else []),
        Text(f"{made.strategy}, {made.precision}, ranks {made.world_size}, options {made.options or 'default'}"),
        Text(f"held to: {printable(made.reference or 'no reference; only the checks that need none')}"),
        *([Text(printable(subject), style="dim")] if subject else []),
        Text(""),
    ]
    return Group(*parts, checks)


def table(found: Sequence[tuple[str, Certificate]]) -> RenderableType:
    """Return a row a certificate, and below the table what is wrong and why."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    longest = max((len(made.optimizer) for _, made in found), default=0)
    shown.add_column("optimizer", overflow="fold", ratio=1, min_width=min(longest, LONGEST_NAME))
    shown.add_column("over", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    for name in ("error", "bound", "step"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("tensor", overflow="fold")
    for _, made in found:
        shown.add_row(
            _named(made),
            f"{made.strategy} {made.precision}",
            Text(made.outcome if made.outcome != "unsupported" else "unsupp.", style=STYLES[made.outcome]),
            *_worst(made.worst),
        )
    notes = [note for name, made in found for note in _notes(name, made)]
    parts: list[RenderableType] = [shown, *notes]
    if any(made.worst is not None for _, made in found):
        parts.append(
            Text("error: largest difference from the float64 reference, 1 = the update itself", style="dim")
        )
    return Group(*parts)


def _named(made: Certificate) -> str:
    """Name what was proved, with the options that it was proved with."""
    options = "".join(f" {name}={word_of(value)}" for name, value in made.options.items())
    return f"{made.optimizer}{options}" + (f" like {made.like}" if made.like else "")


def _worst(check: Check | None) -> list[str]:
    if check is None:
        return ["-", "-", "-", ""]
    numbers = ["-" if each is None else f"{each:.1e}" for each in (check.error, check.bound)]
    return [*numbers, "-" if check.step is None else str(check.step), check.tensor or ""]


def _notes(name: str, made: Certificate) -> list[Text]:
    told = functools.partial(Text, style="red" if made.outcome in {"wrong", "failed"} else "")
    label = f"  {_named(made)}"
    notes = [told(printable(f"{label}: {text[2:]}")) for text in [_left_out(made)] if text]
    if made.cause is not None:
        notes.append(told(f"{label}: likely cause: {made.cause}"))
    if made.reason is not None:
        notes.append(told(f"{label}: {made.outcome}: {made.reason}" + (f" [{name}]" if name else "")))
    if made.outcome == "passed" and made.reference is None:
        checks = ", ".join(check.name for check in made.checks if check.verdict == "passed")
        notes.append(
            Text(f"{label}: no reference for its algorithm; checked without one: {checks}", style="yellow")
        )
    return notes
