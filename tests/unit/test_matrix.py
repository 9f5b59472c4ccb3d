"""The grid of `plan --matrix`: every cell has a verdict, and each verdict against it a reason that is printed."""

from __future__ import annotations

import json
import re

import pytest

from harness.errors import InvalidInputError
from harness.plan import plan
from harness.registry import OPTIMIZERS, STRATEGIES
from harness.verbs.matrix import AXES, MARKS, UNSUPPORTED, base_and_axes, document, grid, table
from tests.golden.test_reports import matches, text_of
from tests.unit.test_plan import GIB, machine

NARROW = {
    "optimizer": ["adamw/forloop", "adamw/foreach", "adamw/apex", "lbfgs/forloop", "sparseadam/forloop"],
    "strategy": ["single", "ddp"],
}


def found(given, accelerators=0, settings=()):
    base, axes = base_and_axes(given, settings)
    return grid(base, axes, machine(accelerators), 64 * GIB)


@pytest.fixture(scope="module")
def everything():
    return found({})


def test_the_whole_grid_is_the_product_of_the_registries(everything):
    names = (OPTIMIZERS.names(), STRATEGIES.names(), list(MARKS))
    assert [list(axis) for axis in (everything.optimizers, everything.strategies, everything.precisions)] == [
        *names
    ]
    assert len(everything.cells) == len(names[0]) * len(names[1]) * len(names[2])


def test_every_cell_runs_or_has_a_reason_and_json_says_the_same(everything):
    cells = document(everything)["cells"]
    assert len(cells) == len(everything.cells)
    assert all(cell["runs"] is (cell["reason"] is None) for cell in cells)
    assert all(cell["reason"] for cell in cells if not cell["runs"])
    json.dumps(cells, allow_nan=False)


def words(text):
    return " ".join(text.split())


def test_the_printed_grid_has_a_mark_for_every_cell_and_every_reason_below(everything):
    text = text_of(table(everything))
    assert max(map(len, text.splitlines())) <= 80
    cells = {(each.optimizer, each.strategy, each.precision): each.reason for each in everything.cells}
    runs = sum(reason is None for reason in cells.values())
    assert f"{runs:,} of {len(cells):,} cells run here" in words(text)
    counted = [int(number) for number in re.findall(r"^ *(\d+) x ", text, flags=re.MULTILINE)]
    assert sum(counted) == len(cells) - runs
    assert counted == sorted(counted, reverse=True)
    marks = "".join([*MARKS.values(), UNSUPPORTED])
    cells_of = [re.findall(rf" ([{marks}]{{6}})(?= |$)", line) for line in text.splitlines()]
    lengths = list(dict.fromkeys(len(row) for row in cells_of if row))  # of the blocks' rows
    rows = sum(len(row) for row in cells_of) // len(STRATEGIES.names())
    assert rows * len(STRATEGIES.names()) == sum(len(row) for row in cells_of)
    assert max(lengths) * 8 <= 80


def test_a_verdict_is_the_one_that_a_plan_gives():
    shown = found(NARROW)
    specs = [
        shown.base.model_copy(update={axis: getattr(cell, axis) for axis in AXES} | {"world_size": None})
        for cell in shown.cells
    ]
    assert [c.unsupported for c in plan(specs, machine(), 64 * GIB).cells] == [c.reason for c in shown.cells]


def test_axes_are_narrowed_and_ranks_count_where_there_are_several():
    shown = found({**NARROW, "precision": "fp32", "world_size": 4})
    assert (shown.precisions, shown.strategies) == (("fp32",), ("single", "ddp"))
    runs = {(c.optimizer, c.strategy) for c in shown.cells if c.reason is None}
    assert {("adamw/foreach", "single"), ("adamw/foreach", "ddp")} <= runs


def test_a_machine_with_gpus_runs_what_a_cpu_cannot():
    narrow = {"optimizer": "adamw/foreach", "strategy": "ddp"}
    runs = {n: {c.precision for c in found(narrow, n).cells if c.reason is None} for n in (0, 8)}
    assert runs[0] == {"fp32", "bf16", "bf16-pure", "bf16-master"}
    assert runs[8] == set(MARKS)


@pytest.mark.parametrize(
    ("given", "place", "word"),
    [
        ({"optimizer": "adamw/foreachh"}, "--optimizer", "did you mean"),
        ({"strategy": ["ddp", "dpd"]}, "--strategy", "did you mean"),
        ({"workload": ["gpt", "cnn"]}, "--matrix", "one workload"),
        ({"lr": [0.1, 0.2]}, "--matrix", "one of each"),
    ],
)
def test_wrong_words_are_told_with_the_remedy(given, place, word):
    with pytest.raises(InvalidInputError) as told:
        base_and_axes(given, ())
    assert any(place in str(problem) and word in str(problem) for problem in told.value.problems)


def test_the_grid_as_people_see_it():
    matches("matrix.txt", text_of(table(found(NARROW))))


def test_the_command_prints_it_for_another_machine(optbench, tmp_path):
    file = tmp_path / "machine.json"
    file.write_text(machine(8).model_dump_json())
    narrow = ("--optimizer", "adamw/foreach", "--optimizer", "adamw/apex", "--strategy", "ddp")
    ran = optbench("plan", "--matrix", *narrow, "--machine", str(file), "--json")
    cells = ran.json["cells"]
    assert [(c["optimizer"], c["runs"]) for c in cells if c["precision"] == "tf32"] == [
        ("adamw/foreach", True),
        ("adamw/apex", False),
    ]
    refused = optbench("plan", "--matrix", "--write", str(tmp_path))
    assert refused.code == 2
    assert "neither sweeps nor --write" in refused.err
