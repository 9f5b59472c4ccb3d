"""Runs in a results folder: made, finished, read by name, listed; and nothing trusted that should not be."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import versions
from harness.errors import CorruptFileError, InvalidInputError
from harness.index import INDEX
from harness.interfaces import Reading
from harness.record import SCHEMA_VERSION, Environment, MetricInfo, RunRecord
from harness.run_ids import RUN_ID, match_id, new_id
from harness.sealed import seal, unseal, write_atomically
from harness.spec import RunSpec
from harness.store import RankWriter, Store
from harness.summary import summarise
from harness.versions import FutureVersionError, upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

STORED = Path(__file__).parent.parent / "data" / "results-v1"
STORED_ID = "20261123T060000-0a1b2c3d4e5f6g7h"
SPEC = RunSpec(workload="gpt", size="nano", optimizer="adamw/fused", world_size=1, steps=4, seed=3)
STEP_TIME = MetricInfo(name="step_time_s", unit="s", better="lower")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def train(folder: Path, *, end: bool = True) -> None:
    writer = RankWriter(folder / "rank-0.jsonl")
    writer.begin(0, 1)
    writer.readings([Reading(STEP_TIME, series=[0.5, 0.25, 0.25, 0.25])])
    if end:
        writer.end()
    writer.close()


def finished(store: Store) -> str:
    folder = store.new_run(SPEC)
    train(folder)
    store.finish(folder.name)
    return folder.name


def flip(path: Path, position: int = 30) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_new_run_has_its_spec_and_a_folder_for_logs(store: Store) -> None:
    folder = store.new_run(SPEC)
    assert RUN_ID.fullmatch(folder.name)
    assert folder.parent == store.root
    assert RunSpec.model_validate_json((folder / "spec.json").read_bytes()) == SPEC
    assert (folder / "log").is_dir()
    assert not (folder / "manifest.json").exists()


def test_finishing_writes_the_record_that_is_read_back(store: Store) -> None:
    folder = store.new_run(SPEC)
    train(folder)
    record = store.finish(folder.name, "completed", notes=("a note",), environment=Environment(command=("x",)))
    assert record.outcome == "completed"
    assert record.metrics["step_time_s"].value == 0.25
    assert record.notes == ("a note",)
    assert store.read(folder.name) == record
    assert RunRecord.model_validate(unseal((folder / "manifest.json").read_bytes().rstrip())) == record
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_ids_sort_in_the_order_in_which_runs_were_made_and_cannot_be_guessed() -> None:
    ids = [new_id() for _ in range(200)]
    assert len({each[-12:] for each in ids}) == len(ids)
    times = [each[:-12] for each in ids]
    assert times == sorted(times)
    assert all(RUN_ID.fullmatch(each) for each in ids)


@pytest.mark.parametrize("word", ["latest", STORED_ID, STORED_ID[:12], "0a1b"])
def test_a_run_is_named_by_its_id_a_beginning_of_it_or_latest(word: str) -> None:
    assert Store(STORED).resolve(word) == STORED_ID


@pytest.mark.parametrize(
    "word", ["", "..", "../results-v1", f"../results-v1/{STORED_ID}", "/", ".", "./" + STORED_ID, "\0", "*"]
)
def test_a_word_never_leads_out_of_the_store(word: str) -> None:
    with pytest.raises(InvalidInputError, match="no run has this id"):
        Store(STORED).read(word)


def test_an_ambiguous_beginning_lists_what_it_may_mean() -> None:
    ids = ["20261123T060000-aaaaaaaaaaaa", "20261123T060001-bbbbbbbbbbbb"]
    with pytest.raises(InvalidInputError, match=f"2 runs begin like this\n.*{ids[0]}, {ids[1]}"):
        match_id("2026", ids, "run")
    assert match_id("b", ids, "run") == ids[1]


def test_an_empty_store_says_that_it_holds_no_run(store: Store) -> None:
    store.root.mkdir()
    assert store.runs() == []
    with pytest.raises(InvalidInputError, match="holds no run"):
        store.read("latest")


def test_links_out_of_the_store_are_neither_listed_nor_followed(store: Store) -> None:
    run_id = finished(store)
    (store.root / STORED_ID).symlink_to(STORED / STORED_ID)
    assert store.run_ids() == [run_id]
    with pytest.raises(InvalidInputError, match="no run has this id"):
        store.read(STORED_ID)
    manifest = store.root / run_id / "manifest.json"
    manifest.rename(store.root / "elsewhere.json")
    manifest.symlink_to(store.root / "elsewhere.json")
    record = store.read(run_id)
    assert record.outcome == "incomplete"
    assert "manifest.json: is a symbolic link" in (record.reason or "")
    assert "is a symbolic link" in (store.runs()[0].problem or "")


def test_the_stored_record_of_version_1_is_read_as_it_was_written() -> None:
    record = Store(STORED).read(STORED_ID)
    assert record.schema_version == SCHEMA_VERSION
    assert record.outcome == "completed"
    assert RunSpec.model_validate(record.spec).optimizer_options == {"weight_decay": 0.1}
    assert record.environment.command == ("optbench", "run", "sweep.toml")
    assert record.facts == {"optimizer": {"class": "torch.optim.adamw.AdamW", "fused": True}}
    assert record.metrics["step_time_s"].quantiles == {"p10": 0.125, "p50": 0.25, "p90": 0.45, "p99": 0.495}
    assert record.metrics["train_loss"].series == (6.0, 5.0, 4.5, 4.0, 3.5, 3.5)
    assert record.metrics["evaluation_loss"].series_steps == (3, 6)
    assert str(record.metrics["evaluation_loss"].value) == "nan"
    assert record.metrics["mfu"].value is None
    assert record.metrics["peak_allocated_bytes"].value == 10_000_000_001
    assert record.notes == ("clocks were not fixed",)


def test_the_rank_files_of_version_1_still_reduce_to_their_record() -> None:
    stored = Store(STORED).read(STORED_ID)
    assert summarise(STORED / STORED_ID, "completed").model_dump_json() == stored.model_dump_json()


def test_every_old_version_has_a_way_to_todays() -> None:
    assert set(versions.UPGRADES) == set(range(1, SCHEMA_VERSION))


def test_upgrades_run_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "SCHEMA_VERSION", 3)
    steps = {
        1: lambda old: {**old, "steps": [*old["steps"], "1 to 2"]},
        2: lambda old: {**old, "steps": [*old["steps"], "2 to 3"]},
    }
    monkeypatch.setattr(versions, "UPGRADES", steps)
    assert upgrade({"schema_version": 1, "steps": []}, "x") == {"schema_version": 3, "steps": ["1 to 2", "2 to 3"]}


@pytest.mark.parametrize("version", [None, "1", 0, True, 1.0])
def test_a_document_without_a_version_is_not_ours(version: object) -> None:
    with pytest.raises(CorruptFileError, match="x: has no schema_version"):
        upgrade({"schema_version": version}, "x")


@pytest.mark.parametrize("sealed", [True, False])
def test_a_newer_manifest_is_refused_naming_both_versions_and_the_other_runs_are_read(
    store: Store, *, sealed: bool
) -> None:
    newer, other = finished(store), finished(store)
    path = store.root / newer / "manifest.json"
    document = {"schema_version": SCHEMA_VERSION + 1, "run_id": newer, "moon": "full"}
    path.write_bytes(seal(document) if sealed else json.dumps(document).encode())
    message = f"{path}: has schema_version {SCHEMA_VERSION + 1}, this optbench reads up to {SCHEMA_VERSION}"
    with pytest.raises(FutureVersionError, match=re.escape(message)):
        store.read(newer)
    assert store.read(other).outcome == "completed"
    rows = store.runs()
    assert [(row.run_id, row.outcome) for row in rows] == [(newer, None), (other, "completed")]
    assert message in (rows[0].problem or "")


def test_a_newer_run_without_a_manifest_is_left_as_it_is(store: Store) -> None:
    folder = store.new_run(SPEC)
    store.release(folder.name)
    line = {"seq": 0, "kind": "begin", "time_unix_s": 1.0, "schema_version": 999}
    (folder / "rank-0.jsonl").write_bytes(seal(line) + b"\n")
    with pytest.raises(FutureVersionError):
        store.read(folder.name)
    assert not (folder / "manifest.json").exists()


def test_a_manifest_whose_version_itself_is_corrupt_is_corrupt_and_not_newer(store: Store) -> None:
    run_id = finished(store)
    path = store.root / run_id / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"schema_version":1', b'"schema_version":3'))
    assert "checksum does not match" in (store.read(run_id).reason or "")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_changed_byte_of_a_manifest_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / "flipped"
    shutil.copytree(STORED, root, dirs_exist_ok=True)
    path = root / STORED_ID / "manifest.json"
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 2))
    change = data.draw(st.integers(1, 255))
    path.write_bytes(content[:position] + bytes([content[position] ^ change]) + content[position + 1 :])
    record = Store(root).read(STORED_ID)
    assert record.outcome == "incomplete"
    assert str(path) in (record.reason or "")


def test_a_corrupt_manifest_is_not_written_over_and_the_numbers_come_from_the_ranks(store: Store) -> None:
    run_id = finished(store)
    path = store.root / run_id / "manifest.json"
    flip(path)
    content = path.read_bytes()
    record = store.read(run_id)
    assert record.outcome == "incomplete"
    assert (record.reason or "").startswith(f"how the run ended is unknown: {path}: is corrupt")
    assert record.metrics["step_time_s"].value == 0.25
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_id": "another"}, "is the record of another"),
        ({"outcome": "splendid"}, "outcome: Input should be"),
        ({"metrics": {"x": 1}}, "metrics.x"),
        ({"moon": "full"}, "moon: Extra inputs"),
    ],
)
def test_a_well_sealed_manifest_of_the_wrong_content_is_refused(
    store: Store, change: dict[str, object], message: str
) -> None:
    run_id = finished(store)
    path = store.root / run_id / "manifest.json"
    path.write_bytes(seal({**unseal(path.read_bytes().rstrip()), **change}))
    record = store.read(run_id)
    assert record.outcome == "incomplete"
    assert message in (record.reason or "")


def test_a_run_that_is_held_is_read_as_still_running_and_not_written(store: Store) -> None:
    folder = store.new_run(SPEC)
    train(folder)
    reader = Store(store.root)
    record = reader.read(folder.name)
    assert (record.outcome, record.reason) == ("incomplete", "still running")
    assert record.metrics["step_time_s"].value == 0.25
    row = reader.runs()[0]
    assert (row.outcome, row.reason, row.problem) == (None, "still running", None)
    assert not (folder / "manifest.json").exists()
    store.finish(folder.name)
    assert reader.runs()[0].outcome == "completed"


LAUNCHER = """
import sys
from pathlib import Path
from harness.spec import RunSpec
from harness.store import RankWriter, Store
spec = RunSpec(workload="gpt", optimizer="adamw/fused", world_size=1, steps=4)
store = Store(Path(sys.argv[1]))
folder = store.new_run(spec)
if sys.argv[2] == "rank":
    store.release(folder.name)
    RankWriter(folder / "rank-0.jsonl").begin(0, 1)
