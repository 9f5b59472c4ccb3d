"""The command line's verbs. torch is never imported here: what needs it runs in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from harness import user_path
from harness.errors import CorruptFileError, InvalidInputError, OptbenchError, Problem
from harness.verbs import specs as options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.comparison.model import Comparison
    from harness.machine import Machine
    from harness.plan import Plan
    from harness.record import RunRecord
    from harness.spec import RunSpec
    from harness.store import Store, SweepLog

WrongWords: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""Raised for options that do not exist; typer comes with click's own class or with a copy of it."""

INTERRUPTIONS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

DONE, FAILED, INVALID_INPUT, INCONCLUSIVE, WRONG, INTERRUPTED = 0, 1, 2, 3, 4, 130

app = typer.Typer(
    name="optbench",
    help="Which implementation of which optimizer should I train with, on these machines? With evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
output = Console(highlight=False, emoji=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
Results = Annotated[Path, typer.Option("--results", metavar="DIR", help="The store.")]
MachineFile = Annotated[
    Path | None, typer.Option("--machine", metavar="FILE", help="Plan for the machine that this file describes.")
]


def main() -> NoReturn:
    """Run a verb; every error that optbench raises on purpose becomes a message and an exit code."""
    user_path.extend(otherwise=str(Path.cwd()))
    for number in INTERRUPTIONS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it, or a shell's background job
            signal.signal(number, _interrupt)
    try:
        code = app(standalone_mode=False)
    except typer.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, head say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    except (OptbenchError, WrongWords) as error:
        code = _explain(error)
    sys.exit(code or DONE)


def _explain(error: Exception) -> int:
    """Print what was wrong and what to do; return the exit code."""
    if isinstance(error, InvalidInputError):
        count = len(error.problems)
        errors.print(f"optbench: {count} problem{'s' if count > 1 else ''}:", style="red")
        for problem in error.problems:
            errors.print(str(problem), markup=False)
        return INVALID_INPUT
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
        return INVALID_INPUT
    told = error.format_message() if isinstance(error, WrongWords) else str(error)  # type: ignore[attr-defined]
    errors.print(f"optbench: {told}", markup=False, style="red")
    if isinstance(error, WrongWords):
        errors.print("    optbench --help lists the verbs, optbench VERB --help their options")
        return INVALID_INPUT
    return WRONG if isinstance(error, CorruptFileError) else FAILED


def _interrupt(_number: int, _frame: object) -> NoReturn:
    """End the work in hand; a second signal must not cut short what ends its processes."""
    for number in INTERRUPTIONS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


@app.command("list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="workloads, optimizers, strategies, collectors, reports or sweeps."),
    ] = "",
    as_json: Json = False,  # noqa: FBT002  # a flag of the command line
    machine_file: MachineFile = None,
) -> None:
    """List what can be named, and whether it can run here."""
    from harness.verbs import listing

    rows = listing.rows(kind, lambda: _machine(machine_file))
    if as_json:
        _print_json({kind: rows})
    else:
        output.print(listing.table(kind, rows))


@app.command()
def doctor(
    as_json: Json = False,  # noqa: FBT002  # a flag of the command line
    write_machine: Annotated[
        Path | None,
        typer.Option("--write-machine", metavar="FILE", help="Describe this machine for plan --machine."),
    ] = None,
) -> None:
    """Say what this machine can run, how fast and how quiet it is, and what each missing part needs."""
    from harness import doctor as examination

    machine = _machine(None)
    if write_machine is not None:
        write_machine.write_text(machine.model_dump_json(indent=2) + "\n", encoding="utf-8")
    found = examination.examine(machine)
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        output.print(examination.render(found))


@app.command()
def plan(  # noqa: PLR0913, PLR0917  # one parameter an option
    sweeps: options.Sweeps = None,
    workload: options.Workload = None,
    size: options.Size = None,
    optimizer: options.Optimizer = None,
    strategy: options.Strategy = None,
    precision: options.Precision = None,
    nproc: options.Nproc = None,
    device: options.Device = None,
    steps: options.Steps = None,
    lr: options.Lr = None,
    seed: options.Seed = None,
    settings: options.Settings = None,
    machine_file: MachineFile = None,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="DIR", help="Write each cell as a plan file for torchrun.")
    ] = None,
    whole: Annotated[  # noqa: FBT002  # a flag of the command line
        bool, typer.Option("--matrix", help="Every optimizer under every strategy in every precision.")
    ] = False,
    as_json: Json = False,  # noqa: FBT002  # a flag of the command line
) -> None:
    """Print what would run and what is unsupported, and start nothing."""
    from harness.verbs.planning import command_line, command_lines, table, write_cells

    axes = options.axes(
        workload=workload,
        size=size,
        optimizer=optimizer,
        strategy=strategy,
        precision=precision,
        world_size=nproc,
        device=device,
        steps=steps,
        lr=lr,
        seed=seed,
    )
    if whole:
        if sweeps or write is not None:
            raise InvalidInputError([Problem("--matrix", "takes neither sweeps nor --write", "leave them out")])
        _print_matrix(axes, settings or [], machine_file, as_json=as_json)
        return
    specs = options.read(sweeps or [], axes, settings or []).runs
    found = _plan(specs, _machine(machine_file, specs), everything=machine_file is not None)
    files = write_cells(found, write) if write is not None else {}
    if as_json:
        cells = [{**cell.model_dump(mode="json"), "command": command_line(cell, files)} for cell in found.cells]
        _print_json({"cells": cells})
    else:
        output.print(table(found))
        for line in command_lines(found, files):  # not wrapped: they are to be copied
            output.print(line, soft_wrap=True, markup=False)


