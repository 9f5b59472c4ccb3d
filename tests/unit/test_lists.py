"""Lists of options: which are several values, which one, and what the plan says of it."""

from __future__ import annotations

import pytest

from harness.errors import InvalidInputError
from harness.gating.file import load as load_gate
from harness.plan import name_checks
from harness.spec import expand, load_sweep, parse_assignment
from harness.verbs import arms, specs
from launch.elsewhere import written

BASE = {"workload": "gpt", "optimizer": "adamw/foreach"}


def options(given, **fields):
    runs = expand([("here", {**BASE, **fields, "optimizer_options": given})], name_checks())
    return [run.optimizer_options for run in runs]


def test_a_list_multiplies_unless_the_options_default_is_a_list():
    assert options({"weight_decay": [0.0, 0.1], "betas": [0.9, 0.95]}) == [
        {"weight_decay": 0.0, "betas": [0.9, 0.95]},
        {"weight_decay": 0.1, "betas": [0.9, 0.95]},
    ]


def test_a_list_of_lists_multiplies_where_the_default_is_a_list():
    found = options({"betas": [[0.9, 0.95], [0.9, 0.99]], "eps": [1e-6, 1e-8]})
    assert [(each["betas"][1], each["eps"]) for each in found] == [
        (0.95, 1e-6),
        (0.95, 1e-8),
        (0.99, 1e-6),
        (0.99, 1e-8),
    ]


def test_axes_vary_in_the_order_written_fields_and_options_alike():
    cell = {"seed": [0, 1], "optimizer_options": {"eps": [1e-6, 1e-8]}, **BASE, "lr": [0.1, 0.2]}
    found = expand([("here", cell)], name_checks())
    assert [(run.seed, run.optimizer_options["eps"], run.lr) for run in found[:3]] == [
        (0, 1e-6, 0.1),
        (0, 1e-6, 0.2),
        (0, 1e-8, 0.1),
    ]
    assert len(found) == 8


def test_each_optimizer_of_an_axis_is_asked_for_its_own_defaults(tmp_path):
    text = "class Mine:\n    def __init__(self, params, betas=0.9):\n        pass\n"
    (tmp_path / "mine.py").write_text(text)
    cell = {**BASE, "optimizer": ["adamw/fused", f"{tmp_path}/mine.py:Mine"], "seed": [0, 1]}
    cell["optimizer_options"] = {"betas": [0.9, 0.95]}
    found = expand([("here", cell)], name_checks())
    assert [(run.optimizer.rpartition(":")[2], run.seed, run.optimizer_options["betas"]) for run in found] == [
        ("adamw/fused", 0, [0.9, 0.95]),
        ("adamw/fused", 1, [0.9, 0.95]),
        ("Mine", 0, 0.9),
        ("Mine", 0, 0.95),
        ("Mine", 1, 0.9),
        ("Mine", 1, 0.95),
    ]


def test_options_of_workload_and_strategy_follow_the_same_rule():
    cell = {**BASE, "strategy": "ddp", "strategy_options": {"bucket_cap_mb": [1, 25]}}
    cell["workload_options"] = {"dropout": [0.0, 0.1]}
    found = expand([("here", cell)], name_checks())
    assert [(run.strategy_options["bucket_cap_mb"], run.workload_options["dropout"]) for run in found] == [
        (1, 0.0),
        (1, 0.1),
        (25, 0.0),
        (25, 0.1),
    ]


def test_an_empty_list_names_no_run_and_nothing_else_is_lost():
    with pytest.raises(InvalidInputError) as caught:
        options({"weight_decay": [], "eps": 1e-6}, stpes=3)
    places = {problem.where: problem.what for problem in caught.value.problems}
    assert places["here.optimizer_options.weight_decay"] == "an empty list names no run"
    assert places["here.stpes"] == "unknown key"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0,0.1", [0, 0.1]),
        ("0, 0.1", [0, 0.1]),
        ("[0.9,0.95],[0.9,0.99]", [[0.9, 0.95], [0.9, 0.99]]),
        ("[0.9,0.95]", [0.9, 0.95]),
        ("a,b", ["a", "b"]),
        ("none,0.1,true", ["none", 0.1, True]),
        ('"a,b"', "a,b"),
        ('"a,b",c', ["a,b", "c"]),
        ("{x = 1, y = 2}", {"x": 1, "y": 2}),
        ("a,", "a,"),
        ("0.1", 0.1),
    ],
)
def test_commas_on_the_command_line_are_a_list(text, value):
    assert parse_assignment(f"optimizer.x={text}") == (("optimizer_options", "x"), value)


def test_commas_multiply_in_every_option_of_the_command_line():
    given = specs.axes(
        workload=["gpt"], optimizer=["adamw/foreach,adamw/fused"], lr=["0.1,0.2", 0.3], seed=["0,1"]
    )
    runs = specs.read([], given, ["optimizer.weight_decay=0,0.1"]).runs
    assert len(runs) == 2 * 3 * 2 * 2
    assert {run.optimizer_options["weight_decay"] for run in runs} == {0, 0.1}
    assert {run.lr for run in runs} == {0.1, 0.2, 0.3}


def test_what_was_made_of_lists_is_said():
    settings = ["optimizer.weight_decay=0,0.1", "optimizer.betas=[0.9,0.95]"]
    assert specs.read([], BASE, settings).notes == (
        "optimizer.weight_decay = [0, 0.1]: 2 values, a run for each",
        "optimizer.betas = [0.9, 0.95]: one value, as its default [0.9, 0.999] is a list",
    )


SWEEP = '[[runs]]\nworkload = "gpt"\noptimizer = "adamw/fused"\n'


def test_every_toml_file_may_begin_with_a_byte_order_mark(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "s.toml").write_bytes(mark + SWEEP.encode())
    assert len(load_sweep(tmp_path / "s.toml", name_checks()).runs) == 1
    gate = SWEEP.replace("runs", "cell") + "[gate]\ndrift_steps = 60\n"
    (tmp_path / "g.toml").write_bytes(mark + gate.encode())
    assert len(load_gate(tmp_path / "g.toml", name_checks()).cells) == 1
    (tmp_path / "a.toml").write_bytes(mark + (SWEEP * 2).replace("runs", "arm").encode())
    assert len(arms.from_file(tmp_path / "a.toml", {}, [])[0]) == 2


def test_an_arm_that_a_list_makes_several_runs_of_is_refused(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text((SWEEP * 2).replace("runs", "arm") + "optimizer_options = { eps = [1e-6, 1e-8] }\n")
    with pytest.raises(InvalidInputError, match="is 2 runs"):
        arms.from_file(file, {}, [])


def test_specs_that_another_checkout_runs_are_the_same_when_read_back(tmp_path):
    given = {"betas": [[0.9, 0.95], [0.9, 0.99]], "weight_decay": [[0.1, 0.2]]}
    runs = expand([("here", {**BASE, "optimizer_options": given})], name_checks())
    assert runs[0].optimizer_options == {"betas": [0.9, 0.95], "weight_decay": [0.1, 0.2]}
    (tmp_path / "s.toml").write_text(written(runs))
    assert load_sweep(tmp_path / "s.toml", name_checks()).runs == runs