print(folder.name, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("holder", "reason"), [("launcher", "no rank left a file"), ("rank", "cut off after 0")])
def test_a_run_whose_processes_were_killed_becomes_incomplete(store: Store, holder: str, reason: str) -> None:
    words = [sys.executable, "-c", LAUNCHER, str(store.root), holder]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        assert store.read(run_id).reason == "still running"
        process.kill()
    record = store.read(run_id)
    assert record.outcome == "incomplete"
    assert reason in (record.reason or "")
    assert "its launcher ended before the run was over" in record.notes
    assert (store.root / run_id / "manifest.json").exists()
    assert store.read(run_id) == record


def begun(store: Store, hostname: str, began_unix_s: float) -> Path:
    folder = store.new_run(SPEC)
    store.release(folder.name)
    line = {"seq": 0, "kind": "begin", "time_unix_s": began_unix_s, "schema_version": 1, "pid": os.getpid()}
    (folder / "rank-0.jsonl").write_bytes(seal({**line, "hostname": hostname}) + b"\n")
    return folder


def test_a_later_process_with_the_pid_of_a_dead_rank_does_not_keep_its_run_alive(store: Store) -> None:
    folder = begun(store, socket.gethostname(), 1000.0)
    assert store.read(folder.name).reason == "rank 0: cut off after 0 of 4 steps"


