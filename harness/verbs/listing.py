"""What ``optbench list`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness import plan, registry
from harness.errors import InvalidInputError, Problem
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
        "workloads": _workloads,
        "optimizers": lambda: _optimizers(machine()),
        "strategies": _strategies,
        "collectors": lambda: _names(registry.COLLECTORS),
        "reports": lambda: _names(registry.REPORTS),
        "sweeps": lambda: [{"name": f.stem, "file": str(f)} for f in sorted(SHIPPED.glob("*.toml"))],
    }
    if kind not in kinds:
        raise InvalidInputError([Problem("list", f"unknown kind {kind!r}", suggest(kind, list(kinds)))])
    return kinds[kind]()


def _workloads() -> list[Row]:
    found = []
    for name in registry.WORKLOADS.targets():
        traits = plan.workload_traits(name)
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


def _optimizers(machine: Machine) -> list[Row]:
    found = []
    for name in registry.OPTIMIZERS.names():
        reason = plan.optimizer_runs_here(name, machine)
        options = registry.OPTIMIZERS.get(name).options(machine)
        found.append({"name": name, "runs": reason is None, "reason": reason, "options": options})
    return found


def _strategies() -> list[Row]:
    return [
        {
            "name": name,
            "ranks": "1" if registry.strategy(name).one_rank else "any",
            "options": registry.strategy(name).options,
        }
        for name in registry.STRATEGIES.targets()
    ]


def _names(of: registry.Registry) -> list[Row]:
    return [{"name": name, "target": target} for name, target in of.targets().items()]


def table(kind: str, found: list[Row]) -> RenderableType:
    """Return the rows as a table for 80 columns; what several rows would say stands once below it."""
    reasons = list(dict.fromkeys(row["reason"] for row in found if row.get("reason")))
    if kind == "optimizers":
        found = [
            {**row, "runs here": "yes" if row["runs"] else f"no, see {reasons.index(row['reason']) + 1}"}
            for row in found
        ]
    columns = {
        "workloads": ("name", "size", "parameters", "global_batch", "target"),
        "optimizers": ("name", "runs here", "options"),
        "strategies": ("name", "ranks", "options"),
    }.get(kind, tuple(found[0]) if found else ())
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        right = column in {"parameters", "global_batch"}
        named = column in {"name", "runs here", "ranks"}
        shown.add_column(
            column.replace("_", " "), justify="right" if right else "left", overflow="fold", no_wrap=named
        )
    for row in found:
        shown.add_row(*(_cell(row[column]) for column in columns))
    return Group(shown, *(Text(f"{number}  {reason}") for number, reason in enumerate(reasons, start=1)))


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
