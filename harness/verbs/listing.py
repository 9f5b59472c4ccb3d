"""What ``optbench list`` prints."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness import plan, registry
from harness.entry_points import Fault
from harness.errors import InvalidInputError, Problem
from harness.reports import faults
from harness.spec import suggest
from harness.verbs.specs import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.machine import Machine

Row = dict[str, Any]


def rows(kind: str, machine: Callable[[], Machine]) -> list[Row]:
    """Return one row a name.

    Args:
        kind: the plural that `optbench list` takes.
        machine: probes, when the kind needs it.

    Raises:
        InvalidInputError: for another kind.
    """
    kinds: dict[str, Callable[[], list[Row]]] = {
        "workloads": lambda: _with_faults(_workloads(), registry.WORKLOADS),
        "optimizers": lambda: _with_faults(_optimizers(machine()), registry.OPTIMIZERS),
        "strategies": lambda: _with_faults(_strategies(), registry.STRATEGIES),
        "collectors": lambda: _with_faults(_names(registry.COLLECTORS), registry.COLLECTORS),
        "sweeps": lambda: [{"name": f.stem, "file": str(f)} for f in sorted(SHIPPED.glob("*.toml"))],
    }
    if kind not in kinds:
        found = f"unknown kind {kind!r}" if kind else "name what to list"
        raise InvalidInputError([Problem("list", found, suggest(kind, list(kinds)))])
    return kinds[kind]()


def _with_faults(found: list[Row], of: registry.Registry) -> list[Row]:
    """Return the rows, then one for each entry point that is not used: with package, reason and remedy."""
    fields = {key: False if key == "runs" else None for row in found[:1] for key in row}
    taken = {row["name"] for row in found}
    for fault in of.faults():
        name = f"{fault.name} ({fault.package})" if fault.name in taken else fault.name
        found.append({**fields, **fault.model_dump(), "name": name})
    return found


def _workloads() -> list[Row]:
    found = []
    for name in registry.WORKLOADS.targets():
        try:
            traits = plan.workload_traits(name)
        except InvalidInputError:
            target = registry.WORKLOADS.target(name)
            found.append(_unknown_workload(name, f"{name} ({target}) tells its sizes when it is run or planned"))
            continue
        for size_name, size in traits.sizes.items():
            goal = size.target
            symbol = "<=" if goal is not None and goal.better == "lower" else ">="
            found.append(
                {
                    "name": name,
                    "size": size_name,
                    "default": size_name == traits.default_size,
                    "parameters": size.parameters,
                    "global_batch": size.global_batch,
                    "target": None if goal is None else f"{goal.metric} {symbol} {goal.value:g}",
                    "summary": traits.summary,
                    "source": traits.source,
                    "options": traits.options,
                }
            )
    return found


def _unknown_workload(name: str, reason: str) -> Row:
    """Return the row of an installed package's workload whose traits are no literals."""
    fields = ("size", "default", "parameters", "global_batch", "target", "summary", "source", "options")
    return {"name": name, **dict.fromkeys(fields), "reason": reason}


def _optimizers(machine: Machine) -> list[Row]:
    found = []
    for name in registry.OPTIMIZERS.names():
        reason = plan.optimizer_runs_here(name, machine)
        optimizer = registry.OPTIMIZERS.get(name)
        options, _ = registry.guarded(functools.partial(optimizer.options, machine))
        found.append({"name": name, "runs": reason is None, "reason": reason, "options": options})
    order = {algorithm: place for place, algorithm in reversed(list(enumerate(map(_algorithm, found))))}
    return sorted(found, key=lambda row: order[_algorithm(row)])


def _strategies() -> list[Row]:
    found: list[Row] = []
    for name in registry.STRATEGIES.targets():
        try:
            each = registry.strategy(name)
        except InvalidInputError as error:  # an installed package's that broke since it was looked at
            found.append({"name": name, "ranks": None, "options": None, "reason": str(error.problems[0])})
        else:
            found.append({"name": name, "ranks": "1" if each.one_rank else "any", "options": each.options})
    return found