def test_a_rank_of_another_machine_counts_as_alive_until_the_time_limit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(store, "elsewhere", 1000.0)
    monkeypatch.setattr("time.time", lambda: 1000.0 + SPEC.timeout_s - 1)
    assert store.read(folder.name).reason == "still running"
    monkeypatch.setattr("time.time", lambda: 1000.0 + SPEC.timeout_s + 1)
    assert store.read(folder.name).reason == "rank 0: cut off after 0 of 4 steps"


def test_a_manifest_written_while_a_reader_looked_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.new_run(SPEC)
    train(folder)

    def alive(*arguments: object) -> bool:
        store.finish(folder.name, "wrong", "the losses differ")
        return False

    store.release(folder.name)
    monkeypatch.setattr("harness.store.ranks_alive", alive)
    assert Store(store.root).read(folder.name).outcome == "wrong"


def test_a_folder_with_a_runs_name_and_nothing_in_it_is_listed_with_the_reason(store: Store) -> None:
    run_id = finished(store)
    empty = store.root / new_id()
    empty.mkdir()
    rows = store.runs()
    assert [row.run_id for row in rows] == [run_id, empty.name]
    assert "spec.json: is missing" in (rows[1].problem or "")
    assert not list(empty.iterdir())


def test_rows_hold_what_a_list_shows(store: Store) -> None:
    run_id = finished(store)
    (row,) = store.runs()
    assert (row.run_id, row.workload, row.size, row.optimizer) == (run_id, "gpt", "nano", "adamw/fused")
    assert (row.strategy, row.precision, row.world_size, row.seed, row.steps) == ("single", "fp32", 1, 3, 4)
    assert (row.outcome, row.step_time_s, row.train_loss, row.problem) == ("completed", 0.25, None, None)


