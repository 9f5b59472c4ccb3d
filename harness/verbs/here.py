"""The machine at hand, and plans for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import InvalidInputError, Problem
from harness.verbs import specs as options
from harness.verbs.console import tell

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue
    from rich.console import Console

    from harness.machine import Machine
    from harness.plan import Plan
    from harness.spec import RunSpec


def machine(file: Path | None, specs: Sequence[RunSpec] = ()) -> Machine:
    """Return the machine that a file describes, or this one, with what the specs name out of tree."""
    from harness import probe
    from harness.plan import out_of_tree, unmeasured
    from harness.verbs.planning import read_machine

    if file is not None:
        return read_machine(file)
    optimizers, workloads = out_of_tree(specs)
    found = probe.machine(optimizers, workloads, tell)
    return found.model_copy(update={"models": probe.models(unmeasured(specs, found))})


def plan(specs: Sequence[RunSpec], on: Machine, *, everything: bool = False) -> Plan:
    """Plan for the memory that is free now, or for all of it on a machine that is not this one."""
    from harness.plan import plan as make_plan

    if everything:
        return make_plan(specs, on)
    problems = options.missing_data(specs)
    try:
        found = make_plan(specs, on, available_bytes(on))
    except InvalidInputError as error:
        problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    return found


def faults() -> list[dict[str, JsonValue]]:
    """Return, for JSON, what is wrong with entry points of installed packages."""
    from harness import registry

    return [each.model_dump(mode="json") for each in registry.faults()]


def print_faults(console: Console) -> None:
    """Print a row for each entry point of an installed package that is not used, and why."""
    from harness import registry
    from harness.reports.faults import table

    found = registry.faults()
    if found:
        console.print(table(found))


def available_bytes(on: Machine, *, everything: bool = False) -> int:
    """Return the host memory that is free now, or all of it on a machine that is not this one."""
    import psutil

    return on.memory_bytes if everything else min(psutil.virtual_memory().available, on.memory_bytes)


def refuse_unwritable(option: str, file: Path | None) -> None:
    """Refuse a file that what is found could not be written to, before it is looked for.

    Raises:
        InvalidInputError: its folder is missing, or it cannot be written.
    """
    if file is None:
        return
    try:
        new = not file.exists()
        with file.open("a", encoding="utf-8"):
            pass
        if new:
            file.unlink()
    except OSError as error:
        problem = Problem(
            f"{option} {file}", f"cannot be written: {error.strerror}", "name a file in a folder of yours"
        )
        raise InvalidInputError([problem]) from error
