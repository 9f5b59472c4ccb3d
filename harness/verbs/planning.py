"""What ``optbench plan`` prints and writes."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.errors import InvalidInputError, Problem
from harness.machine import MACHINE_SCHEMA_VERSION, Machine
from harness.reports import quantities
from harness.targets import short
from harness.varying import varying
from launch.local import command

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.plan import Cell, Plan


def read_machine(path: Path) -> Machine:
    """Read a machine that `optbench doctor --write-machine` of another host described.

    Raises:
        InvalidInputError: when the file is no such description.
    """
    try:
        machine = Machine.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInputError([Problem(str(path), f"cannot be read: {error.strerror}")]) from error
    except ValidationError as error:
        remedy = "make one there with: optbench doctor --write-machine FILE"
        wrong = error.errors()[0]
        place = ".".join(str(part) for part in wrong["loc"])
        told = f"describes no machine: {f'{place}: ' if place else ''}{wrong['msg']}"
        raise InvalidInputError([Problem(str(path), told, remedy)]) from error
    if machine.schema_version > MACHINE_SCHEMA_VERSION:
        found = f"has schema_version {machine.schema_version}, this optbench reads up to {MACHINE_SCHEMA_VERSION}"
        raise InvalidInputError([Problem(str(path), found, "upgrade optbench")])
    return machine


def write_cells(plan: Plan, folder: Path) -> dict[int, Path]:
    """Write each runnable cell as ``plan-N.json``; return the files by the cells' index.

    Raises:
        InvalidInputError: the folder cannot be written.
    """
    files = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for cell in plan.cells:
            if cell.unsupported is None:
                files[cell.index] = folder / f"plan-{cell.index}.json"
                files[cell.index].write_text(cell.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError([Problem(str(folder), f"cannot be written: {error.strerror}")]) from error
    return files


def command_line(cell: Cell, files: Mapping[int, Path]) -> str | None:
    """Return the torchrun command line of a cell that can run; ``PLAN`` stands for a file not yet written."""
    if cell.unsupported is not None:
        return None
    words = command(cell.spec, [str(files.get(cell.index, "PLAN"))], port=None)
    return shlex.join(["torchrun", *words[3:]])


def command_lines(plan: Plan, files: Mapping[int, Path]) -> list[str]:
    """Return a line a cell: its command, or why it cannot run."""
    lines = [f"{cell.index}: {command_line(cell, files) or cell.unsupported}" for cell in plan.cells]
    return lines if files else [*lines, "PLAN: a file that optbench plan --write DIR writes"]


def table(plan: Plan) -> RenderableType:
    """Return a row a cell, with what tells it apart; why one cannot run is among the `command_lines`."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    rows.add_column("#", justify="right")
    for name in ("workload", "optimizer", "strategy"):
        rows.add_column(name, overflow="fold")
    rows.add_column("ranks", justify="right")
    rows.add_column("memory/rank", justify="right", no_wrap=True)
    rows.add_column("")
    specs = [cell.spec.model_dump(mode="json") for cell in plan.cells]
    workloads, optimizers = (
        [getattr(cell.spec, word) for cell in plan.cells] for word in ("workload", "optimizer")
    )
    apart = varying(specs, shown=("workload", "size", "optimizer", "strategy", "world_size"))
    for cell, words in zip(plan.cells, apart, strict=True):
        spec = cell.spec
        verdict = Text("unsupported", style="red") if cell.unsupported else Text("runs", style="green")
        size = "" if spec.size is None else f" {spec.size}"
        rows.add_row(
            str(cell.index),
            Text(f"{short(spec.workload, workloads)}{size}"),
            Text(f"{short(spec.optimizer, optimizers)} {words}".strip()),
            spec.strategy,
            str(spec.world_size),
            quantities.size(cell.estimated_bytes),
            verdict,
        )
    notes = dict.fromkeys(note for cell in plan.cells for note in cell.notes)
    return Group(rows, *(Text(f"! {note}", style="yellow") for note in notes), Text(""))
