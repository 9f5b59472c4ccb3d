"""``optbench show`` and its neighbours: what is asked of a store that is gone, damaged or a stranger's."""

from __future__ import annotations

import json
import shutil

import pytest

from harness import cli
from harness.errors import OptbenchError
from harness.sealed import seal
from harness.spec import RunSpec
from harness.store import RankWriter, Store
from harness.verbs import comparing
from harness.verification import shelf
from harness.verification.certificate import Certificate, Check
from tests.unit import comparison_examples as examples

SPECS = tuple(
    RunSpec(workload="gpt", size="nano", optimizer=f"adamw/{kind}", world_size=1, device="cpu", global_batch=8)
    for kind in ("forloop", "foreach", "fused", "compiled")
)


def optbench(*words) -> int:
    try:
        return cli.app([str(each) for each in words], standalone_mode=False) or 0
    except (OptbenchError, cli.WrongWords) as error:
        return cli._explain(error)


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def train(store: Store, spec: RunSpec) -> str:
    folder = store.new_run(spec)
    writer = RankWriter(folder / "rank-0.jsonl")
    writer.begin(0, 1)
    writer.end()
    writer.close()
    store.finish(folder.name, "completed")
    return folder.name


@pytest.fixture
def sweep(results):
    """Three runs of four cells, as a sweep that was interrupted leaves them; return its id and theirs."""
    store = Store(results)
    asked = [spec.model_copy(update={"world_size": None, "global_batch": None}) for spec in SPECS]
    with store.new_sweep("night", asked) as log:
        runs = [train(store, spec) for spec in SPECS[:3]]
        for index, run_id in enumerate(runs):
            log.started(index, run_id, SPECS[index])
    return log.sweep_id, runs


def test_a_run_that_is_gone_is_a_row_of_its_sweep_and_the_others_stay(results, sweep, capsys):
    sweep_id, runs = sweep
    shutil.rmtree(results / runs[1])
    assert optbench("show", sweep_id, "--results", results) == 0
    shown = capsys.readouterr().out
    assert [name in shown for name in ("adamw/forloop", "adamw/foreach", "adamw/fused")] == [True] * 3
    assert shown.count("1 rank") == 1  # all in one group
    assert "adamw/foreach missing" in one_line(shown)
    assert f"missing:{results / runs[1]}isgone" in "".join(shown.split())
    assert optbench("show", sweep_id, "--json", "--results", results) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [(row["run_id"], row["outcome"]) for row in rows] == [
        (runs[0], "completed"),
        (runs[1], "missing"),
        (runs[2], "completed"),
    ]
    assert rows[1]["spec"]["optimizer"] == "adamw/foreach"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: [file.unlink() for file in (folder / "spec.json", folder / "manifest.json")],
        lambda folder: (folder / "manifest.json").write_bytes(seal({"schema_version": 99})),
    ],
    ids=["no spec", "newer"],
)
def test_a_run_that_cannot_be_read_is_a_row_of_its_sweep_with_the_reason(results, sweep, damage, capsys):
    sweep_id, runs = sweep
    damage(results / runs[0])
    assert optbench("show", sweep_id, "--json", "--results", results) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["outcome"] for row in rows] == ["unreadable", "completed", "completed"]
    assert runs[0] in rows[0]["reason"]
    assert optbench("show", sweep_id, "--results", results) == 0
    assert "unreadable" in capsys.readouterr().out


def test_runs_that_are_gone_are_compared_with_nothing(results, sweep, capsys):
    sweep_id, runs = sweep
    shutil.rmtree(results / runs[1])
    optbench("compare", sweep_id, sweep_id, "--json", "--results", results)
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert [pair["refused"] for pair in pairs] == [
        None,
        f"no result to compare: {runs[1]} is missing and {runs[1]} is missing",
        None,
    ]


READING = [
    ("show",),
    ("show", "latest"),
    ("show", "--json"),
    ("show", "sweep-2026"),
    ("run", "--resume"),
    ("compare", "--from", "latest"),
    ("compare", "latest", "2026"),
    ("selftest", "--from", "latest"),
]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_store_that_is_not_there_is_an_error_wherever_it_is_read(tmp_path, words, capsys):
    (tmp_path / "results").mkdir()
    assert optbench(*words, "--results", tmp_path / "resluts") == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"--results {tmp_path / 'resluts'}: there is no such folder" in told.err
    assert f"did you mean {tmp_path / 'results'}?" in told.err
    assert not (tmp_path / "resluts").exists()


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_file_is_no_store(tmp_path, words, capsys):
    (tmp_path / "results").write_text("")
    assert optbench(*words, "--results", tmp_path / "results") == 2
    assert f"--results {tmp_path / 'results'}: is a file" in capsys.readouterr().err


def test_a_folder_without_runs_says_so(results, capsys):
    results.mkdir()
    (results / "notes.txt").write_text("a stranger's")
    (results / "old").mkdir()
    assert optbench("show", "--results", results) == 0
    assert f"Nothing in {results} yet" in one_line(capsys.readouterr().out)
    assert optbench("show", "latest", "--results", results) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_folder_named_for_comparison_that_is_not_there_is_told_as_one(results, sweep, capsys):
    assert optbench("compare", results, f"{results}-typo") == 2
    assert f"{results}-typo: there is no such folder" in capsys.readouterr().err


