"""Sweeps in a results folder: what was asked for, what was started, what resuming runs; two at a time."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.errors import CorruptFileError, InvalidInputError
from harness.record import SCHEMA_VERSION
from harness.sealed import seal
from harness.spec import RunSpec
from harness.store import RankWriter, Store
from harness.versions import FutureVersionError

if TYPE_CHECKING:
    from pathlib import Path

    from harness.record import Outcome

SPECS = tuple(
    RunSpec(workload="cnn", optimizer=f"adamw/{kind}", seed=seed, world_size=1, clip_norm=1.0)
    for kind in ("forloop", "foreach", "fused")
    for seed in (0, 1)
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def run(store: Store, spec: RunSpec, outcome: Outcome) -> str:
    folder = store.new_run(spec)
    if outcome == "completed":
        writer = RankWriter(folder / "rank-0.jsonl")
        writer.begin(0, 1)
        writer.end()
        writer.close()
    store.finish(folder.name, outcome, None if outcome == "completed" else "because")
    return folder.name


def test_a_sweep_keeps_its_specs_and_its_runs_in_the_order_asked_for(store: Store) -> None:
    with store.new_sweep("night", SPECS) as log:
        second = run(store, SPECS[1], "completed")
        log.started(1, second)
        first = run(store, SPECS[0], "completed")
        log.started(0, first)
        while_running = store.read_sweep(log.sweep_id)
    sweep = store.read_sweep("latest")
    assert sweep == while_running
    assert (sweep.sweep_id, sweep.name, sweep.specs) == (log.sweep_id, "night", SPECS)
    assert sweep.run_ids == (first, second, None, None, None, None)
    assert store.sweep_ids() == [log.sweep_id]
    assert store.run_ids() == [second, first]


def test_resuming_runs_what_never_started_is_incomplete_or_is_gone(store: Store) -> None:
    with store.new_sweep("night", SPECS) as log:
        for index, outcome in enumerate(("completed", "failed", "incomplete", "unsupported")):
            log.started(index, run(store, SPECS[index], outcome))  # type: ignore[arg-type]
        log.started(4, "20261101T000000-0123456789abcdef")
    assert store.pending(store.read_sweep("latest")) == [2, 4, 5]
    with store.resume_sweep("latest") as log:
        log.started(2, run(store, SPECS[2], "completed"))
        log.started(4, "../elsewhere")
    assert store.pending(store.read_sweep("latest")) == [4, 5]


def test_a_cell_whose_run_cannot_be_read_is_run_again(store: Store) -> None:
    with store.new_sweep("night", SPECS[:1]) as log:
        run_id = run(store, SPECS[0], "completed")
        log.started(0, run_id)
    manifest = store.root / run_id / "manifest.json"
    manifest.write_bytes(seal({"schema_version": SCHEMA_VERSION + 1}))
    assert store.pending(store.read_sweep("latest")) == [0]
    manifest.write_bytes(b"broken")
    assert store.pending(store.read_sweep("latest")) == [0]


def test_a_sweep_that_another_process_runs_is_not_resumed(store: Store) -> None:
    log = store.new_sweep("night", SPECS)
    with pytest.raises(InvalidInputError, match="another process runs this sweep"):
        Store(store.root).resume_sweep(log.sweep_id)
    log.close()
    log.close()
    Store(store.root).resume_sweep(log.sweep_id).close()


def test_a_torn_log_goes_on_and_a_corrupt_one_is_refused_with_its_line(store: Store) -> None:
    with store.new_sweep("night", SPECS) as log:
        log.started(0, run(store, SPECS[0], "completed"))
        log.started(1, run(store, SPECS[1], "completed"))
    path = log.folder / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert store.pending(store.read_sweep("latest")) == [1, 2, 3, 4, 5]
    with store.resume_sweep("latest") as log:
        log.started(1, run(store, SPECS[1], "completed"))
    assert store.pending(store.read_sweep("latest")) == [2, 3, 4, 5]
    path.write_bytes(path.read_bytes().replace(b'"index":0', b'"index":5'))
    for use in (store.read_sweep, store.resume_sweep):
        with pytest.raises(CorruptFileError, match=r"runs\.jsonl:1: corrupt line"):
            use("latest")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"schema_version": 1, "name": "x"}, "is no sweep: 'specs'"),
        ({"schema_version": 1, "name": "x", "specs": [{"optimizer": "sgd/fused"}]}, "is no sweep: 1 validation"),
        ({"schema_version": 1, "name": "x", "specs": 3}, "is no sweep"),
        (None, "is missing"),
    ],
)
def test_a_sweeps_document_of_the_wrong_content_is_refused(
    store: Store, document: dict[str, object] | None, message: str
) -> None:
    log = store.new_sweep("night", SPECS)
    log.close()
    path = log.folder / "sweep.json"
    if document is None:
        path.unlink()
    else:
        path.write_bytes(seal(document))
    with pytest.raises(CorruptFileError, match=message) as caught:
        store.read_sweep("latest")
    assert str(path) in str(caught.value)


def test_a_newer_sweep_is_refused_naming_both_versions(store: Store) -> None:
    log = store.new_sweep("night", SPECS)
    log.close()
    (log.folder / "sweep.json").write_bytes(seal({"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(FutureVersionError, match=f"schema_version {SCHEMA_VERSION + 1}"):
        store.read_sweep("latest")


@pytest.mark.parametrize("index", [-1, 6, "0", True])
def test_a_log_that_names_no_cell_is_refused(store: Store, index: object) -> None:
    with store.new_sweep("night", SPECS) as log:
        log.started(index, "20261101T000000-0123456789abcdef")  # type: ignore[arg-type]
    with pytest.raises(CorruptFileError, match=r"runs\.jsonl:1: names no cell"):
        store.read_sweep("latest")


def test_sweeps_and_runs_are_named_apart(store: Store) -> None:
    store.new_sweep("night", SPECS).close()
    with pytest.raises(InvalidInputError, match="the store holds no run"):
        store.read("latest")
    with pytest.raises(InvalidInputError, match="no sweep has this id"):
        store.read_sweep("../latest")


TWO_AT_A_TIME = """
import sys
from pathlib import Path
from harness.interfaces import Reading
from harness.record import MetricInfo
from harness.spec import RunSpec
from harness.store import RankWriter, Store
name, runs = sys.argv[2], 15
specs = [RunSpec(workload="cnn", optimizer=f"sgd/{name}", seed=seed, world_size=1) for seed in range(runs)]
info = MetricInfo(name="step_time_s", unit="s", better="lower", skip_warmup=False)
store = Store(Path(sys.argv[1]))
store.check_writable()
sys.stdin.readline()  # both begin at once
with store.new_sweep(name, specs) as log:
    for index, spec in enumerate(specs):
        folder = store.new_run(spec)
        log.started(index, folder.name)
        writer = RankWriter(folder / "rank-0.jsonl")
        writer.begin(0, 1)
        writer.readings([Reading(info, series=[float(index)])])
        writer.end()
        writer.close()
        store.finish(folder.name)
        assert all(row.problem is None for row in store.runs())
print(log.sweep_id)
"""


def test_two_sweeps_at_the_same_time_do_not_disturb_each_other(store: Store) -> None:
    names = ("forloop", "fused")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_AT_A_TIME, str(store.root), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    sweep_ids = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    for name, sweep_id in zip(names, sweep_ids, strict=True):
        sweep = store.read_sweep(sweep_id)
        assert store.pending(sweep) == []
        records = [store.read(run_id) for run_id in sweep.run_ids if run_id is not None]
        assert [record.spec["seed"] for record in records] == list(range(15))
        assert {record.spec["optimizer"] for record in records} == {f"sgd/{name}"}
        assert [record.metrics["step_time_s"].value for record in records] == [float(seed) for seed in range(15)]
    assert len(store.runs()) == 30
    assert store.runs() == [store._row(run_id) for run_id in store.run_ids()]
