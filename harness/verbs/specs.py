"""The options that several verbs share, and what those that say what to run ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import InvalidInputError, Problem
from harness.verbs.console import tell

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from harness.plan import Names
    from harness.spec import RunSpec, Sweep


def _integer(text: str) -> int | str:
    """Read an integer; another word goes on as it is, so that it is reported beside all other mistakes."""
    try:
        return int(text)
    except ValueError:
        return text


def _number(text: str) -> float | str:
    """Read a number; another word goes on as it is, as for `_integer`."""
    try:
        return float(text)
    except ValueError:
        return text


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
Results = Annotated[Path, typer.Option("--results", metavar="DIR", help="The store.")]
MachineFile = Annotated[
    Path | None, typer.Option("--machine", metavar="FILE", help="Plan for the machine that this file describes.")
]
Sweeps = Annotated[
    list[str] | None, typer.Argument(metavar="SWEEP", help="TOML files, or names of the sweeps that ship.")
]
Workload = Annotated[
    list[str] | None, typer.Option(metavar="W", help="Name, package.module:Class or ./file.py:Class. Repeatable.")
]
Size = Annotated[list[str] | None, typer.Option(metavar="SIZE", help="One of the workload's sizes. Repeatable.")]
Optimizer = Annotated[
    list[str] | None,
    typer.Option(metavar="O", help="algorithm/implementation, package.module:Class, ./file.py:Class. Repeatable."),
]
Strategy = Annotated[
    list[str] | None, typer.Option(metavar="S", help="Default: single; all: optbench list strategies. Repeatable.")
]
Precision = Annotated[
    list[str] | None,
    typer.Option(metavar="P", help="fp32, tf32, bf16, bf16-pure, bf16-master or fp16. Repeatable."),
]
Nproc = Annotated[
    list[int] | None,
    typer.Option(
        metavar="N", parser=_integer, help="Ranks; default: every accelerator, or 2 CPU ranks. Repeatable."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cpu or accelerator; default: the accelerator where there is one."),
]
Steps = Annotated[
    int | None, typer.Option(metavar="K", parser=_integer, help="Optimizer steps, warm-up included.")
]
Lr = Annotated[
    list[float] | None, typer.Option(metavar="LR", parser=_number, help="Peak learning rate. Repeatable.")
]
Seed = Annotated[
    list[int] | None,
    typer.Option(metavar="N", parser=_integer, help="Of data and initial values. Repeatable."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any field: lr=0.01, optimizer.eps=1e-6,1e-8. Repeatable."),
]

OPTION_WORDS = {"world_size": "--nproc"}
"""Fields of a run whose option has another name."""

COMMAND_LINE = "command line"

SHIPPED = Path(__file__).resolve().parents[2] / "workloads" / "sweeps"
"""Sweeps that come with the package, by the name of their file."""


def names() -> Names:
    """Return what is asked about names in files and options; this machine is probed where no source tells."""
    from harness import probe
    from harness.plan import name_checks

    return name_checks(lambda optimizers, workloads: probe.machine(optimizers, workloads, tell))


def axes(**given: Any) -> dict[str, Any]:
    """Return the options that were given, by RunSpec's field; one with several values is a list, hence an axis.

    An option is repeated, or its values stand with commas between them.
    """
    found = {field: _apart(value) for field, value in given.items() if value not in (None, [])}
    return {
        field: value[0] if isinstance(value, list) and len(value) == 1 else value for field, value in found.items()
    }


def _apart(value: Any) -> Any:
    """Return the values of an option whose words may have commas."""
    from harness.spec import listed

    if not isinstance(value, list):
        return value
    found: list[Any] = []
    for each in value:
        parts = listed(each) if isinstance(each, str) else []
        found += [_typed(part.strip()) for part in parts] if len(parts) > 1 else [each]
    return found


def _typed(text: str) -> int | float | str:
    """Read a number, or else the word that it is."""
    number = _integer(text)
    return _number(text) if isinstance(number, str) else number


def read(sweeps: Sequence[str], given: Mapping[str, Any], settings: Sequence[str]) -> Sweep:
    """Return the runs of the sweeps with the options' values in every one, or the run that the options describe.

    Raises:
        InvalidInputError: with every problem of every file and option.
    """
    from harness.spec import Sweep, load_sweep

    problems: list[Problem] = []
    fields, typed = overrides(given, settings, problems)
    found = []
    for word in sweeps or [COMMAND_LINE]:
        try:
            found.append(load_sweep(sweep_path(word), names(), fields) if sweeps else _single(given, fields))
        except InvalidInputError as error:
            problems += (_as_typed(problem, typed) for problem in error.problems)
    if problems:
        raise InvalidInputError(list(dict.fromkeys(problems)))
    return Sweep(
        name="+".join(sweep.name for sweep in found),
        runs=tuple(run for sweep in found for run in sweep.runs),
        notes=tuple(dict.fromkeys(note for sweep in found for note in sweep.notes)),
    )


def overrides(
    given: Mapping[str, Any], settings: Sequence[str], problems: list[Problem]
) -> tuple[list[tuple[tuple[str, ...], JsonValue]], dict[str, str]]:
    """Return what the command line gives every run, and by field the words in which it was typed.

    Args:
        given: RunSpec's fields, by name.
        settings: further ones, as ``key=value``.
        problems: gains those of the settings.
    """
    from harness.spec import parse_assignment

    here = names()
    fields: list[tuple[tuple[str, ...], JsonValue]] = [
        ((field,), value) for field, value in here.locate(given).items()
    ]
    typed = {field: OPTION_WORDS.get(field, f"--{field}") for field in given}
    for text in settings:
        try:
            path, value = parse_assignment(text)
        except InvalidInputError as error:
            problems += error.problems
        else:
            value = here.locate({path[0]: value})[path[0]] if len(path) == 1 else value
            fields.append((path, value))
            typed[".".join(path)] = f"--set {text.partition('=')[0].strip()}"
    return fields, typed


def _as_typed(problem: Problem, typed: Mapping[str, str]) -> Problem:
    """Let a problem of a field that the command line gave say so, instead of blaming each run of a file for it."""
    place, dot, path = problem.where.rpartition("]." if "]." in problem.where else f"{COMMAND_LINE}.")
    if not dot:
        return problem
    field = next((each for each in typed if path == each or path.startswith(f"{each}.")), None)
    if field is not None:
        return replace(problem, where=typed[field] + path.removeprefix(field))
    return problem if place else replace(problem, where=f"--{path}")


def missing_data(specs: Sequence[RunSpec]) -> list[Problem]:
    """Return a problem for each data file of the runs that is not there."""
    files = dict.fromkeys(spec.data for spec in specs if spec.data is not None)
    remedy = "give a path that exists, absolute or from the current folder"
    return [Problem(f"data = {file}", "no such file", remedy) for file in files if not Path(file).is_file()]


def sweep_path(word: str) -> Path:
    """Return the file that a word names: a path, or the name of a shipped sweep.

    Raises:
        InvalidInputError: there is neither.
    """
    path = Path(word)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{word}.toml"
    if word.isidentifier() and shipped.is_file():
        return shipped
    from harness.spec import suggest

    names = sorted(file.stem for file in SHIPPED.glob("*.toml"))
    raise InvalidInputError([Problem(f"sweep {word}", "no such file, and no shipped sweep", suggest(word, names))])


def _single(given: Mapping[str, Any], fields: Sequence[tuple[tuple[str, ...], JsonValue]]) -> Sweep:
    from harness.spec import Sweep, expand, override

    asked = names()
    cell: dict[str, Any] = {}
    for path, value in fields:
        cell = override(cell, path, value)
    words = [given.get("workload"), given.get("optimizer")]
    name = " ".join(", ".join(map(str, each)) if isinstance(each, list) else str(each) for each in words)
    try:
        return Sweep(name=name, runs=expand([(COMMAND_LINE, cell)], asked), notes=tuple(asked.notes))
    except InvalidInputError as error:
        remedy = "name a sweep file, or give --workload W --optimizer O (optbench list workloads, … optimizers)"
        raise InvalidInputError(
            [
                replace(problem, remedy=remedy) if problem.what == "is missing" else problem
                for problem in error.problems
            ]
        ) from error