def test_the_list_is_the_same_with_and_without_its_cache(store: Store) -> None:
    for _ in range(3):
        finished(store)
    first = store.runs()
    assert (store.root / INDEX).exists()
    assert store.runs() == first
    (store.root / INDEX).unlink()
    assert store.runs() == first


def test_the_cache_is_used_and_noticed_to_be_out_of_date(store: Store) -> None:
    run_id, gone = finished(store), finished(store)
    store.runs()
    path = store.root / run_id / "manifest.json"
    mtime = path.stat().st_mtime_ns
    flip(path)  # in place, its time put back: nothing tells a list that the file has changed
    os.utime(path, ns=(mtime, mtime))
    assert store.runs()[0].problem is None
    os.utime(path, ns=(mtime + 1, mtime + 1))
    assert "is corrupt" in (store.runs()[0].problem or "")
    store.finish(run_id)
    shutil.rmtree(store.root / gone)
    assert [(row.run_id, row.outcome) for row in store.runs()] == [(run_id, "completed")]


@pytest.mark.parametrize("content", [b"", b"00000000\n{}", b"\xff\xfe", None])
def test_a_broken_cache_is_made_again(store: Store, content: bytes | None) -> None:
    finished(store)
    expected = store.runs()
    path = store.root / INDEX
    if content is None:
        flip(path, 200)
    else:
        path.write_bytes(content)
    assert store.runs() == expected
    good = path.read_bytes()
    assert store.runs() == expected
    assert path.read_bytes() == good