def _print_matrix(
    axes: dict[str, Any], settings: Sequence[str], machine_file: Path | None, *, as_json: bool
) -> None:
    from harness.verbs import matrix

    base, names = matrix.base_and_axes(axes, settings)
    machine = _machine(machine_file, [base.model_copy(update={"optimizer": each}) for each in names["optimizer"]])
    found = matrix.grid(base, names, machine, _available_bytes(machine, everything=machine_file is not None))
    if as_json:
        _print_json(matrix.document(found))
    else:
        output.print(matrix.table(found), soft_wrap=True)


@app.command()
def run(  # noqa: PLR0913, PLR0917  # one parameter an option
    sweeps: options.Sweeps = None,
    workload: options.Workload = None,
    size: options.Size = None,
    optimizer: options.Optimizer = None,
    strategy: options.Strategy = None,
    precision: options.Precision = None,
    nproc: options.Nproc = None,
    device: options.Device = None,
    steps: options.Steps = None,
    lr: options.Lr = None,
    seed: options.Seed = None,
    settings: options.Settings = None,
    results: Results = Path("results"),
    resume: Annotated[  # noqa: FBT002  # a flag of the command line
        bool, typer.Option("--resume", help="Go on with a sweep: the latest, or the one named instead of a file.")
    ] = False,
    master_port: Annotated[
        int | None,
        typer.Option(
            "--master-port", metavar="PORT", min=1, max=65535, help="Rendezvous port; default: a free one."
        ),
    ] = None,
    verify: Annotated[  # noqa: FBT002  # a flag of the command line
        bool,
        typer.Option(
            "--verify/--no-verify",
            envvar="OPTBENCH_VERIFY",
            help="Prove each optimizer right before it runs, unless a certificate does.",
        ),
    ] = True,
    as_json: Json = False,  # noqa: FBT002  # a flag of the command line
) -> None:
    """Train every run of a sweep, or of the options given, and print the table."""
    from harness.store import Store

    axes = options.axes(
        workload=workload,
        size=size,
        optimizer=optimizer,
        strategy=strategy,
        precision=precision,
        world_size=nproc,
        device=device,
        steps=steps,
        lr=lr,
        seed=seed,
    )
    store = Store(results)
    if resume:
        if len(sweeps or []) > 1 or axes or settings:
            remedy = "optbench run --resume [SWEEP_ID]"
            raise InvalidInputError([Problem("--resume", "goes on with the runs as first asked for", remedy)])
        sweep_id = store.resolve_sweep(sweeps[0] if sweeps else "latest")
        specs = store.read_sweep(sweep_id).specs
        machine = _machine(None, specs)
        found = _plan(specs, machine)
        store.check_writable()
        log = store.resume_sweep(sweep_id)
    else:
        sweep = options.read(sweeps or [], axes, settings or [])
        store.check_writable()
        machine = _machine(None, sweep.runs)
        found = _plan(sweep.runs, machine)
        log = store.new_sweep(sweep.name, sweep.runs)
    proving = machine if verify else None
    raise typer.Exit(_run(found, store, log, master_port, proving=proving, as_json=as_json))


