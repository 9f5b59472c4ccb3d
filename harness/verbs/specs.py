"""The options that say what to run, shared by ``run`` and ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import InvalidInputError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from harness.spec import Sweep

Sweeps = Annotated[
    list[str] | None, typer.Argument(metavar="[SWEEP]…", help="TOML files, or names of the sweeps that ship.")
]
Workload = Annotated[
    list[str] | None, typer.Option(metavar="W", help="Name, or package.module:Class. Repeatable.")
]
Size = Annotated[list[str] | None, typer.Option(help="One of the workload's sizes. Repeatable.")]
Optimizer = Annotated[
    list[str] | None,
    typer.Option(metavar="O", help="algorithm/implementation, or package.module:Class. Repeatable."),
]
Strategy = Annotated[list[str] | None, typer.Option(metavar="S", help="single, ddp, …. Repeatable.")]
Precision = Annotated[list[str] | None, typer.Option(help="fp32 or bf16. Repeatable.")]
Nproc = Annotated[
    list[int] | None,
    typer.Option(metavar="N", help="Ranks; default: every accelerator, or 2 CPU ranks. Repeatable."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu or accelerator; default: the accelerator where there is one.")
]
Steps = Annotated[int | None, typer.Option(metavar="K", help="Optimizer steps, warm-up included.")]
Lr = Annotated[list[float] | None, typer.Option(metavar="LR", help="Peak learning rate. Repeatable.")]
Seed = Annotated[list[int] | None, typer.Option(help="Repeatable.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any field: lr=0.01, optimizer.weight_decay=0.1. Repeatable."),
]

SHIPPED = Path(__file__).resolve().parents[2] / "workloads" / "sweeps"
"""Sweeps that come with the package, by the name of their file."""


def axes(**given: Any) -> dict[str, Any]:
    """Return the options that were given, by RunSpec's field; a repeated option is a list, hence an axis."""
    return {
        field: value[0] if isinstance(value, list) and len(value) == 1 else value
        for field, value in given.items()
        if value not in (None, [])
    }


def read(sweeps: Sequence[str], given: Mapping[str, Any], settings: Sequence[str]) -> Sweep:
    """Return the runs of the sweeps with the options' values in every one, or the run that the options describe.

    Raises:
        InvalidInputError: with every problem of every file and option.
    """
    from harness.plan import name_checks
    from harness.spec import Sweep, load_sweep, parse_assignment

    problems: list[Problem] = []
    overrides: list[tuple[tuple[str, ...], JsonValue]] = [((field,), value) for field, value in given.items()]
    for text in settings:
        try:
            overrides.append(parse_assignment(text))
        except InvalidInputError as error:
            problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    if not sweeps:
        return _single(given, overrides)
    found = []
    for word in sweeps:
        try:
            found.append(load_sweep(sweep_path(word), name_checks(), overrides))
        except InvalidInputError as error:
            problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    return Sweep(name="+".join(sweep.name for sweep in found), runs=tuple(r for s in found for r in s.runs))


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


def _single(given: Mapping[str, Any], overrides: Sequence[tuple[tuple[str, ...], JsonValue]]) -> Sweep:
    from harness.plan import name_checks
    from harness.spec import Sweep, expand, override

    cell: dict[str, Any] = {}
    for path, value in overrides:
        cell = override(cell, path, value)
    missing = [field for field in ("workload", "optimizer") if field not in cell]
    if missing:
        remedy = "name a sweep file, or give --workload W --optimizer O (optbench list workloads, … optimizers)"
        raise InvalidInputError([Problem(f"--{field}", "is missing", remedy) for field in missing])
    name = f"{given.get('workload')} {given.get('optimizer')}"
    return Sweep(name=name, runs=expand([("command line", cell)], name_checks()))
