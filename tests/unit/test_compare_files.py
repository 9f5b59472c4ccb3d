"""``optbench compare``: the file of arms it reads, the files it writes, and the store that it may lose."""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree as ET

import pytest

from harness import cli
from harness.comparison.model import Comparison, Launch
from harness.errors import CorruptFileError, InvalidInputError, OptbenchError
from harness.store import Store
from harness.verbs import arms as reading
from harness.verbs import comparing, here
from launch import comparing as live
from tests.unit import comparison_examples as examples
from tests.unit.test_plan import machine

FAILED = examples.comparison(
    launches=(), design=examples.design(looks=(), rounds=0), outcome="failed", reason="never right"
)
FILE = """
[defaults]
workload = "linear_regression"
optimizer = "adamw/foreach"
env = { A = "1", B = "1" }
python = "bin/python"
path = "code"
optimizer_options = { weight_decay = 0.1, eps = 1e-6 }
[[arm]]
[[arm]]
name = "other"
env = { B = "2" }
optimizer_options = { eps = 1e-5 }
"""


def optbench(*words) -> int:
    try:
        return cli.app([str(each) for each in words], standalone_mode=False) or 0
    except (OptbenchError, cli.WrongWords) as error:
        return cli._explain(error)


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def lively(monkeypatch, results):
    """Compare two arms with a stand-in that keeps what it is told to have found, and return the exit code."""

    def run(*words, found=None, meanwhile=lambda: None):
        made = found or examples.comparison()

        def compare(arms, *, kept, **options):
            kept(made.model_copy(update={"outcome": "incomplete", "reason": "still at it"}))
            meanwhile()
            kept(made.model_copy(update={"outcome": "incomplete", "reason": "still at it"}))
            return made

        monkeypatch.setattr(live, "compare", compare)
        monkeypatch.setattr(here, "machine", lambda *_: machine())
        arms = ("--workload", "linear_regression", "--arm", "adamw/foreach", "--arm", "adamw/fused")
        return optbench("compare", *arms, "--no-verify", "--results", results, *words)

    return run


def one_line(text):
    return " ".join(text.split())


# The file of arms


def read(tmp_path, text, given=None, settings=()):
    file = tmp_path / "arms.toml"
    file.write_text(text, encoding="utf-8")
    return reading.from_file(file, given or {}, settings)


def problems(tmp_path, text, **more):
    with pytest.raises(InvalidInputError) as caught:
        read(tmp_path, text, **more)
    return {each.where.removeprefix(f"{tmp_path / 'arms.toml'}: "): each.what for each in caught.value.problems}


def test_defaults_hold_for_where_an_arm_runs_too_and_tables_are_merged_key_by_key(tmp_path):
    (first, other), asked = read(tmp_path, FILE)
    assert (first.env, other.env) == ({"A": "1", "B": "1"}, {"A": "1", "B": "2"})
    assert {arm.python for arm in (first, other)} == {str(tmp_path / "bin/python")}
    assert {arm.path for arm in (first, other)} == {str(tmp_path / "code")}
    assert first.spec.optimizer_options == {"weight_decay": 0.1, "eps": 1e-6}
    assert other.spec.optimizer_options == {"weight_decay": 0.1, "eps": 1e-5}
    assert asked == {}


def test_options_beside_a_file_hold_for_every_arm(tmp_path):
    given = {"precision": "bf16", "world_size": 2, "strategy": "ddp", "workload": "gpt"}
    arms, _ = read(tmp_path, FILE, given, ["lr=0.1", "optimizer.eps=0.5"])
    for arm in arms:
        assert {field: getattr(arm.spec, field) for field in given} == given
        assert arm.spec.lr == 0.1
        assert arm.spec.optimizer_options == {"weight_decay": 0.1, "eps": 0.5}


def test_a_wrong_option_beside_a_file_is_told_once_in_the_words_that_were_typed(tmp_path):
    given = {"precision": "bf17", "world_size": 0, "strategy": "dpp"}
    found = problems(tmp_path, FILE, given=given, settings=["bad", "env.A=2", "optimizer.eps=inf", "stpes=3"])
    assert found["--precision"].endswith("found 'bf17'")
    assert found["--nproc"].endswith("found 0")
    assert found["--strategy"] == "unknown name 'dpp'"
    assert found["--set bad"] == "expected key=value"
    assert found["--set env.A"] == found["--set stpes"] == "unknown key"
    assert len(found) == 6


def test_a_slip_in_a_key_that_only_arms_have_finds_its_word(tmp_path):
    with pytest.raises(InvalidInputError) as caught:
        read(tmp_path, FILE + 'pyhton = "python3"\nlearning_rate = 1\n')
    remedies = {each.where.rpartition(".")[2]: each.remedy for each in caught.value.problems}
    assert remedies == {"pyhton": "did you mean python?", "learning_rate": "did you mean lr?"}