def _run(
    found: Plan, store: Store, log: SweepLog, master_port: int | None, *, proving: Machine | None, as_json: bool
) -> int:
    """Run the plan; print the records of all its cells, also when interrupted.

    ``proving``: the machine that proves the optimizers right first; None: nothing is proved.
    """
    from harness.verbs import verifying
    from harness.verbs.display import SweepDisplay
    from launch import sweep

    interrupted = False
    try:
        with log, SweepDisplay(Console(stderr=True)) as display:
            pending = store.pending(store.read_sweep(log.sweep_id))
            proofs = verifying.for_runs(found, pending, proving, store, display.tell) if proving else None
            sweep.run(found, store, log, display, pending=pending, master_port=master_port, proofs=proofs)
    except KeyboardInterrupt:
        interrupted = True
    except OSError as error:
        errors.print(f"optbench: cannot write results: {error}", markup=False, style="red")
        return FAILED
    records = _records(store, log.sweep_id)
    if as_json:
        rows = [{"run_id": r.run_id, "outcome": r.outcome, "reason": r.reason} for r in records]
        from harness.checks.curves import parted

        _print_json({"runs": rows, "notes": parted(records)})
    else:
        _show_table(records)
        errors.print(_next_words(records, log.sweep_id, interrupted=interrupted), style="dim", markup=False)
    return INTERRUPTED if interrupted else exit_code([record.outcome for record in records])


def _records(store: Store, sweep_id: str) -> list[RunRecord]:
    """Return the records of a sweep's runs, in the order in which they were asked for."""
    from harness.reports.standing import results_of

    run_ids = store.read_sweep(sweep_id).run_ids
    return [results_of(store.read(run_id)) for run_id in run_ids if run_id is not None]


def _show_table(records: Sequence[RunRecord]) -> None:
    from harness.reports.table import render

    output.print(render(records))


def _next_words(records: Sequence[RunRecord], sweep_id: str, *, interrupted: bool) -> str:
    if interrupted:
        return f"Interrupted; what is finished is kept. Go on with:\n  {_program()} run --resume {sweep_id}"
    example = next((r.run_id for r in records if r.outcome == "completed"), "latest")
    return f"""Everything about one run:  {_program()} show {example}
All optimizers:            {_program()} list optimizers
Your own:                  {_program()} run --workload gpt --optimizer my_module:MyOptimizer"""


def _program() -> str:
    """Return how to start optbench again from here: the quickstart's environment need not be activated."""
    here, found = Path(sys.argv[0]), shutil.which("optbench")
    if found is not None and here.exists() and Path(found).samefile(here):
        return "optbench"
    return os.path.relpath(here) if here.is_relative_to(Path.cwd()) or not here.is_absolute() else str(here)


def exit_code(outcomes: Sequence[str]) -> int:
    """Return the exit code for runs that ended so; unsupported ones count as done, unless there are no others."""
    if "wrong" in outcomes:
        return WRONG
    if all(outcome == "unsupported" for outcome in outcomes):
        return FAILED
    return DONE if set(outcomes) <= {"completed", "unsupported"} else FAILED


