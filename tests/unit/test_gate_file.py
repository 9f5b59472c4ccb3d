"""The gate's TOML file and its one verdict."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InvalidInputError
from harness.gating.file import duration, fraction, load
from harness.gating.model import EXIT_CODES, RANKING, Gate, Row, combined
from harness.plan import name_checks

GOOD = """
name = "pull request"
[gate]
margin = "2.5 %"
margins = { peak_memory_bytes = 0.01 }
budget = "5 min"
drift_steps = 300
[baseline]
counts = "counts.json"
path = "../main"
[convergence]
metric = "validation_loss"
target = 2.0
[defaults]
workload = "gpt"
[[cell]]
name = "small"
optimizer = "adamw/fused"
[[cell]]
optimizer = ["adamw/foreach", "sgd/fused"]
"""


def read(tmp_path, text):
    path = tmp_path / "gate.toml"
    path.write_text(text)
    return load(path, name_checks())


def problems(tmp_path, text):
    with pytest.raises(InvalidInputError) as caught:
        read(tmp_path, text)
    return [str(each).removeprefix(f"{tmp_path}/gate.toml: ") for each in caught.value.problems]


def test_a_whole_file_is_read(tmp_path):
    found = read(tmp_path, GOOD)
    assert found.name == "pull request"
    assert found.margin("step_time_s", on_cpu=True) == 0.025
    assert found.margin("peak_memory_bytes", on_cpu=True) == 0.01
    assert found.settings.budget == 300
    assert found.baseline.counts == tmp_path / "counts.json"
    assert [cell.name for cell in found.cells] == [
        "small",
        "gpt adamw/foreach single fp32",
        "gpt sgd/fused single fp32",
    ]


def test_the_default_margin_follows_the_device(tmp_path):
    found = read(tmp_path, GOOD.replace('margin = "2.5 %"\n', ""))
    assert [found.margin("step_time_s", on_cpu=cpu) for cpu in (True, False)] == [0.025, 0.01]
    bare = read(tmp_path, GOOD.replace('margin = "2.5 %"\n', "").replace("margins =", "# margins ="))
    assert [bare.margin("peak_memory_bytes", on_cpu=cpu) for cpu in (True, False)] == [0.05, 0.01]


def test_every_error_is_told_at_once_with_its_place(tmp_path):
    told = problems(
        tmp_path,
        """
        gates = 1
        [gate]
        margin = "200 %"
        margin_s = 1
        budget = "soon"
        margins = { step_time = 0.1 }
        [baseline]
        count = "x"
        [convergence]
        seeds = [1, 2]
        target = 1.0
        [[cell]]
        workload = "gpd"
        optimizer = "adamw/fused"
        [[cell]]
        workload = "gpt"
        optimiser = "adamw/fused"
        """,
    )
    joined = "\n".join(told)
    for words in (
        "gates: unknown key",
        "gate.margin: expected a fraction below 1",
        "gate.margin_s: unknown key",
        "gate.budget: expected a time",
        "baseline.count: unknown key\n    did you mean counts?",
        "convergence.seeds: 2 distinct seeds cannot give a 99 % bound",
        "convergence: metric and target go together",
        "convergence: needs other code to train with",
        "cell[0].workload: unknown name 'gpd'",
        "cell[1].optimiser: unknown key",
        "cell[1].optimizer: is missing",
    ):
        assert words in joined, joined


def test_a_gate_of_nothing_against_nothing_is_refused(tmp_path):
    assert "the gate names no cell" in "".join(problems(tmp_path, '[baseline]\ncounts = "c.json"'))
    cell = '[[cell]]\nworkload = "gpt"\noptimizer = "adamw/fused"\n'
    assert "nothing to hold the cells against" in "".join(problems(tmp_path, cell))


def test_two_cells_of_one_name_are_refused(tmp_path):
    cell = '[[cell]]\nworkload = "gpt"\noptimizer = "adamw/fused"\nseed = {}\n'
    told = problems(tmp_path, '[baseline]\ncounts = "c.json"\n' + cell.format(1) + cell.format(2))
    assert 'give each a name = "…"' in told[0]


@pytest.mark.parametrize("text", ["[gate", "cell = 3", "[[cell]]\nname = 3", "defaults = 1", "gate = 1", "[cell]"])
def test_what_is_no_gate_is_refused_in_words(tmp_path, text):
    assert problems(tmp_path, text)


@given(st.floats(0, 0.99))
def test_percents_and_fractions_are_the_same(value):
    assert fraction(value) == value
    assert fraction(f"{100 * value:.10f} %") == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("value", [5, 5.0, "5", "500 %", 1])
def test_a_margin_of_one_or_more_is_refused_in_a_file_and_on_the_command_line_alike(tmp_path, value):
    from harness.verbs import arms

    cell = '[baseline]\ncounts = "c.json"\n[[cell]]\nworkload = "gpt"\noptimizer = "adamw/fused"\n'
    (told,) = problems(tmp_path, f"[gate]\nmargin = {value!r}\n{cell}")
    assert told.startswith('gate.margin: expected a fraction below 1: 0.025 or "2.5 %"')
    with pytest.raises(InvalidInputError, match="--margin: expected a fraction below 1"):
        arms.margin(value)
    assert ('5 % is written "5 %"' in told) == (str(value).rstrip(".0") == "5")


@given(st.one_of(st.text(max_size=12), st.booleans(), st.none(), st.floats(), st.lists(st.integers())))
def test_anything_else_is_a_value_error(value):
    for parse in (fraction, duration):
        with contextlib.suppress(ValueError):
            assert parse(value) >= 0


def test_durations_have_units():
    assert [duration(each) for each in (90, "90", "90s", "1.5 min", "2h")] == [90, 90, 90, 90, 7200]


def row(verdict):
    return Row(axis="counts", cell="a", what="b", verdict=verdict)


@given(st.lists(st.sampled_from(RANKING)))
def test_a_gate_passes_only_if_every_row_does(verdicts):
    found = Gate(name="g", rows=tuple(map(row, verdicts)), spent_s=1.0).verdict
    assert (found == "passed") == (set(verdicts) == {"passed"})
    assert found == combined(reversed(verdicts))


def test_the_worse_verdict_wins_and_has_its_exit_code():
    for worse, better in itertools.combinations(RANKING, 2):
        assert combined([better, worse]) == worse
    assert [EXIT_CODES[each] for each in ("passed", "regressed", "inconclusive", "invalid")] == [0, 1, 3, 4]


def test_lists_of_any_field_make_cells_of_different_names_and_option_tables_are_merged(tmp_path):
    found = read(
        tmp_path,
        """
        [baseline]
        counts = "c.json"
        [defaults]
        workload = "gpt"
        optimizer_options = { weight_decay = 0.2, eps = 1e-9 }
        [[cell]]
        name = "a"
        optimizer = "adamw/fused"
        lr = [1e-3, 1e-2]
        optimizer_options = { eps = 1e-6 }
        """,
    )
    assert [cell.name for cell in found.cells] == [
        "a: gpt adamw/fused single fp32 lr=0.001",
        "a: gpt adamw/fused single fp32 lr=0.01",
    ]
    assert found.cells[0].spec.optimizer_options == {"weight_decay": 0.2, "eps": 1e-6}


@pytest.mark.parametrize("text", ["cell = []", "[gate]\ndrift_steps = 10"])
def test_a_gate_that_would_look_at_nothing_is_refused(tmp_path, text):
    told = problems(tmp_path, text + '\n[baseline]\ncounts = "c.json"\n')
    assert any("names no cell" in each or "not told from chance" in each for each in told)
