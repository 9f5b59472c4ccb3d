"""What a user types wrong is all told at once, in the words that were typed."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import InvalidInputError
from harness.record import Environment
from harness.store import RunRow
from harness.verbs import arms, contents, listing, showing, specs
from tests.golden.test_reports import RECORDS, text_of
from tests.unit.test_plan import machine


def told(*words, **given):
    with pytest.raises(InvalidInputError) as caught:
        specs.read(words, given, given.pop("settings", []))
    return {problem.where: problem.what for problem in caught.value.problems}


def test_every_wrong_option_is_told_at_once_in_the_words_that_were_typed():
    settings = ["bad", "stpes=4", "collectors=5", "lr=a"]
    assert told(optimizer="adamw/fussed", world_size="two", settings=settings) == {
        "--set bad": "expected key=value",
        "--optimizer": "unknown name 'adamw/fussed'",
        "--workload": "is missing",
        "--nproc": "Input should be a valid integer, found 'two'",
        "--set stpes": "unknown key",
        "--set collectors": "Input should be a valid list, found 5",
        "--set lr": "Input should be a valid number, found 'a'",
    }


def test_a_wrong_option_is_told_once_not_for_each_run_of_a_file():
    assert told("quickstart", steps=0) == {"--steps": "Input should be greater than or equal to 1, found 0"}


def test_mistakes_of_a_file_and_of_options_come_together(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text('[[runs]]\nworkload = "gpt"\noptimizer = "adamw/fused"\nstpes = 3\n')
    assert told(str(file), "quickstrat", seed=-1) == {
        f"{file}: runs[0].stpes": "unknown key",
        "--seed": "Input should be greater than or equal to 0, found -1",
        "sweep quickstrat": "no such file, and no shipped sweep",
    }


def test_a_data_file_that_is_not_there_is_told_before_anything_starts(tmp_path):
    (tmp_path / "tokens.bin").write_bytes(b"")
    settings = [f"data=['{tmp_path / 'tokens.bin'}', '{tmp_path / 'none.bin'}']"]
    sweep = specs.read([], {"workload": "gpt", "optimizer": "adamw/fused"}, settings)
    (problem,) = specs.missing_data(sweep.runs)
    assert str(tmp_path / "none.bin") in str(problem)


@pytest.mark.parametrize("words", [[], ["list"], ["run", "--nproc", "two"]])
def test_wrong_words_end_with_code_2_and_no_empty_message(words):
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "optbench: \n" not in done.stderr
    if words == ["list"]:
        assert "workloads, optimizers, strategies" in done.stderr


def test_ids_in_the_list_of_runs_stay_on_one_line_and_are_enough_to_name_a_run():
    rows = [
        RunRow(run_id=f"20261123T0600{second}-aaaa{digits}", outcome="completed", optimizer="adamw/deepspeed-cpu")
        for second, digits in ((10, "b" * 12), (10, "bbc" + "b" * 9), (12, "b" * 12))
    ]
    lines = text_of(contents.runs(rows, Path("results"))).splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("2026")]
    assert shown == ["20261123T060010-aaaabbb", "20261123T060010-aaaabbc", "20261123T060012-aaaabbb"]


def test_a_runs_page_tells_where_it_ran_and_when_its_operators_were_not_watched():
    environment = Environment(
        hardware={"hostname": "node7", "cpu": "EPYC", "cores_usable": 2, "accelerators": [{"name": "H200"}] * 2},
        software={"torch": "2.13.0", "python": "3.11.7"},
        source={"optbench": {"commit": "0123456789abcdef", "dirty": True}},
        command=("optbench", "run", "my sweep.toml"),
    )
    facts = {**RECORDS[0].facts, "ran_as": None}
    text = text_of(showing.run(RECORDS[0].model_copy(update={"environment": environment, "facts": facts})))
    words = " ".join(text.split())
    assert "on node7: EPYC, 2 cores, 2 x H200, torch 2.13.0, Python 3.11.7, optbench 012345678 with ch" in words
    assert "optbench run 'my sweep.toml'" in words
    assert "as None" not in words
    assert "two warm-up steps" in words


def test_workloads_and_optimizers_fit_80_columns_and_say_each_thing_once():
    rows = listing.rows("workloads", machine)
    text = text_of(listing.table("workloads", rows))
    assert "accuracy >= 0.97\n" in text
    assert rows[0]["summary"] in " ".join(text.split())
    rows = listing.rows("optimizers", machine)
    names = [row["name"] for row in rows]
    adamw = [name for name in names if name.startswith("adamw/")]
    start = names.index(adamw[0])
    assert names[start : start + len(adamw)] == adamw  # side by side
    text = text_of(listing.table("optimizers", rows))
    assert text.count("amsgrad=False") == 2  # adam and adamw, once each


def test_all_wrong_words_of_a_comparison_are_told_at_once(optbench):
    given = ["--markdown", "none/a.md", "--svg", "none/b.svg", "--timeout=inf", "--margin", "x", "--budget", "5y"]
    done = optbench("compare", "--arm", "a/b", "--arm", "adamw/fused", "--workload", "gpt", *given)
    assert done.code == 2
    told = ("--markdown none", "--svg none", "--timeout: ", "--margin: ", "--budget: ", "--arm a/b: ")
    assert [each for each in told if each not in done.err] == []


def test_arms_of_one_name_and_options_of_several_values_are_refused_by_their_words():
    def wrong(words, given):
        with pytest.raises(InvalidInputError) as caught:
            arms.from_words(words, given, [])
        return [each.where for each in caught.value.problems]

    assert wrong(["a=sgd/foreach", "a=sgd/fused"], {"workload": "gpt"}) == ["--arm a=…"]
    assert wrong(["sgd/foreach", "sgd/fused"], {"workload": ["gpt", "cnn"]}) == ["--workload"]


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 0, -3, 1e12])
def test_a_time_that_nobody_can_wait_for_is_refused(seconds):
    with pytest.raises(InvalidInputError, match="--timeout: expected seconds above 0, at most 604800"):
        arms.timeout(seconds)


def test_ci_may_be_any_word(optbench):
    optbench.results.mkdir()
    done = optbench("compare", "--from", "latest", "--results", str(optbench.results), env={"CI": "woodpecker"})
    assert done.code == 2
    assert "there is no comparison in" in done.err


def test_an_empty_margin_or_budget_is_not_the_default(optbench):
    sides = ("--workload", "linear_regression", "--arm", "sgd/foreach", "--arm", "sgd/fused")
    done = optbench("compare", *sides, "--margin", "", "--budget", "")
    assert (done.code, "--margin: expected" in done.err, "--budget: expected" in done.err) == (2, True, True)