@app.command()
def verify(  # noqa: PLR0913, PLR0917  # one parameter an option
    optimizer: options.Optimizer = None,
    strategy: options.Strategy = None,
    precision: options.Precision = None,
    nproc: options.Nproc = None,
    device: options.Device = None,
    lr: options.Lr = None,
    settings: options.Settings = None,
    like: Annotated[
        str | None,
        typer.Option("--like", metavar="ALGORITHM", help="Hold it to this algorithm's reference: adamw, say."),
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Believe no stored certificate.")] = False,  # noqa: FBT002  # a flag of the command line
    results: Results = Path("results"),
    as_json: Json = False,  # noqa: FBT002  # a flag of the command line
) -> None:
    """Prove optimizers right against float64 references; default: every registered one, over plain tensors."""
    from harness.registry import OPTIMIZERS
    from harness.store import Store
    from harness.verbs import verifying

    verifying.check_like(like)
    every = [name for name in OPTIMIZERS.names() if ":" not in name]
    axes = options.axes(
        workload=["linear_regression"],
        optimizer=optimizer or every,
        strategy=strategy or ["single"],
        precision=precision,
        world_size=nproc,
        device=device,
        lr=lr,
    )
    specs = options.read([], axes, settings or []).runs
    machine, store = _machine(None, specs), Store(results)
    store.check_writable()
    able, refused = verifying.jobs(_plan(specs, machine), like)
    try:
        made = verifying.certified(able, machine, store, lambda text: errors.print(text, markup=False), anew=anew)
    except OSError as error:
        errors.print(f"optbench: cannot write certificates: {error}", markup=False, style="red")
        raise typer.Exit(FAILED) from error
    found = [*made, *(("", each) for each in refused)]
    if as_json:
        _print_json(verifying.document(found))
    else:
        output.print(verifying.table(found))
    raise typer.Exit(exit_code(["completed" if each.outcome == "passed" else each.outcome for _, each in found]))


@app.command()
def compare(  # noqa: PLR0913, PLR0917  # one parameter an option
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE.toml | RUN RUN…]",
            help="A file of arms to run now; or stored runs, or two result folders.",
        ),
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option("--arm", metavar="[NAME=]OPTIMIZER", help="One side, to run now. Repeatable."),
    ] = None,
    workload: options.Workload = None,
    size: options.Size = None,
    strategy: options.Strategy = None,
    precision: options.Precision = None,
    nproc: options.Nproc = None,
    device: options.Device = None,
    lr: options.Lr = None,
    seed: options.Seed = None,
    settings: options.Settings = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Of all of it: 120s, 4m. Default 120s.")
    ] = None,
    margin: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Difference that does not matter. Default 2.5%.")
    ] = None,
    self_check: Annotated[
        bool | None,
        typer.Option(
            "--self-check/--no-self-check", envvar="CI", help="Let the first arm's code ride along twice."
        ),
    ] = None,
    different_training: Annotated[  # noqa: FBT002  # a flag of the command line
        bool, typer.Option("--allow-different-training", help="Compare arms whose losses part, too.")
    ] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For any one answer of an arm.")] = 300.0,
    fresh: Annotated[  # noqa: FBT002  # a flag of the command line
        bool, typer.Option("--fresh", help="Start every launch with new interpreters; slower, no surer.")
    ] = False,
    apart: Annotated[  # noqa: FBT002  # a flag of the command line
        bool, typer.Option("--apart", help="One arm in memory at a time, in ABBA order, from the start.")
    ] = False,
    stored: Annotated[
        str | None, typer.Option("--from", metavar="ID", help="Analyse a stored comparison again; or latest.")
    ] = None,
    verify: Annotated[  # noqa: FBT002  # a flag of the command line
        bool, typer.Option("--verify/--no-verify", envvar="OPTBENCH_VERIFY", help="Prove the arms right first.")
    ] = True,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="MD", help="Write it for a pull request, too.")
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="SVG", help="Write the forest plot, too.")] = None,
    results: Results = Path("results"),
    as_json: Json = False,  # noqa: FBT002  # a flag of the command line
) -> None:
    """Compare arms live, interleaved on this machine, with an interval and a verdict; or stored runs."""
    from harness.store import Store
    from harness.verbs import comparing

    store = Store(results)
    live = bool(arms) or (len(words or []) == 1 and str((words or [""])[0]).endswith(".toml"))
    if stored is not None:
        name, comparison = comparing.load(store, stored)
        raise typer.Exit(_show_comparison(name, comparison, markdown, svg, as_json=as_json))
    if not live:
        raise typer.Exit(_compare_stored(words or [], store, markdown, as_json=as_json))
    given = options.axes(
        workload=workload,
        size=size,
        strategy=strategy,
        precision=precision,
        world_size=nproc,
        device=device,
        lr=lr,
        seed=seed,
    )
    if arms and words:
        raise InvalidInputError([Problem("--arm", f"beside {words[0]}", "name arms in the file or by --arm")])
    found, told = (
        (comparing.from_words(arms, given, settings or []), {})
        if arms
        else comparing.from_file(Path((words or [""])[0]))
    )
    share = comparing.margin(margin or told.get("margin", "2.5%"))
    budget_s = comparing.seconds(budget or told.get("budget", "120s"))
    specs = [arm.spec for arm in found]
    machine = _machine(None, specs)
    plan_found = _plan(specs, machine)
    sides = comparing.planned(found, plan_found)
    store.check_writable()
    wrong = comparing.refuse_wrong(sides, plan_found, machine, store, _tell) if verify else None
    if wrong is not None:
        errors.print(f"optbench: not compared: {wrong}", markup=False, style="red")
        raise typer.Exit(WRONG)
    from launch import comparing as live_comparison

    checked = told.get("self_check", False) if self_check is None else self_check
    kept = comparing.Kept(store)
    comparison = live_comparison.compare(
        sides,
        margin=share,
        budget_s=budget_s,
        seed=sides[0].spec.seed,
        self_check=bool(checked),
        timeout_s=timeout,
        different_training=different_training,
        fresh=fresh,
        resident=not apart,
        told=_tell,
        kept=kept.write,
    )
    name = kept.write(comparison)
    raise typer.Exit(_show_comparison(name, comparison, markdown, svg, as_json=as_json))


