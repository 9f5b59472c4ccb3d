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
    assert f"No runs in {results}" in one_line(capsys.readouterr().out)
    assert optbench("show", "latest", "--results", results) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_folder_named_for_comparison_that_is_not_there_is_told_as_one(results, sweep, capsys):
    assert optbench("compare", results, f"{results}-typo") == 2
    assert f"{results}-typo: there is no such folder" in capsys.readouterr().err