def test_a_problem_of_an_optimizer_names_the_option_that_gave_it():
    with pytest.raises(InvalidInputError) as caught:
        reading.from_words(["adamw/fused", "x=adamw/fusedd"], {"workload": "gpt"}, [])
    (problem,) = caught.value.problems
    assert problem.where == "--arm x=adamw/fusedd"
    assert problem.remedy.startswith("did you mean adamw/fused")


def test_where_an_arm_runs_is_told_without_detours_and_an_interpreter_stays_a_link(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/usr/bin/env")
    (first, _), _ = read(tmp_path, FILE.replace('"bin/python"', f'"../{tmp_path.name}/bin/python"'))
    assert first.python == str(tmp_path / "bin" / "python")


def test_arms_that_are_the_same_are_told(tmp_path):
    arms, _ = read(tmp_path, FILE + '[[arm]]\nname = "once more"\n')
    assert comparing.alike(arms) == ["once more and adamw/foreach are the same: a comparison of code with itself"]


def test_several_values_of_an_option_beside_a_file_are_refused(tmp_path):
    found = problems(tmp_path, FILE, given={"lr": [0.1, 0.2]})
    assert found == {"arm[0]": "is 2 runs", "arm[1]": "is 2 runs"}


@pytest.mark.parametrize(
    ("line", "where", "what"),
    [
        ("python = 3.12", "arm[0].python", "expected a string, found 3.12"),
        ("path = 5", "arm[0].path", "expected a string, found 5"),
        ("name = []", "arm[0].name", "expected a string, found []"),
        ("python = ''", "arm[0].python", "expected a string, found ''"),
        ("env = 3", "arm[0].env", "expected a table of strings, found 3"),
        ("env = {A = 1}", "arm[0].env.A", "expected a string, found 1"),
        ("env = {'A=B' = 'x'}", "arm[0].env", "'A=B' is no name of a variable"),
        ('env = {A = "\\u0000"}', "arm[0].env.A", "expected a string, found '\\x00'"),
    ],
)
def test_a_wrong_value_of_an_arms_place_is_told_with_its_key(tmp_path, line, where, what):
    arm = '[[arm]]\nworkload = "linear_regression"\noptimizer = "adamw/foreach"\n'
    assert problems(tmp_path, f"{arm}{line}\n{arm}") == {where: what}
    of_defaults = problems(tmp_path, f"[defaults]\n{line}\n{arm}{arm}")
    assert of_defaults == {where.replace("arm[0]", "defaults"): what}  # once, not for each arm


@pytest.mark.parametrize(
    ("line", "where", "what"),
    [
        ('self_check = "no"', "self_check", "expected true or false, found 'no'"),
        ("defaults = 3", "defaults", "expected a table, found 3"),
        ("margin = [1]", "margin", 'expected a fraction below 1: 0.025 or "2.5 %", found [1]'),
        ("margin = true", "margin", 'expected a fraction below 1: 0.025 or "2.5 %", found True'),
        ('margin = ""', "margin", "expected a fraction below 1: 0.025 or \"2.5 %\", found ''"),
        ("budget = 0", "budget", 'expected a time: 300, "300s" or "5 min", found 0'),
        (f"budget = 1{'0' * 400}", "budget", "expected a number that a float can hold"),
        ("margins = 1", "margins", "unknown key"),
    ],
)
def test_a_wrong_value_of_the_file_itself_is_told_with_its_key(tmp_path, line, where, what):
    text = FILE.replace("[defaults]", "[[arm]]") if where == "defaults" else FILE
    assert problems(tmp_path, f"{line}\n{text}")[where] == what


def test_what_the_file_asks_for_comes_back_read(tmp_path):
    asked = read(tmp_path, f'margin = "5 %"\nbudget = "2 min"\nself_check = false\n{FILE}')[1]
    assert asked == {"margin": 0.05, "budget": 120.0, "self_check": False}


def test_a_file_that_is_no_toml_or_names_one_arm_is_told(tmp_path):
    assert "is not valid TOML" in " ".join(problems(tmp_path, f"budget = 1{'0' * 5000}").values())
    arm = '[[arm]]\nworkload = "linear_regression"\noptimizer = "adamw/foreach"\n'
    assert list(problems(tmp_path, arm).values()) == ["1 arm"]


def test_a_number_in_a_name_that_was_given_does_not_make_two_arms_of_one_name(tmp_path):
    arm = '[[arm]]\nworkload = "linear_regression"\noptimizer = "adamw/foreach"\n'
    arms, _ = read(tmp_path, f'{arm}{arm}name = "adamw/foreach (2)"\n{arm}')
    assert [each.name for each in arms] == ["adamw/foreach", "adamw/foreach (2)", "adamw/foreach (3)"]


def test_everything_wrong_with_a_file_is_told_at_once_and_where_it_was_written(tmp_path):
    arm = '[[arm]]\nname = "a"\noptimizer = "adamw/foreach"\n'
    found = problems(tmp_path, f"workload = 'gpt'\n[defaults]\noptimizr = 1\n{arm}stepz = 3\n{arm}")
    assert found == {
        "workload": "unknown key",
        "defaults.optimizr": "unknown key",
        "arm[0].stepz": "unknown key",
        "arm[0].workload": "is missing",
        "arm[1].workload": "is missing",
        "arm[0] and arm[1]": "are called a, each",
    }
    assert problems(tmp_path, "budget = 0\n").keys() == {"budget", str(tmp_path / "arms.toml")}


@pytest.mark.parametrize(
    ("option", "asked", "ci", "expected"),
    [
        (None, {}, None, False),
        (None, {}, "", False),
        (None, {}, "false", False),
        (None, {}, "true", True),
        (None, {}, "woodpecker", True),
        (None, {"self_check": False}, "true", False),
        (None, {"self_check": True}, None, True),
        (True, {"self_check": False}, None, True),
        (False, {"self_check": True}, "true", False),
    ],
)
def test_the_option_goes_before_the_file_and_the_file_before_ci(option, asked, ci, expected):
    assert reading.rides_along(asked, ci, option=option) is expected


# What is written


def test_two_arms_alone_have_a_forest_plot_too(lively, tmp_path):
    assert lively("--svg", tmp_path / "x.svg") == 0
    assert ET.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")


def test_where_there_is_nothing_to_draw_it_is_said(lively, tmp_path, capsys):
    spoilt = examples.comparison(launches=tuple(examples.launch(n, invalid="steal") for n in range(4)))
    assert lively("--svg", tmp_path / "x.svg", found=spoilt) == 1
    assert "nothing to draw" in capsys.readouterr().err
    assert not (tmp_path / "x.svg").exists()


def test_stored_runs_and_stored_comparisons_refuse_what_would_do_nothing(tmp_path, results, capsys):
    assert optbench("compare", "one", "other", "--svg", tmp_path / "x.svg", "--results", results) == 2
    assert "--svg: does nothing beside stored runs" in capsys.readouterr().err
    words = ("--margin", "5%", "--nproc", "2", "--set", "lr=1", "--arm", "adamw/fused")
    assert optbench("compare", "--from", "latest", *words, "--results", results) == 2
    told = capsys.readouterr().err
    assert [each in told for each in ("--margin:", "--nproc:", "--set:", "--arm:")] == [True] * 4


@pytest.mark.parametrize("option", ["--markdown", "--svg"])
def test_a_file_in_a_folder_that_is_missing_is_refused_before_anything_starts(lively, tmp_path, option, capsys):
    started = []
    assert lively(option, tmp_path / "none" / "x", meanwhile=lambda: started.append(1)) == 2
    assert not started
    told = capsys.readouterr().err
    assert f"{option} {tmp_path / 'none' / 'x'}: cannot be written" in told
    assert "name a file in a folder" in told


def test_a_result_is_printed_before_a_file_that_can_no_longer_be_written(lively, tmp_path, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    words = ("--markdown", folder / "x.md", "--svg", folder / "x.svg")
    assert lively(*words, meanwhile=folder.rmdir) == 1
    printed = capsys.readouterr()
    assert "adamw/fused takes 0.748x" in one_line(printed.out)
    assert "x.md: cannot be written" in printed.err
    assert "x.svg: cannot be written" in printed.err


# The store


def test_a_comparison_that_cannot_be_stored_is_shown_all_the_same(lively, results, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "manifest.json")

    monkeypatch.setattr(Store, "new_document", full)
    assert lively() == 1
    printed = capsys.readouterr()
    assert "adamw/fused takes 0.748x" in one_line(printed.out)
    assert printed.err.count("cannot be stored") == 1
    assert "not stored: manifest.json: No space left on device" in printed.err
    assert lively("--json") == 1
    assert '"id": null' in capsys.readouterr().out


def test_a_folder_that_goes_away_meanwhile_costs_the_copy_and_no_more(lively, results, capsys):
    assert lively(meanwhile=lambda: shutil.rmtree(next(results.glob("comparison-*")))) == 1
    printed = capsys.readouterr()
    assert "adamw/fused takes 0.748x" in one_line(printed.out)
    assert "not stored: " in printed.err


def test_a_store_that_recovers_has_the_whole_comparison(lively, results, capsys):
    kept = comparing.Kept(Store(results))
    results.write_text("a file where the store should be")
    kept.keep(FAILED)
    assert kept.unwritten is not None
    results.unlink()
    kept.keep(FAILED)
    assert (kept.unwritten, comparing.load(Store(results), "latest")) == (None, (kept.name, FAILED))


def stored(results, document):
    return Store(results).new_document("comparison", document)


def test_a_comparison_without_launches_shows_the_reason_in_its_lines_and_nothing_else(lively, capsys):
    hung = FAILED.model_copy(update={"reason": "arm x: hung\n  File a.py, line 3\n  File b.py, line 4"})
    assert lively(found=hung) == 1
    out = capsys.readouterr().out
    assert [line.strip() for line in out.splitlines() if "File" in line] == [
        "File a.py, line 3",
        "File b.py, line 4",
    ]
    assert out.count("hung") == 1
    assert "B/A" not in out


def test_the_document_tells_what_is_proved_of_each_arm(lively, capsys):
    proofs = [
        {"verification": {"outcome": "passed"}},
        {"verification": {"outcome": "none", "reason": "nobody asked"}},
    ]
    lively("--json", found=examples.comparison(facts=tuple(proofs)))
    arms = json.loads(capsys.readouterr().out)["arms"]
    assert [each["verification"]["outcome"] for each in arms] == ["passed", "none"]
    assert [each["name"] for each in arms] == list(examples.NAMES)


def test_a_folder_without_its_manifest_is_told(results):
    name = comparing.save(Store(results), examples.comparison())
    (results / name / "manifest.json").unlink()
    with pytest.raises(CorruptFileError, match=rf"{name}/manifest.json: is missing"):
        comparing.load(Store(results), "latest")


@pytest.mark.parametrize("made", [FAILED, examples.TROUBLED[1], FAILED.model_copy(update={"facts": ({}, {})})])
def test_what_was_stored_comes_back(results, made):
    assert comparing.load(Store(results), comparing.save(Store(results), made))[1] == made


def changed(document, path, value):
    head, *rest = path
    copy = document.copy()
    copy[head] = changed(copy[head], rest, value) if rest else value
    return copy


TURN = examples.launch(0).turns[0].model_dump(mode="json")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (
            ["launches", 1, "peak_memory_bytes"],
            [1],
            "launches.1.peak_memory_bytes: found 1, expected one for each of",
        ),
        (["launches", 1, "warm_ups"], [], "launches.1.warm_ups: found 0, expected one for each of 2 arms"),
        (["launches", 1, "losses"], [[1.0]], "launches.1.losses: found 1, expected one for each of 2 arms"),
        (["launches", 0, "turns", 2], {**TURN, "arm": 2}, "launches.0.turns.2.arm: found 2, expected 0 to 1"),
        (["launches", 0, "turns", 0], {**TURN, "arm": -1}, "launches.0.turns.0.arm: found -1, expected 0 to 1"),
        (["launches", 0, "peak_memory_bytes"], [1, 10**400], "launches.0.peak_memory_bytes.1"),
        (["facts"], [{}], "facts: found 1, expected one for each of 2 arms"),
        (["design", "margin"], -0.1, "design.margin: Input should be greater than or equal to 0"),
        (["design", "alpha"], 1.5, "design.alpha: Input should be less than 1"),
        (
            ["design", "looks"],
            [4, 4],
            "design: looks: found 4, 4, expected numbers of launches, each above the one",
        ),
        (["design", "looks"], [0, 4], "design: looks: found 0, 4"),
        (["design", "looks"], [], "design.looks: found none, expected some for 6 launches"),
        (["arms"], [], "arms: found 0, expected two or more"),
    ],
)
def test_a_sealed_file_that_does_not_go_together_is_told_with_its_place(results, path, value, told):
    name = stored(results, changed(examples.comparison().model_dump(mode="json"), path, value))
    with pytest.raises(CorruptFileError) as caught:
        comparing.load(Store(results), "latest")
    assert f"{name}/manifest.json: no comparison: {told}" in str(caught.value)


def test_memory_below_the_start_is_unknown():
    assert examples.launch(0, peak_memory_bytes=(-1, 5)).peak_memory_bytes == (None, 5)


def test_a_launch_alone_has_no_arms_to_fit():
    assert Launch.model_validate(examples.launch(0, 3).model_dump()).warm_ups
    with pytest.raises(ValueError, match="expected one for each of 2 arms"):
        Comparison.model_validate({**examples.comparison().model_dump(), "launches": [examples.launch(0, 3)]})