def _show_comparison(
    name: str, comparison: Comparison, markdown: Path | None, svg: Path | None, *, as_json: bool
) -> int:
    """Print what came of a live comparison; return the exit code."""
    from harness.comparison.analysis import analyse
    from harness.reports import comparison as report
    from harness.reports import document
    from harness.reports import markdown as pull_request
    from harness.reports.model import report as modelled
    from harness.reports.svg import svg as drawn

    found = analyse(comparison, comparison_id=name)
    if markdown is not None:
        markdown.write_text(pull_request.markdown(found, comparison), encoding="utf-8")
    forest = modelled(found, comparison).forest
    if svg is not None and forest is not None:
        svg.write_text(drawn(forest), encoding="utf-8")
    if as_json:
        _print_json({**document.document(found, comparison), "id": name})
    else:
        output.print(report.render(found, comparison))
        errors.print(f"Kept as {name}; again: {_program()} compare --from {name}", style="dim", markup=False)
    if comparison.outcome != "completed":
        return INTERRUPTED if comparison.outcome == "interrupted" else FAILED
    judged = [pair for pair in found.pairs if not pair.is_self_check]
    if any(pair.is_self_check and pair.verdict in {"faster", "slower"} for pair in found.pairs):
        return WRONG
    return INCONCLUSIVE if any(pair.verdict == "inconclusive" for pair in judged) else DONE


def _compare_stored(words: Sequence[str], store: Store, markdown: Path | None, *, as_json: bool) -> int:
    """Compare stored runs: differences listed, counts exactly, times of other sittings shown and never judged."""
    from harness import compare as stored
    from harness.reports import markdown_stored
    from harness.reports import stored as report

    found = stored.compare_runs(stored.read(words, store))
    if markdown is not None:
        markdown.write_text(markdown_stored.markdown(found), encoding="utf-8")
    if as_json:
        _print_json(report.document(found))
    else:
        output.print(report.render(found))
    return WRONG if found.refused else DONE


@app.command()
def gate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML: cells, margins, baselines: docs/gate.md.")],
    update_baseline: Annotated[  # noqa: FBT002  # a flag of the command line
        bool,
        typer.Option("--update-baseline", help="Count every cell and write the baseline of counts; gate nothing."),
    ] = False,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="MD", help="Write the verdict for a pull request, too.")
    ] = None,
    verify: Annotated[  # noqa: FBT002  # a flag of the command line
        bool,
        typer.Option(
            "--verify/--no-verify", envvar="OPTBENCH_VERIFY", help="Ask for a certificate of every optimizer."
        ),
    ] = True,
    results: Results = Path("results"),
    as_json: Json = False,  # noqa: FBT002  # a flag of the command line
) -> None:
    """Say whether anything got worse: counts, drift, speed, memory, convergence, correctness; one verdict."""
    from harness.gating.file import load
    from harness.gating.model import EXIT_CODES
    from harness.plan import name_checks
    from harness.reports import gate as report
    from harness.store import Store
    from harness.verbs import gating
    from launch.comparing import compare

    asked, store = load(file, name_checks()), Store(results)
    specs = [cell.spec for cell in asked.cells]
    machine = _machine(None, specs)
    verify = verify and asked.settings.verify
    session = gating.Session(asked, _plan(specs, machine), machine, store, _tell, compare, verify=verify)
    try:
        if update_baseline:
            changes, notes = gating.update(session)
            if as_json:
                _print_json({"baseline": str(asked.baseline.counts), "changes": changes, "notes": notes})
            else:
                for line in [f"wrote {asked.baseline.counts}", *changes, *notes]:
                    output.print(line, soft_wrap=True, markup=False)
            return
        store.check_writable()
        found = gating.gate(session)
        if markdown is not None:
            markdown.write_text(report.markdown(found), encoding="utf-8")
    except OSError as error:
        errors.print(f"optbench: cannot write {error.filename}: {error}", markup=False, style="red")
        raise typer.Exit(FAILED) from error
    if as_json:
        _print_json(report.document(found))
    else:
        output.print(report.render(found))
    raise typer.Exit(EXIT_CODES[found.verdict])