def test_a_cache_that_cannot_be_replaced_is_bypassed(store: Store) -> None:
    run_id = finished(store)
    (store.root / INDEX).mkdir()
    for _ in range(2):
        assert [row.run_id for row in store.runs()] == [run_id]


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A store that this process may read and not write, also where the tests run as root."""
    root = Path(tempfile.mkdtemp(prefix="optbench-"))
    user = os.geteuid()
    shutil.copytree(STORED, root / "results")
    killed = root / "results" / "20261123T070000-0123456789abcdef"
    killed.mkdir()
    shutil.copy(STORED / STORED_ID / "spec.json", killed)
    folders = [root, root / "results", *(root / "results").iterdir()]
    for folder in folders:
        folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield root / "results"
    finally:
        if user == 0:
            os.seteuid(user)
        for folder in folders:
            folder.chmod(0o755)
        shutil.rmtree(root)


def test_a_read_only_store_is_refused_for_writing_and_read_all_the_same(read_only: Path) -> None:
    store = Store(read_only)
    with pytest.raises(InvalidInputError, match=r"cannot be written: (Permission denied|Read-only)") as caught:
        store.check_writable()
    assert caught.value.problems[0].remedy is not None
    rows = store.runs()
    assert [(row.outcome, row.problem) for row in rows] == [("completed", None), ("incomplete", None)]
    assert store.read("latest").reason == "no rank left a file"
    assert not (read_only / INDEX).exists()
    assert not (read_only / rows[1].run_id / "manifest.json").exists()


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_file_in_the_way_of_the_store_is_named(tmp_path: Path, below: str) -> None:
    file = tmp_path / "results"
    file.write_text("x")
    with pytest.raises(InvalidInputError, match=f"{file} is a file"):
        Store(file / below).check_writable()
    assert Store(file).runs() == []


def test_a_disk_without_space_is_refused_before_anything_starts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tempfile.gettempdir())
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=3 * 2**20))
    with pytest.raises(InvalidInputError, match="its disk has 3 MiB left, a sweep needs 16"):
        store.check_writable()


def test_a_writable_store_is_made_and_left_empty(store: Store) -> None:
    store.check_writable()
    assert list(store.root.iterdir()) == []


def test_a_file_that_cannot_be_replaced_leaves_no_trial_behind(tmp_path: Path) -> None:
    target = tmp_path / "manifest.json"
    target.mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        write_atomically(target, b"x")
    assert caught.value.filename == str(target)
    assert list(tmp_path.iterdir()) == [target]


def test_a_run_that_cannot_be_made_leaves_nothing_and_names_the_file(tmp_path: Path) -> None:
    root = tmp_path / "results"
    root.write_text("in the way")
    with pytest.raises(OSError, match="results"):
        Store(root).new_run(SPEC)


def test_the_store_needs_no_torch() -> None:
    code = "import sys, harness.store, harness.claims; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Files that come later


def of_two(folder: Path, rank: int, loss: float) -> None:
    writer = RankWriter(folder / f"rank-{rank}.jsonl")
    writer.begin(rank, 2)
    writer.readings([Reading(STEP_TIME, series=[loss, loss / 2, loss / 2, loss / 2])])
    writer.end()
    writer.close()


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Store, Store, str]:
    """Two nodes' own stores with the same run, whose rank 0 has ended; and its id."""
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    spec = SPEC.model_copy(update={"world_size": 2})
    run_id = here.new_run(spec).name
    assert there.join_run(run_id, spec) == there.root / run_id
    of_two(here.root / run_id, 0, 0.5)
    of_two(there.root / run_id, 1, 1.0)
    here.finish(run_id, verification={"outcome": "passed"})
    return here, there, run_id


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("first", ["rank 0's manifest", "the other node's, by a reader"])
def test_a_run_is_complete_once_the_other_nodes_files_are_copied_in(
    nodes: tuple[Store, Store, str], first: str, *, listed: bool
) -> None:
    here, there, run_id = nodes
    assert here.read(run_id).outcome == there.read(run_id).outcome == "incomplete"
    assert [row.outcome for row in (*here.runs(), *there.runs())] == ["incomplete"] * 2
    source, target = (there, here) if first == "rank 0's manifest" else (here, there)
    for path in (source.root / run_id).glob("rank-*"):
        shutil.copy2(path, target.root / run_id)  # with its old time
    row = target.runs()[0] if listed else None
    record = target.read(run_id)
    assert (record.outcome, record.reason) == ("completed", None)
    assert record.metrics["step_time_s"].per_rank == (0.25, 0.5)
    assert target.read(run_id) == record
    assert [(each.outcome, each.step_time_s) for each in target.runs()] == [("completed", 0.5)]
    assert row is None or row.outcome == "completed"
    if target is here:
        assert record.verification == {"outcome": "passed"}


def test_whole_folders_copied_over_one_another_make_one_run(nodes: tuple[Store, Store, str]) -> None:
    here, there, run_id = nodes
    there.read(run_id)  # writes a manifest there, which is copied, too
    shutil.copytree(there.root, here.root, dirs_exist_ok=True)
    assert here.read(run_id).outcome == "completed"


def test_what_some_of_the_missing_files_tell_is_in_the_reason(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.new_run(SPEC.model_copy(update={"world_size": 3}))
    of_two(folder, 0, 0.5)
    assert store.finish(folder.name).reason == "ranks 1, 2: no file"
    of_two(folder, 1, 0.5)
    assert store.read(folder.name).reason == "rank 2: no file"
    assert store.runs()[0].reason == "rank 2: no file"


def test_a_run_that_was_interrupted_keeps_its_launchers_reason(store: Store) -> None:
    folder = store.new_run(SPEC)
    train(folder, end=False)
    record = store.finish(folder.name, "incomplete", "interrupted")
    assert record.reason == "interrupted"
    for _ in range(2):
        assert store.runs()[0].reason == "interrupted"
        assert store.read(folder.name) == record


def test_a_run_that_is_incomplete_is_not_read_anew_while_nothing_changes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.new_run(SPEC)
    train(folder, end=False)
    store.finish(folder.name)
    first = store.runs()
    monkeypatch.setattr(store, "_row", lambda _: pytest.fail("read anew"))
    assert store.runs() == first
