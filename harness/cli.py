"""The command line's verbs. torch is never imported here: what needs it runs in processes of its own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args

import typer

from harness import user_path
from harness.errors import CorruptFileError, InvalidInputError, OptbenchError, Problem
from harness.verbs import here
from harness.verbs import specs as options
from harness.verbs.console import (
    DONE,
    FAILED,
    INTERRUPTED,
    INVALID_INPUT,
    WRONG,
    errors,
    exit_code,
    output,
    print_json,
    tell,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


WrongWords: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""Raised for options that do not exist; typer comes with click's own class or with a copy of it."""

INTERRUPTIONS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

app = typer.Typer(
    name="optbench",
    help="Which implementation of which optimizer should I train with, on these machines? With evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
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
    told = error.format_message() if isinstance(error, WrongWords) else str(error)  # type: ignore[attr-defined]  # click's
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


@app.command("list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="workloads, optimizers, strategies, collectors, reports or sweeps."),
    ] = "",
    as_json: Json = False,
    machine_file: MachineFile = None,
) -> None:
    """List what can be named, and whether it can run here."""
    from harness.verbs import listing

    rows = listing.rows(kind, lambda: here.machine(machine_file))
    if as_json:
        print_json({kind: rows})
    else:
        output.print(listing.table(kind, rows))


@app.command()
def doctor(
    as_json: Json = False,
    write_machine: Annotated[
        Path | None,
        typer.Option("--write-machine", metavar="FILE", help="Describe this machine for plan --machine."),
    ] = None,
) -> None:
    """Say what this machine can run, how fast and how quiet it is, and what each missing part needs."""
    from harness import doctor as examination

    machine = here.machine(None)
    if write_machine is not None:
        write_machine.write_text(machine.model_dump_json(indent=2) + "\n", encoding="utf-8")
    found = examination.examine(machine)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        output.print(examination.render(found))


