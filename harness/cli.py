"""The command line's verbs. torch is never imported here: what needs it runs in processes of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from harness import __version__, cli_comparisons, user_path
from harness.errors import (
    NO_SPACE_EXIT_CODE,
    CorruptFileError,
    Interruption,
    InvalidInputError,
    OptbenchError,
    Problem,
)
from harness.invocation import command
from harness.verbs import here
from harness.verbs import specs as options
from harness.verbs.console import (
    DONE,
    FAILED,
    INTERRUPTED,
    INVALID_INPUT,
    WRONG,
    UnwrittenError,
    Written,
    errors,
    exit_code,
    output,
    print_json,
    sensible,
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


def main() -> NoReturn:
    """Run a verb; every error that optbench raises on purpose becomes a message and an exit code."""
    for name in set(os.environ) - set(sensible(os.environ)):
        del os.environ[name]  # the help's own console reads them, too
    user_path.extend(otherwise=str(Path.cwd()))
    for number in INTERRUPTIONS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it, or a shell's background job
            signal.signal(number, _interrupt)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Written(stream) for stream in streams)
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone, head say
        os.dup2(os.open(os.devnull, os.O_WRONLY), streams[0].fileno())
        code = DONE
    except UnwrittenError as error:
        code = _unwritten(error)
    finally:
        sys.stdout, sys.stderr = streams
    sys.exit(code)


def _run() -> int:
    try:
        code: int | None = app(standalone_mode=False)
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        errors.print("optbench: interrupted", style="red")
        return INTERRUPTED
    except (OptbenchError, WrongWords) as error:
        return _explain(error)
    return code or DONE


def _unwritten(error: UnwrittenError) -> int:
    """Say that what was found could not be printed; no verdict has that exit code, since nobody has read one."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), error.stream.fileno())  # nor would the interpreter's last flush work
    name = "standard output" if error.stream.fileno() == 1 else "standard error"
    remedy = "make room, or print elsewhere; what was stored is kept"
    with contextlib.suppress(OSError):
        errors.print(f"optbench: {name} cannot be written: {error}\n    {remedy}", markup=False, style="red")
    return NO_SPACE_EXIT_CODE


def _version(asked: bool) -> None:  # noqa: FBT001  # typer calls it so
    if asked:
        output.print(f"optbench {__version__}")
        raise typer.Exit


@app.callback()
def _optbench(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before any verb."""


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
    raise Interruption


@app.command("list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="workloads, optimizers, strategies, collectors or sweeps."),
    ] = "",
    as_json: options.Json = False,
    machine_file: options.MachineFile = None,
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
    as_json: options.Json = False,
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
    machine_file: options.MachineFile = None,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="DIR", help="Write each cell as a plan file for torchrun.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--matrix", help="Every optimizer under every strategy in every precision.")
    ] = False,
    as_json: options.Json = False,
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
    asked = options.read(sweeps or [], axes, settings or [])
    specs = asked.runs
    found = here.plan(specs, here.machine(machine_file, specs), everything=machine_file is not None)
    files = write_cells(found, write) if write is not None else {}
    if as_json:
        cells = [{**cell.model_dump(mode="json"), "command": command_line(cell, files)} for cell in found.cells]
        print_json({"cells": cells, "lists": asked.notes, "entry_points": here.faults()})
    else:
        output.print(table(found))
        here.print_faults(output)
        for note in asked.notes:
            output.print(note, soft_wrap=True, markup=False)
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
        print_json({**matrix.document(found), "entry_points": here.faults()})
    else:
        output.print(matrix.table(found), soft_wrap=True)
        here.print_faults(output)


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
    results: options.Results = Path("results"),
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
    as_json: options.Json = False,
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
            remedy = f"leave them out: {command('run', '--resume', *(sweeps or [])[:1], results=results)}"
            raise InvalidInputError([Problem("--resume", "goes on with the runs as first asked for", remedy)])
        sweep_id = store.resolve_sweep(sweeps[0] if sweeps else "latest")
        specs = store.read_sweep(sweep_id).specs
        machine = here.machine(None, specs)
        found = here.plan(specs, machine)
        store.check_writable()
        log = store.resume_sweep(sweep_id)
    else:
        sweep = options.read(sweeps or [], axes, settings or [])
        for note in sweep.notes:
            tell(note)
        store.check_writable()
        machine = here.machine(None, sweep.runs)
        found = here.plan(sweep.runs, machine)
        log = store.new_sweep(sweep.name, sweep.runs)
    here.print_faults(errors)
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
    results: options.Results = Path("results"),
    as_json: options.Json = False,
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
        kept = [name for name, _ in found if name]
        if kept:
            again = command("show", kept[-1], results=results)
            errors.print(f"Every check of one of them:  {again}", style="dim", markup=False)
    raise typer.Exit(exit_code(["completed" if each.outcome == "passed" else each.outcome for _, each in found]))


for verb in (cli_comparisons.compare, cli_comparisons.gate, cli_comparisons.selftest):
    app.command()(verb)


@app.command()
def show(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]", help="Any id that was printed, its beginning, or latest; default: list all."
        ),
    ] = None,
    results: options.Results = Path("results"),
    as_json: options.Json = False,
) -> None:
    """Show a run with all its metrics, a sweep's table, a comparison, a certificate; or list what there is."""
    from harness.store import Store
    from harness.verbs import contents, showing

    store = Store(results)
    store.check_readable()
    if name is not None:
        showing.show(store, store.resolve_any(name), as_json=as_json)
    elif as_json:
        print_json(contents.document(store))
    else:
        output.print(contents.render(store), crop=False)


if __name__ == "__main__":
    main()