# What is shown by its id


@pytest.fixture
def held(results, sweep):
    """A store with something of every kind; return its ids by kind."""
    sweep_id, runs = sweep
    store = Store(results)
    checks = (Check(name="update", verdict="passed", error=1e-6, bound=1e-5, step=3, tensor="small"),)
    made = Certificate(
        optimizer="adamw/fused",
        strategy="single",
        precision="fp32",
        reference="adam: a paper",
        outcome="passed",
        checks=checks,
    )
    certificate = shelf.save(store, made)
    comparison = comparing.save(store, examples.comparison())
    return {"run": runs[0], "sweep": sweep_id, "certificate": certificate, "comparison": comparison}


TOLD = {
    "run": "workload=gpt",
    "sweep": "night",
    "certificate": "held to: adam: a paper",
    "comparison": "adamw/fused takes 0.748x the time of adamw/foreach",
}


@pytest.mark.parametrize("kind", TOLD)
def test_everything_is_shown_by_its_id_by_a_beginning_of_it_and_by_its_random_part(results, held, kind, capsys):
    found = held[kind]
    for word in (found, found[:-3], found.rpartition("-")[2]):
        assert optbench("show", word, "--results", results) in {0, 3}
        assert TOLD[kind] in one_line(capsys.readouterr().out)
    assert optbench("show", found, "--json", "--results", results) in {0, 3}
    json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "--resume", "comparison"), "is a comparison, not a sweep"),
        (("run", "--resume", "run"), "is a run, not a sweep"),
        (("compare", "run", "certificate"), "is a certificate, not a run"),
        (("compare", "run", "comparison"), "is a comparison, not a run"),
        (("compare", "--from", "sweep"), "is a sweep, not a comparison"),
        (("compare", "--from", "certificate"), "is a certificate, not a comparison"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else None,
)
def test_an_id_of_another_kind_is_told_with_the_command_that_shows_it(results, held, words, told, capsys):
    assert (
        optbench(
            *(held.get(word, word) if word != "run" or n else word for n, word in enumerate(words)),
            "--results",
            results,
        )
        == 2
    )
    shown = capsys.readouterr().err
    assert told in shown
    assert f"--results {results}" in shown


def test_latest_is_the_newest_of_all_kinds(results, held, capsys):
    assert optbench("show", "latest", "--results", results) in {0, 3}
    assert TOLD["comparison"] in one_line(capsys.readouterr().out)
    shutil.rmtree(results / held["comparison"])
    assert optbench("show", "latest", "--results", results) == 0
    assert TOLD["certificate"] in one_line(capsys.readouterr().out)


def test_the_list_names_all_that_a_store_holds(results, held, capsys):
    assert optbench("show", "--results", results) == 0
    shown = capsys.readouterr().out
    assert [found[: len(found) - 12] in shown for found in held.values()] == [True] * 4
    assert "night: 3 of 4 runs started" in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 80
    assert optbench("show", "--json", "--results", results) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed.pop("runs")) == 3
    assert listed == {f"{kind}s": [held[kind]] for kind in ("sweep", "certificate", "comparison")}


def test_a_comparison_alone_is_not_called_nothing(results, capsys):
    made = comparing.save(Store(results), examples.comparison())
    assert optbench("show", "--results", results) == 0
    shown = capsys.readouterr().out
    assert made[:30] in shown
    assert "Nothing" not in shown


@pytest.mark.parametrize("kind", ["sweep", "certificate", "comparison"])
def test_what_is_damaged_is_a_line_of_the_list_and_an_error_by_its_id(results, held, kind, capsys):
    document = next(path for path in (results / held[kind]).glob("*.json"))
    document.write_bytes(document.read_bytes()[:-40])
    assert optbench("show", "--results", results) == 0
    assert f"unreadable: {document}"[:40] in one_line(capsys.readouterr().out)
    assert optbench("show", held[kind], "--results", results) == 4
    assert str(document) in capsys.readouterr().err


def test_a_kind_of_a_newer_optbench_is_listed_nowhere_and_refused_by_name(results, held, capsys):
    name = Store(results).new_document("ballad", {"kind": "ballad"})
    assert optbench("show", name, "--results", results) == 2
    assert f"{name}: is a ballad, which this optbench cannot show" in capsys.readouterr().err
    assert optbench("show", "--results", results) == 0


def test_a_sweep_with_runs_to_go_says_how(results, sweep, capsys):
    sweep_id, _ = sweep
    optbench("show", sweep_id, "--results", results)
    shown = capsys.readouterr().out
    assert "1 of 4 runs to go" in shown
    assert f"run --resume {sweep_id} --results {results}" in shown
    with Store(results).resume_sweep(sweep_id):
        optbench("show", sweep_id, "--results", results)
    shown = capsys.readouterr().out
    assert "Still running: 1 of 4 runs to go" in shown
    assert "--resume" not in shown