@app.command()
def plan(
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
    whole: Annotated[
        bool, typer.Option("--matrix", help="Every optimizer under every strategy in every precision.")
    ] = False,
    as_json: Json = False,
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
    found = here.plan(specs, here.machine(machine_file, specs), everything=machine_file is not None)
    files = write_cells(found, write) if write is not None else {}
    if as_json:
        cells = [{**cell.model_dump(mode="json"), "command": command_line(cell, files)} for cell in found.cells]
        print_json({"cells": cells})
    else:
        output.print(table(found))
        for line in command_lines(found, files):  # not wrapped: they are to be copied
            output.print(line, soft_wrap=True, markup=False)


def _print_matrix(
    axes: dict[str, Any], settings: Sequence[str], machine_file: Path | None, *, as_json: bool
) -> None:
    from harness.verbs import matrix

    base, names = matrix.base_and_axes(axes, settings)
    machine = here.machine(
        machine_file, [base.model_copy(update={"optimizer": each}) for each in names["optimizer"]]
    )
    found = matrix.grid(base, names, machine, here.available_bytes(machine, everything=machine_file is not None))
    if as_json:
        print_json(matrix.document(found))
    else:
        output.print(matrix.table(found), soft_wrap=True)


@app.command()
def run(
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a sweep: the latest, or the one named instead of a file.")
    ] = False,
    master_port: Annotated[
        int | None,
        typer.Option(
            "--master-port", metavar="PORT", min=1, max=65535, help="Rendezvous port; default: a free one."
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            envvar="OPTBENCH_VERIFY",
            help="Prove each optimizer right before it runs, unless a certificate does.",
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Train every run of a sweep, or of the options given, and print the table."""
    from harness.store import Store
    from harness.verbs import training

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
        machine = here.machine(None, specs)
        found = here.plan(specs, machine)
        store.check_writable()
        log = store.resume_sweep(sweep_id)
    else:
        sweep = options.read(sweeps or [], axes, settings or [])
        store.check_writable()
        machine = here.machine(None, sweep.runs)
        found = here.plan(sweep.runs, machine)
        log = store.new_sweep(sweep.name, sweep.runs)
    proving = machine if verify else None
    raise typer.Exit(training.run(found, store, log, master_port, proving=proving, as_json=as_json))


@app.command()
def verify(
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
    anew: Annotated[bool, typer.Option("--anew", help="Believe no stored certificate.")] = False,
    results: Results = Path("results"),
    as_json: Json = False,
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
    machine, store = here.machine(None, specs), Store(results)
    store.check_writable()
    able, refused = verifying.jobs(here.plan(specs, machine), like)
    try:
        made = verifying.certified(able, machine, store, lambda text: errors.print(text, markup=False), anew=anew)
    except OSError as error:
        errors.print(f"optbench: cannot write certificates: {error}", markup=False, style="red")
        raise typer.Exit(FAILED) from error
    found = [*made, *(("", each) for each in refused)]
    if as_json:
        print_json(verifying.document(found))
    else:
        output.print(verifying.table(found))
    raise typer.Exit(exit_code(["completed" if each.outcome == "passed" else each.outcome for _, each in found]))


@app.command()
def compare(
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
            "--self-check/--no-self-check",
            help="Let the first arm's code ride along twice. Default: as the file says, else where CI is set.",
        ),
    ] = None,
    different_training: Annotated[
        bool, typer.Option("--allow-different-training", help="Compare arms whose losses part, too.")
    ] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For any one answer of an arm.")] = 300.0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start every launch with new interpreters; slower, no surer.")
    ] = False,
    apart: Annotated[
        bool, typer.Option("--apart", help="One arm in memory at a time, in ABBA order, from the start.")
    ] = False,
    stored: Annotated[
        str | None, typer.Option("--from", metavar="ID", help="Analyse a stored comparison again; or latest.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", envvar="OPTBENCH_VERIFY", help="Prove the arms right first.")
    ] = True,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="MD", help="Write it for a pull request, too.")
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="SVG", help="Write the forest plot, too.")] = None,
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Compare arms live, interleaved on this machine, with an interval and a verdict; or stored runs."""
    from harness.store import Store
    from harness.verbs import arms as reading
    from harness.verbs import compared, comparing

    store = Store(results)
    live = bool(arms) or (len(words or []) == 1 and str((words or [""])[0]).endswith(".toml"))
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
    here.refuse_unwritable("--markdown", markdown)
    here.refuse_unwritable("--svg", svg)
    timeout = reading.timeout(timeout)
    words_of_fields = {options.OPTION_WORDS.get(field, f"--{field}"): True for field in given}
    idle = {**words_of_fields, "--set": settings, "--budget": budget, "--margin": margin}
    if stored is not None:
        compared.refuse_idle("--from", {**idle, "--arm": arms, " ".join(words or []): words})
        name, comparison = comparing.load(store, stored)
        raise typer.Exit(compared.show_stored(name, comparison, markdown, svg, as_json=as_json))
    if not live:
        compared.refuse_idle("stored runs", {**idle, "--svg": svg})
        raise typer.Exit(compared.stored(words or [], store, markdown, as_json=as_json))
    if arms and words:
        raise InvalidInputError([Problem("--arm", f"beside {words[0]}", "name arms in the file or by --arm")])
    found, told = (
        (reading.from_words(arms, given, settings or []), {})
        if arms
        else reading.from_file(Path((words or [""])[0]), given, settings or [])
    )
    share = reading.margin(told.get("margin", "2.5%") if margin is None else margin)
    budget_s = reading.seconds(told.get("budget", "120s") if budget is None else budget)
    specs = [arm.spec for arm in found]
    machine = here.machine(None, specs)
    plan_found = here.plan(specs, machine)
    sides = comparing.planned(found, plan_found)
    store.check_writable()
    proofs, wrong = comparing.proved(sides, plan_found, machine, store, tell, asked=verify)
    if wrong is not None:
        errors.print(f"optbench: not compared: {wrong}", markup=False, style="red")
        raise typer.Exit(WRONG)
    comparing.build_kernels(plan_found.cells, tell)
    from launch import comparing as live_comparison

    kept = comparing.Kept(store, tell)
    comparison = live_comparison.compare(
        sides,
        margin=share,
        budget_s=budget_s,
        seed=sides[0].spec.seed,
        self_check=reading.rides_along(told, os.environ.get("CI"), option=self_check),
        timeout_s=timeout,
        different_training=different_training,
        fresh=fresh,
        resident=not apart,
        proofs=proofs,
        told=tell,
        kept=kept.keep,
    )
    kept.keep(comparison)
    raise typer.Exit(compared.show(kept, comparison, markdown, svg, as_json=as_json))


@app.command()
def gate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML: cells, margins, baselines: docs/gate.md.")],
    update_baseline: Annotated[
        bool,
        typer.Option("--update-baseline", help="Count every cell and write the baseline of counts; gate nothing."),
    ] = False,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="MD", help="Write the verdict for a pull request, too.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", envvar="OPTBENCH_VERIFY", help="Ask for a certificate of every optimizer."
        ),
    ] = True,
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Say whether anything got worse: counts, drift, speed, memory, convergence, correctness; one verdict."""
    from harness.gating.file import load
    from harness.gating.model import EXIT_CODES
    from harness.plan import name_checks
    from harness.reports import gate as report
    from harness.store import Store
    from harness.verbs import gating
    from launch.comparing import compare

    here.refuse_unwritable("--markdown", markdown)
    asked, store = load(file, name_checks()), Store(results)
    specs = [cell.spec for cell in asked.cells]
    machine = here.machine(None, specs)
    verify = verify and asked.settings.verify
    session = gating.Session(asked, here.plan(specs, machine), machine, store, tell, compare, verify=verify)
    try:
        if update_baseline:
            changes, notes = gating.update(session)
            if as_json:
                print_json({"baseline": str(asked.baseline.counts), "changes": changes, "notes": notes})
            else:
                for line in [f"wrote {asked.baseline.counts}", *changes, *notes]:
                    output.print(line, soft_wrap=True, markup=False)
            return
        store.check_writable()
        found = gating.gate(session)
    except OSError as error:
        errors.print(f"optbench: cannot write {error.filename}: {error}", markup=False, style="red")
        raise typer.Exit(FAILED) from error
    if as_json:
        print_json(report.document(found))
    else:
        output.print(report.render(found))
    if markdown is not None:
        markdown.write_text(report.markdown(found), encoding="utf-8")
    raise typer.Exit(EXIT_CODES[found.verdict])


@app.command()
def selftest(
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--setting", metavar="SETTING", help="alone, neighbour, two-ranks. Repeatable. Default: all."
        ),
    ] = None,
    launches: Annotated[int, typer.Option(min=36, help="In each setting's pool, which replays draw from.")] = 48,
    gates: Annotated[
        int, typer.Option(min=0, help="Complete live gates of each of four kinds, in each setting.")
    ] = 20,
    sittings: Annotated[
        int, typer.Option(help="Of forked launches, set beside a third as many of fresh ones; two or more, or 0.")
    ] = 6,
    replays: Annotated[int, typer.Option(min=1, help="Of each kind.")] = 2000,
    stored: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="ID", help="Replay stored pools; run nothing. Repeatable."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="MD", help="Write the table as Markdown, too.")] = None,
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Measure this machine's comparisons: false alarms, planted slowdowns, peers' methods. Hours; see --gates."""
    from harness.store import Store
    from harness.verbs import comparing, measuring
    from launch.selftest import Setting

    store = Store(results)
    here.refuse_unwritable("--markdown", markdown)
    known = get_args(Setting)
    unknown = [each for each in settings or [] if each not in known]
    if unknown:
        raise InvalidInputError([Problem("--setting", f"no setting {unknown[0]}", ", ".join(known))])
    if sittings == 1 or sittings < 0:
        raise InvalidInputError(
            [Problem("--sittings", f"{sittings} show no difference", "2 or more, or 0 for none")]
        )
    if stored:
        rows = measuring.replayed("stored", [comparing.load(store, each)[1] for each in stored], replays)
    else:
        chosen: Any = list(dict.fromkeys(settings or known))
        rows = measuring.measured(chosen, measuring.Amounts(launches, gates, sittings, replays), store, tell)
    if as_json:
        print_json(measuring.document(rows))
    else:
        output.print(measuring.table(rows))
    if markdown is not None:
        markdown.write_text(measuring.markdown(rows), encoding="utf-8")
    raise typer.Exit(1 if any(row.met is False for row in rows) else 0)


@app.command()
def show(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[RUN|SWEEP]", help="An id, its beginning, or latest; default: list all."),
    ] = None,
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Show a run with all its metrics, a sweep's table, or the list of runs."""
    from harness.reports.standing import results_of
    from harness.reports.table import render
    from harness.store import Store
    from harness.verbs import showing, training

    store = Store(results)
    if name is None:
        rows = store.runs()
        if as_json:
            print_json({"runs": [row.model_dump(mode="json") for row in rows]})
        else:
            output.print(showing.runs(rows))
        return
    if name.startswith("sweep-"):
        from harness.checks.curves import parted

        records = training.records(store, name)
        if as_json:
            print_json({"runs": [r.model_dump(mode="json") for r in records], "notes": parted(records)})
        else:
            output.print(render(records))
        return
    record = results_of(store.read(name))
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        output.print(showing.run(record))


if __name__ == "__main__":
    main()
