"""``optbench plan --matrix``: every optimizer under every strategy in every precision, run or explained."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Group, RenderableType
from rich.text import Text

from harness import plan
from harness.errors import InvalidInputError, Problem
from harness.registry import OPTIMIZERS, STRATEGIES, strategy
from harness.spec import Precision
from harness.varying import unusual, word_of
from harness.verbs import specs as options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.machine import Machine
    from harness.spec import RunSpec

WIDTH = 80
"""Columns of a terminal that the grid and the reasons fit in."""

LABEL, CELL = 24, 7
"""Columns of an optimizer's name, and of one strategy."""

UNSUPPORTED = "."

MARKS = {"fp32": "f", "tf32": "t", "bf16": "b", "bf16-pure": "p", "bf16-master": "m", "fp16": "h"}
"""The letter of each precision."""

AXES = ("optimizer", "strategy", "precision")

FEW = 4
"""So many names are written out below a reason; of more, the number and the first ones."""


@dataclass(frozen=True)
class Verdict:
    """One cell of the grid.

    Attributes:
        optimizer: its name.
        strategy: its name.
        precision: one of RunSpec's.
        reason: why it cannot run here and what would fix it; None: it runs.
    """

    optimizer: str
    strategy: str
    precision: str
    reason: str | None


@dataclass(frozen=True)
class Grid:
    """All cells, optimizers first, precisions last and fastest.

    Attributes:
        base: the run that each cell is a variant of.
        optimizers: the names of the first axis.
        strategies: the names of the second axis.
        precisions: the names of the third axis.
        cells: their product, in that order.
    """

    base: RunSpec
    optimizers: tuple[str, ...]
    strategies: tuple[str, ...]
    precisions: tuple[str, ...]
    cells: tuple[Verdict, ...]


def base_and_axes(given: Mapping[str, Any], settings: Sequence[str]) -> tuple[RunSpec, dict[str, tuple[str, ...]]]:
    """Return the run that every cell is a variant of, and the names of each axis: those given, else all.

    Raises:
        InvalidInputError: with every wrong name or value, or where another option has several values.
    """
    every: dict[str, tuple[str, ...]] = {
        "optimizer": tuple(OPTIMIZERS.names()),
        "strategy": tuple(STRATEGIES.names()),
        "precision": get_args(Precision),
    }
    first = {"workload": "gpt"} | {axis: names[0] for axis, names in every.items()}
    runs = options.read([], {**first, **given}, settings).runs
    others = {run.model_dump_json(exclude=set(AXES)) for run in runs}
    if len(others) > 1:
        found = f"{len(others)} values of options beside {', '.join(f'--{axis}' for axis in AXES)}"
        raise InvalidInputError([Problem("--matrix", found, "it shows one workload at a time: give one of each")])
    axes = {
        axis: tuple(dict.fromkeys(getattr(run, axis) for run in runs)) if axis in given else every[axis]
        for axis in AXES
    }
    return runs[0], axes


def grid(base: RunSpec, axes: Mapping[str, Sequence[str]], machine: Machine, available_bytes: int) -> Grid:
    """Ask of every cell whether it can run, as `harness.plan.plan` does.

    Args:
        base: the run that each cell is a variant of; its world size counts for strategies over several ranks.
        axes: the names of each axis.
        machine: what the probe found.
        available_bytes: host memory free now.

    Raises:
        InvalidInputError: for options that an optimizer or a strategy does not have.
    """
    workload = plan.workload_traits(base.workload, machine)
    strategies = {name: strategy(name) for name in axes["strategy"]}
    found: list[Verdict] = []
    for name in axes["optimizer"]:
        optimizer = OPTIMIZERS.get(name)
        for under, chosen in strategies.items():
            parts = plan.Parts(workload, optimizer, chosen)
            ranks = {"world_size": None} if chosen.one_rank else {}
            for precision in axes["precision"]:
                spec = base.model_copy(
                    update={"optimizer": name, "strategy": under, "precision": precision, **ranks}
                )
                where = f"{name} {under} {precision}"
                cell = plan.cell(len(found), where, spec, parts, machine, available_bytes)
                found.append(Verdict(name, under, precision, cell.unsupported))
    return Grid(base, tuple(axes["optimizer"]), tuple(strategies), tuple(axes["precision"]), tuple(found))


def document(found: Grid) -> dict[str, Any]:
    """Return the grid as JSON."""
    base = found.base
    shared = {"workload": base.workload, "size": base.size, "world_size": base.world_size, "device": base.device}
    cells = [
        {
            "optimizer": each.optimizer,
            "strategy": each.strategy,
            "precision": each.precision,
            "runs": each.reason is None,
            "reason": each.reason,
        }
        for each in found.cells
    ]
    return {**shared, "cells": cells}


def table(found: Grid) -> RenderableType:
    """Return the grid in blocks of strategies that fit 80 columns, then what the marks mean, then the reasons."""
    rows = _rows(found)
    per_block = (WIDTH - LABEL) // (CELL + 1)
    blocks: list[RenderableType] = []
    for start in range(0, len(found.strategies), per_block):
        blocks += [*_block(found.strategies[start : start + per_block], rows, found), Text("")]
    return Group(*_legend(found), Text(""), *blocks, *_many_names(rows), *_reasons(found))


Marks = dict[str, str]
"""Strategy -> a mark for each precision."""