def _names(of: registry.Registry) -> list[Row]:
    return [
        {"name": name, "summary": registry.summary(target), "target": target}
        for name, target in of.targets().items()
    ]


def table(kind: str, found: list[Row]) -> RenderableType:
    """Return the rows as a table for 80 columns; what several rows would say stands once below it."""
    faulty = [Fault.model_validate({k: row[k] for k in Fault.model_fields}) for row in found if "kind" in row]
    found = [row for row in found if "kind" not in row]
    reasons = list(dict.fromkeys(row["reason"] for row in found if row.get("reason")))
    below: list[Text] = []
    if kind == "optimizers":
        below = _many_names(found, reasons)
        found = _optimizer_cells([row for row in found if _package(row) is None], reasons)
    columns = {
        "workloads": ("name", "size", "parameters", "global_batch", "target"),
        "optimizers": ("name", "runs here", "options"),
        "strategies": ("name", "ranks", "options"),
        "collectors": ("name", "summary"),
    }.get(kind, tuple(found[0]) if found else ())
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        right = column in {"parameters", "global_batch"}
        named = column in {"name", "runs here", "ranks", "target"}
        heading = column.replace("_", "\n" if right else " ")
        shown.add_column(heading, justify="right" if right else "left", overflow="fold", no_wrap=named)
    for row in found:
        shown.add_row(*(_cell(row[column]) for column in columns))
    about = {row["name"]: row["summary"] for row in found} if kind == "workloads" else {}
    return Group(
        shown,
        *below,
        *([Text("")] if about or reasons else []),
        *(Text(f"{name}: {summary}") for name, summary in about.items()),
        *(Text(f"{number}  {reason}") for number, reason in enumerate(reasons, start=1)),
        *([Text(""), faults.table(faulty)] if faulty else []),
    )


def _optimizer_cells(found: list[Row], reasons: list[str]) -> list[Row]:
    """Return the rows with a column that points to the reasons.

    An algorithm's options stand in its first row; in the others only those that are more, or have other defaults.
    """
    seen: dict[str, Row] = {}
    cells = []
    for row in found:
        first = seen.setdefault(_algorithm(row), row)
        known = {} if first is row else first["options"] or {}
        own = {key: value for key, value in (row["options"] or {}).items() if (key, value) not in known.items()}
        verdict = "yes" if row["runs"] else f"no, see {reasons.index(row['reason']) + 1}"
        cells.append({**row, "runs here": verdict, "options": own or None})
    return cells


def _package(row: Row) -> str | None:
    """Return the package of a name such as ``pytorch_optimizer:lion``; None: an algorithm/implementation."""
    package, colon, _ = str(row["name"]).partition(":")
    return package if colon else None


def _many_names(found: list[Row], reasons: list[str]) -> list[Text]:
    """Return a paragraph for each package of many names: those that run here, then the others."""
    packages = dict.fromkeys(filter(None, map(_package, found)))
    lines = []
    for package in packages:
        rows = [row for row in found if _package(row) == package]
        names = {row["name"]: str(row["name"]).partition(":")[2] for row in rows}
        run = [names[row["name"]] for row in rows if row["runs"]]
        no = [f"{names[row['name']]} (see {reasons.index(row['reason']) + 1})" for row in rows if not row["runs"]]
        lines += [Text(""), Text(f"{package}:NAME, options with --json; NAME is one of")]
        lines += [Text(f"  runs here: {', '.join(run)}")] if run else []
        lines += [Text(f"  does not: {', '.join(no)}")] if no else []
    return lines


def _algorithm(row: Row) -> str:
    return str(row["name"]).partition("/")[0]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={inner}" for key, inner in value.items())
    return str(value).removeprefix("validation_")  # every target is