@app.command()
def selftest(  # one parameter an option
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--setting", metavar="SETTING", help="alone, neighbour, two-ranks. Repeatable. Default: all."
        ),
    ] = None,
    launches: Annotated[int, typer.Option(min=12, help="In each setting's pool, which replays draw from.")] = 24,
    gates: Annotated[int, typer.Option(min=0, help="Complete live gates of each kind.")] = 20,
    replays: Annotated[int, typer.Option(min=1, help="Of each kind.")] = 2000,
    stored: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="ID", help="Replay stored pools; run nothing. Repeatable."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="MD", help="Write the table as Markdown, too.")] = None,
    results: Results = Path("results"),
    as_json: Json = False,  # noqa: FBT002  # a flag of the command line
) -> None:
    """Measure this machine's comparisons: false alarms, planted slowdowns, and peers' methods. About an hour."""
    from harness.store import Store
    from harness.verbs import comparing, measuring

    store = Store(results)
    known = ("alone", "neighbour", "two-ranks")
    unknown = [each for each in settings or [] if each not in known]
    if unknown:
        raise InvalidInputError([Problem("--setting", f"no setting {unknown[0]}", ", ".join(known))])
    if stored:
        rows = measuring.replayed("stored", [comparing.load(store, each)[1] for each in stored], replays)
    else:
        chosen: Any = list(dict.fromkeys(settings or known))
        rows = measuring.measured(chosen, launches, gates, replays, store, _tell)
    if markdown is not None:
        markdown.write_text(measuring.markdown(rows), encoding="utf-8")
    if as_json:
        _print_json(measuring.document(rows))
    else:
        output.print(measuring.table(rows))
    raise typer.Exit(1 if any(row.met is False for row in rows) else 0)


def _tell(text: str) -> None:
    errors.print(text, markup=False)


@app.command()
def show(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[RUN|SWEEP]", help="An id, its beginning, or latest; default: list all."),
    ] = None,
    results: Results = Path("results"),
    as_json: Json = False,  # noqa: FBT002  # a flag of the command line
) -> None:
    """Show a run with all its metrics, a sweep's table, or the list of runs."""
    from harness.reports.standing import results_of
    from harness.store import Store
    from harness.verbs import showing

    store = Store(results)
    if name is None:
        rows = store.runs()
        if as_json:
            _print_json({"runs": [row.model_dump(mode="json") for row in rows]})
        else:
            output.print(showing.runs(rows))
        return
    if name.startswith("sweep-"):
        from harness.checks.curves import parted

        records = _records(store, name)
        if as_json:
            _print_json({"runs": [r.model_dump(mode="json") for r in records], "notes": parted(records)})
        else:
            _show_table(records)
        return
    record = results_of(store.read(name))
    if as_json:
        _print_json(record.model_dump(mode="json"))
    else:
        output.print(showing.run(record))


def _machine(file: Path | None, specs: Sequence[RunSpec] = ()) -> Machine:
    from harness import probe
    from harness.plan import out_of_tree
    from harness.verbs.planning import read_machine

    if file is not None:
        return read_machine(file)
    optimizers, workloads = out_of_tree(specs)
    return probe.machine(optimizers, workloads, lambda text: errors.print(text, style="cyan"))


def _plan(specs: Sequence[RunSpec], machine: Machine, *, everything: bool = False) -> Plan:
    """Plan for the memory that is free now, or for all of it on a machine that is not this one."""
    from harness.plan import plan as make_plan

    if everything:
        return make_plan(specs, machine)
    problems = options.missing_data(specs)
    try:
        found = make_plan(specs, machine, _available_bytes(machine))
    except InvalidInputError as error:
        problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    return found


def _available_bytes(machine: Machine, *, everything: bool = False) -> int:
    """Return the host memory that is free now, or all of it on a machine that is not this one."""
    import psutil

    return machine.memory_bytes if everything else min(psutil.virtual_memory().available, machine.memory_bytes)


if __name__ == "__main__":
    main()
