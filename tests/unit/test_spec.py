"""Specs and sweep files: what is written is what runs, and what is wrong is said all at once, with its place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.errors import InvalidInputError
from harness.spec import (
    DEFAULT_COLLECTORS,
    RunSpec,
    Sweep,
    default_warmup,
    expand,
    load_sweep,
    override,
    parse_assignment,
    suggest,
)

if TYPE_CHECKING:
    from pathlib import Path

REQUIRED = {"workload": "gpt", "optimizer": "adamw/fused"}

words = st.text("abcdefghij_-/:. é\"\\'#=", min_size=1, max_size=12)
floats = st.floats(allow_nan=False, allow_infinity=False)
options = st.dictionaries(words, st.booleans() | st.integers(-(2**40), 2**40) | floats | words, max_size=3)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "size": words,
    "data": words,
    "workload_options": options,
    "optimizer_options": options,
    "strategy": words,
    "strategy_options": options,
    "precision": st.sampled_from(["fp32", "tf32", "bf16", "bf16-pure", "bf16-master", "fp16"]),
    "device": st.sampled_from(["cpu", "accelerator"]),
    "world_size": st.integers(1, 4096),
    "threads": st.integers(1, 256),
    "seed": st.integers(0, 2**63 - 1),
    "steps": st.integers(20, 10**6),
    "warmup_steps": st.integers(0, 19),
    "turn_steps": st.integers(1, 100),
    "global_batch": st.integers(1, 10**6),
    "accumulation": st.integers(1, 64),
    "clip_norm": st.floats(1e-6, 1e6),
    "lr": st.floats(0, 10),
    "schedule": st.sampled_from(["constant", "warmup-cosine"]),
    "evaluate_every": st.integers(1, 1000),
    "timeout_s": st.floats(1e-3, 1e6),
    "collectors": st.lists(words, max_size=3),
}
cells = st.fixed_dictionaries({"workload": words, "optimizer": words}, optional=FIELDS)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)} = {toml(v)}" for key, v in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def table(cell: dict[str, Any]) -> str:
    return "".join(f"{key} = {toml(value)}\n" for key, value in cell.items())


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, checks: Any = None) -> dict[str, str]:
    """Place below the file -> what is wrong there and what to do about it."""
    with pytest.raises(InvalidInputError) as caught:
        load_sweep(path, checks or {})
    return {
        problem.where.removeprefix(f"{path}: "): f"{problem.what} | {problem.remedy}"
        for problem in caught.value.problems
    }


@settings(max_examples=150, deadline=None)
@given(st.lists(cells, min_size=1, max_size=3), words)
def test_any_sweep_file_holds_the_specs_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]], name: str
) -> None:
    text = f"name = {toml(name)}\n" + "".join(f"[[runs]]\n{table(cell)}" for cell in written)
    sweep = load_sweep(write(tmp_path_factory.getbasetemp(), text), {})
    assert sweep.name == name
    assert len(sweep.runs) == len(written)
    for spec, cell in zip(sweep.runs, written, strict=True):
        stored = spec.model_dump(mode="json")
        assert {key: stored[key] for key in cell} == cell
        assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
        assert RunSpec.model_validate(stored) == spec
    assert Sweep.model_validate_json(sweep.model_dump_json()) == sweep


def test_what_a_cell_leaves_out_has_the_documented_defaults(tmp_path: Path) -> None:
    (spec,) = load_sweep(write(tmp_path, "[[runs]]\n" + table(REQUIRED)), {}).runs
    assert spec == RunSpec(**REQUIRED)
    assert (spec.strategy, spec.precision, spec.world_size, spec.seed) == ("single", "fp32", None, 0)
    assert (spec.steps, spec.warmup_steps, spec.evaluation_interval) == (100, 10, 25)
    assert (spec.clip_norm, spec.lr, spec.schedule) == (None, None, "constant")
    assert spec.collectors == DEFAULT_COLLECTORS


def test_a_sweep_without_a_name_is_called_as_its_file(tmp_path: Path) -> None:
    assert load_sweep(write(tmp_path, "[[runs]]\n" + table(REQUIRED)), {}).name == "sweep"


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 1), (5, 1), (10, 2), (50, 10), (10**6, 10)])
def test_a_fifth_of_the_steps_and_ten_at_most_are_warm_up(steps: int, warmup: int) -> None:
    assert default_warmup(steps) == warmup
    assert RunSpec(**REQUIRED, steps=steps).warmup_steps == warmup


def test_lists_multiply_out_and_the_last_one_written_varies_fastest(tmp_path: Path) -> None:
    text = '[[runs]]\nworkload = ["cnn", "gpt"]\noptimizer = ["sgd/fused", "sgd/foreach"]\nseed = [0, 1]\n'
    runs = load_sweep(write(tmp_path, text), {}).runs
    assert [(spec.workload, spec.optimizer, spec.seed) for spec in runs] == [
        (workload, optimizer, seed)
        for workload in ("cnn", "gpt")
        for optimizer in ("sgd/fused", "sgd/foreach")
        for seed in (0, 1)
    ]


def test_lists_that_are_values_are_no_axes(tmp_path: Path) -> None:
    lists = "collectors = ['timing', 'memory']\noptimizer_options = {betas = [0.9, 0.95]}\n"
    text = f"[[runs]]\n{table(REQUIRED)}{lists}"
    (spec,) = load_sweep(write(tmp_path, text), {}).runs
    assert spec.collectors == ("timing", "memory")
    assert spec.optimizer_options == {"betas": [0.9, 0.95]}


def test_runs_win_over_defaults_option_by_option_and_assignments_over_both(tmp_path: Path) -> None:
    text = (
        "[defaults]\nsteps = 50\nseed = 1\noptimizer_options = {weight_decay = 0.1, eps = 1e-6}\n"
        f"[[runs]]\n{table(REQUIRED)}seed = 2\noptimizer_options = {{eps = 1e-8}}\n"
    )
    path = write(tmp_path, text)
    (spec,) = load_sweep(path, {}).runs
    assert (spec.steps, spec.seed, spec.optimizer_options) == (50, 2, {"weight_decay": 0.1, "eps": 1e-8})
    (spec,) = load_sweep(path, {}, [(("seed",), 3), (("optimizer_options", "weight_decay"), 0.5)]).runs
    assert (spec.seed, spec.optimizer_options) == (3, {"weight_decay": 0.5, "eps": 1e-8})


def test_every_error_of_a_file_is_reported_with_its_place_and_remedy(tmp_path: Path) -> None:
    text = """
        nmae = "x"
        [[runs]]
        workload = "gpd"
        optimizer = "adamw/fused"
        stpes = 10
        nproc = 2
        seed = "seven"
        [[runs]]
        workload = "gpt"
        steps = 0
        lr = -1.0
        seed = []
        [[runs]]
        workload = "gpt"
        optimizer = "sgd/fused"
        steps = 5
        warmup_steps = 5
    """
    found = problems(
        write(tmp_path, text), {"workload": lambda name: None if name == "gpt" else suggest(name, ["gpt", "cnn"])}
    )
    assert found == {
        "nmae": "unknown key | did you mean name?",
        "runs[0].workload": "unknown name 'gpd' | did you mean gpt?",
        "runs[0].stpes": "unknown key | did you mean steps?",
        "runs[0].nproc": "unknown key | did you mean world_size?",
        "runs[0].seed": "Input should be a valid integer, found 'seven' | None",
        "runs[1].optimizer": "is missing | add optimizer = …",
        "runs[1].steps": "Input should be greater than or equal to 1, found 0 | None",
        "runs[1].seed": "an empty list names no run | give at least one value, or leave it out",
        "runs[1].lr": "Input should be greater than or equal to 0, found -1.0 | None",
        "runs[2]": "warmup_steps = 5 leaves none of steps = 5 to time; use at most 4 | None",
    }


def test_every_error_of_one_cell_is_reported(tmp_path: Path) -> None:
    text = '[[runs]]\nworkload = "gpt"\nsteps = 0\nprecision = "fp64"\nlr = -1.0\ntimeout_s = inf\nseed = 1.5\n'
    found = problems(write(tmp_path, text))
    assert found == {
        "runs[0].optimizer": "is missing | add optimizer = …",
        "runs[0].steps": "Input should be greater than or equal to 1, found 0 | None",
        "runs[0].precision": "Input should be 'fp32', 'tf32', 'bf16', 'bf16-pure', 'bf16-master' or 'fp16', "
        "found 'fp64' | None",
        "runs[0].lr": "Input should be greater than or equal to 0, found -1.0 | None",
        "runs[0].timeout_s": "Input should be a finite number, found inf | None",
        "runs[0].seed": "Input should be a valid integer, found 1.5 | None",
    }


WRONG = {
    "size": 3,
    "precision": "fp8",
    "device": "gpu",
    "world_size": 0,
    "threads": "2",
    "seed": -1,
    "turn_steps": 0.5,
    "global_batch": True,
    "accumulation": "1",
    "clip_norm": 0.0,
    "lr": "fast",
    "schedule": "linear",
    "evaluate_every": -3,
    "timeout_s": 0,
    "workload_options": 1,
    "moon": 1,
}


@settings(max_examples=80, deadline=None)
@given(st.sets(st.sampled_from(sorted(WRONG)), min_size=1), st.integers(1, 3))
def test_any_wrong_fields_are_each_reported_once_a_cell(
    tmp_path_factory: pytest.TempPathFactory, wrong: set[str], count: int
) -> None:
    cell = {**REQUIRED, **{key: WRONG[key] for key in wrong}}
    path = write(tmp_path_factory.getbasetemp(), f"[[runs]]\n{table(cell)}" * count)
    with pytest.raises(InvalidInputError) as caught:
        load_sweep(path, {})
    places = [problem.where for problem in caught.value.problems]
    assert sorted(places) == sorted(f"{path}: runs[{index}].{key}" for index in range(count) for key in wrong)


def test_a_mistake_in_a_multiplied_cell_is_reported_once(tmp_path: Path) -> None:
    text = f"[[runs]]\n{table(REQUIRED)}seed = [0, 1, 2]\nsteps = ['many', 10]\n"
    assert list(problems(write(tmp_path, text))) == ["runs[0].steps"]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", "runs", "the sweep names no run | add a [[runs]] table for each"),
        ("runs = 3", "runs", "the sweep names no run"),
        ("runs = [3]", "runs", "the sweep names no run"),
        ("name = 3", "name", "expected a string, found 3"),
        ("defaults = 3", "defaults", "expected a table | write [defaults]"),
    ],
)
def test_a_file_of_the_wrong_shape_says_what_was_expected(
    tmp_path: Path, text: str, place: str, message: str
) -> None:
    assert problems(write(tmp_path, text))[place].startswith(message)


def test_a_file_that_is_no_toml_or_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"sweep\.toml: is not valid TOML: .*line 2"):
        load_sweep(write(tmp_path, "a = 1\nb = = 2"), {})
    (tmp_path / "sweep.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match=r"sweep\.toml: is not valid TOML"):
        load_sweep(tmp_path / "sweep.toml", {})
    with pytest.raises(InvalidInputError, match=r"absent\.toml: cannot be read: No such file"):
        load_sweep(tmp_path / "absent.toml", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.1", (("lr",), 0.1)),
        ("nesterov=true", (("nesterov",), True)),
        ("optimizer.weight_decay=0.1", (("optimizer_options", "weight_decay"), 0.1)),
        ("strategy.bucket_cap_mb=25", (("strategy_options", "bucket_cap_mb"), 25)),
        ("workload.dropout = 0.1", (("workload_options", "dropout"), 0.1)),
        ("optimizer=adamw/fused", (("optimizer",), "adamw/fused")),
        ('data="a b.bin"', (("data",), "a b.bin")),
        ("data=x=y", (("data",), "x=y")),
        ("optimizer.betas=[0.9, 0.95]", (("optimizer_options", "betas"), [0.9, 0.95])),
        ("size=", (("size",), "")),
    ],
)
def test_an_assignment_is_toml_or_a_bare_word(text: str, expected: Any) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["lr", "=1", " = 1", ""])
def test_an_assignment_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="expected key=value"):
        parse_assignment(text)


@given(words, floats | st.integers() | st.booleans() | words)
def test_any_value_can_be_assigned(key: str, value: Any) -> None:
    assume("=" not in key and "." not in key and key.strip())
    assert parse_assignment(f"{key}={toml(value)}") == ((key.strip(),), value)


def test_overriding_leaves_the_cell_given_as_it_was() -> None:
    cell = {"optimizer_options": {"eps": 1.0}, "seed": 1}
    assert override(cell, ("optimizer_options", "eps"), 2.0) == {"optimizer_options": {"eps": 2.0}, "seed": 1}
    assert override(cell, ("strategy_options", "static_graph"), value=True)["strategy_options"] == {
        "static_graph": True
    }
    assert cell == {"optimizer_options": {"eps": 1.0}, "seed": 1}


def test_an_empty_list_of_a_required_field_is_one_problem_not_two() -> None:
    with pytest.raises(InvalidInputError) as caught:
        expand([("here", {"workload": [], "optimizer": "sgd/fused"})], {})
    assert [(problem.where, problem.what) for problem in caught.value.problems] == [
        ("here.workload", "an empty list names no run")
    ]


def test_names_of_a_list_are_each_checked() -> None:
    cell = {"workload": "gpt", "optimizer": ["sgd/fused", "sgd/fuse", "sgd/fast"]}
    with pytest.raises(InvalidInputError) as caught:
        expand([("here", cell)], {"optimizer": lambda name: None if name == "sgd/fused" else "no"})
    assert [problem.what for problem in caught.value.problems] == [
        "unknown name 'sgd/fuse'",
        "unknown name 'sgd/fast'",
    ]


@pytest.mark.parametrize(
    ("word", "known", "remedy"),
    [
        ("adamv", ["adamw", "sgd"], "did you mean adamw?"),
        ("moon", ["adamw", "sgd"], "known: adamw, sgd"),
        ("moon", [], None),
    ],
)
def test_an_unknown_word_gets_the_near_ones_or_all(word: str, known: list[str], remedy: str | None) -> None:
    assert suggest(word, known) == remedy


def test_a_spec_cannot_be_changed() -> None:
    spec = RunSpec(**REQUIRED)
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 1  # type: ignore[misc]