def _rows(found: Grid) -> list[tuple[list[str], Marks]]:
    """Return names that share all marks, of one algorithm or of one package of many names, with those marks."""
    marks: dict[str, Marks] = {}
    for each in found.cells:
        mark = MARKS[each.precision] if each.reason is None else UNSUPPORTED
        row = marks.setdefault(each.optimizer, {})
        row[each.strategy] = row.get(each.strategy, "") + mark
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, row in marks.items():
        alike.setdefault((_stem(name), tuple(row.values())), []).append(name)
    order = {stem: place for place, stem in enumerate(dict.fromkeys(map(_stem, marks)))}
    ordered = sorted(alike.items(), key=lambda item: order[item[0][0]])
    return [(names, marks[names[0]]) for _, names in ordered]


def _stem(name: str) -> str:
    """Return what the names of one row have in common: the algorithm, or the package before the colon."""
    stem, slash, _ = name.partition("/")
    return stem + slash if slash else name.rpartition(":")[0] + ":"


def _label(names: Sequence[str]) -> str:
    stem = _stem(names[0])
    ends = [name.removeprefix(stem) for name in names]
    if stem.endswith(":") and len(ends) > 1:
        return f"{stem}{ends[0]} and {len(ends) - 1} more"
    return stem + ", ".join(ends)


def _block(
    strategies: Sequence[str], rows: Sequence[tuple[list[str], Marks]], found: Grid
) -> Iterable[RenderableType]:
    """Yield the heading, in as many lines as its longest name needs, and a line or more for each row."""
    headings = [_heading(name) for name in strategies]
    for number in range(max(map(len, headings))):
        words = (heading[number] if number < len(heading) else "" for heading in headings)
        yield Text((" " * LABEL + "".join(f" {word:<{CELL}}" for word in words)).rstrip(), style="bold")
    for names, marks in rows:
        first, *more = textwrap.wrap(_label(names), LABEL, subsequent_indent="  ")
        line = Text(f"{first:<{LABEL}}")
        for name in strategies:
            line.append(" ")
            line.append_text(_coloured(marks[name]))
            line.append(" " * (CELL - len(found.precisions)))
        line.rstrip()
        yield line
        yield from (Text(each) for each in more)


def _heading(name: str) -> list[str]:
    """Return a strategy's name in pieces that fit its column, broken after hyphens first."""
    words = name.replace("-", "- ").split()
    return [word[at : at + CELL] for word in words for at in range(0, len(word), CELL)]


def _coloured(marks: str) -> Text:
    text = Text()
    for mark in marks:
        text.append(mark, style="red" if mark == UNSUPPORTED else "green")
    return text


def _legend(found: Grid) -> Iterable[RenderableType]:
    runs = sum(each.reason is None for each in found.cells)
    words = [f"{MARKS[name]} {name}" for name in found.precisions]
    size = "" if found.base.size is None else f" {found.base.size}"
    more = unusual(found.base.model_dump(mode="json"), shown=("workload", "size", *AXES))
    told = "".join(f" {name}={word_of(value)}" for name, value in more.items())
    yield from _wrapped(
        f"{found.base.workload}{size}{told}: {runs:,} of {len(found.cells):,} cells run here. Each optimizer has "
        f"a letter for each precision that it runs in under a strategy ({', '.join(words)}), and "
        f"{UNSUPPORTED} where it does not; the reasons are below.",
        "",
    )


def _many_names(rows: Sequence[tuple[list[str], Marks]]) -> Iterable[RenderableType]:
    """Yield the names that a label has left out."""
    left_out = [names for names, _ in rows if len(names) > 1 and _stem(names[0]).endswith(":")]
    for names in left_out:
        ends = ", ".join(name.removeprefix(_stem(names[0])) for name in names)
        yield from _wrapped(f"{_label(names)}: {ends}", "  ")
    if left_out:
        yield Text("")


def _reasons(found: Grid) -> Iterable[RenderableType]:
    """Yield each reason once, the most frequent first, with the number of its cells and which they are."""
    alike: dict[str, list[Verdict]] = {}
    for each in found.cells:
        if each.reason is not None:
            alike.setdefault(_general(each.reason, each, AXES), []).append(each)
    for cells in sorted(alike.values(), key=lambda cells: -len(cells)):
        several = [axis for axis in AXES if len({getattr(each, axis) for each in cells}) > 1]
        yield from _wrapped(f"{len(cells):>5} x {_general(cells[0].reason or '', cells[0], several)}", " " * 8)
        yield from _wrapped(f"{' ' * 8}{_whose(cells, found)}", " " * 8, style="dim")


def _general(reason: str, cell: Verdict, axes: Sequence[str]) -> str:
    """Return the reason with the cell's own names on these axes left open, so that cells alike share one."""
    for axis in axes:
        names = {axis.upper(): getattr(cell, axis)}
        if axis == "optimizer" and "/" in cell.optimizer:
            names["ALGORITHM"] = cell.optimizer.partition("/")[0]
        for word, name in names.items():
            reason = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", word, reason)
    return reason


def _whose(cells: Sequence[Verdict], found: Grid) -> str:
    axes = (
        ("optimizers", found.optimizers, [each.optimizer for each in cells]),
        ("strategies", found.strategies, [each.strategy for each in cells]),
        ("precisions", found.precisions, [each.precision for each in cells]),
    )
    told, product = [], 1
    for plural, every, here in axes:
        names = list(dict.fromkeys(here))
        product *= len(names)
        told.append(_few(names, plural, len(every)))
    return f"{'' if product == len(cells) else 'some of: '}{'; '.join(told)}"


def _few(names: Sequence[str], plural: str, of: int) -> str:
    if len(names) == of and of > 1:
        return f"all {plural}"
    if len(names) <= FEW:
        return ", ".join(names)
    return f"{len(names)} {plural} ({', '.join(names[: FEW - 1])}, …)"


def _wrapped(text: str, indent: str, style: str = "") -> list[RenderableType]:
    lines = textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    return [Text(line, style=style) for line in lines]
