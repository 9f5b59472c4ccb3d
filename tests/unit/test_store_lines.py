"""Lines of a results folder: what is written comes back, and what is broken is said to be."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import CorruptFileError, OptbenchError
from harness.interfaces import Reading
from harness.rankfile import LineWriter, RankWriter, append_lines, read_rank_file
from harness.record import SCHEMA_VERSION, Environment, MetricInfo
from harness.sealed import parse, seal, unseal
from harness.versions import FutureVersionError

STEP_TIME = MetricInfo(name="step_time_s", unit="s", better="lower")
ACCURACY = MetricInfo(name="accuracy", unit="1", better="higher", over_steps="last", keep_series=True)
STARTUP = MetricInfo(name="startup_time_s", unit="s", better="lower")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | finite | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
field_names = texts.filter(lambda name: name not in {"seq", "kind", "time_unix_s", "crc32"})
numbers = st.none() | st.floats() | st.integers(-(2**60), 2**60)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and math.isnan(left):
        return isinstance(right, float) and math.isnan(right)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right) and type(left) is type(right)


def write_file(path: Path, *, turns: int = 3) -> bytes:
    path.unlink(missing_ok=True)
    writer = RankWriter(path)
    writer.begin(0, 2)
    for turn in range(turns):
        writer.readings([Reading(STEP_TIME, series=[0.125, 0.25 + turn]), Reading(STARTUP, value=turn)])
    writer.end()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


@pytest.fixture(scope="module")
def content(folder: Path) -> bytes:
    return write_file(folder / "rank-0.jsonl")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(texts, st.dictionaries(field_names, json_values, max_size=3)), max_size=5))
def test_any_lines_come_back_as_they_were_written(folder: Path, lines: list[tuple[str, dict[str, Any]]]) -> None:
    path = folder / "any.jsonl"
    path.unlink(missing_ok=True)
    writer = RankWriter(path)
    plain = [(kind, fields) for kind, fields in lines if kind not in {"begin", "samples", "values"}]
    for kind, fields in plain:
        writer.write(kind, **fields)
    writer.close()
    found = read_rank_file(path)
    assert [(line.kind, line.fields) for line in found.lines] == plain
    assert [line.seq for line in found.lines] == list(range(len(plain)))
    assert not found.torn


@settings(max_examples=150, deadline=None)
@given(st.lists(numbers, max_size=6), st.dictionaries(texts, numbers, max_size=4))
def test_any_numbers_come_back_also_those_that_json_cannot_hold(
    folder: Path, series: list[float | int | None], values: dict[str, float | int | None]
) -> None:
    path = folder / "numbers.jsonl"
    path.unlink(missing_ok=True)
    writer = RankWriter(path)
    writer.write("samples", step=0, samples={"x": series})
    writer.write("values", values=values)
    writer.close()
    json_lines = [json.loads(line) for line in path.read_text().splitlines()]  # strict JSON: no bare NaN
    assert len(json_lines) == 2
    samples, stored = read_rank_file(path).lines
    assert same(samples.fields["samples"]["x"], series)
    assert list(stored.fields["values"]) == list(values)
    assert same(list(stored.fields["values"].values()), list(values.values()))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_byte_is_reported_with_its_line_or_leaves_a_torn_tail(
    folder: Path, content: bytes, data: st.DataObject
) -> None:
    path = folder / "flipped.jsonl"
    position = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.integers(1, 255))
    path.write_bytes(content[:position] + bytes([content[position] ^ change]) + content[position + 1 :])
    if position == len(content) - 1:
        found = read_rank_file(path)
        assert found.torn
        assert not found.ended
    else:
        with pytest.raises(CorruptFileError) as caught:
            read_rank_file(path)
        line = content[:position].count(b"\n") + 1
        assert str(caught.value).startswith(f"{path}:{line}: corrupt line: ")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_keeps_its_whole_lines(folder: Path, content: bytes, data: st.DataObject) -> None:
    path = folder / "cut.jsonl"
    length = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:length])
    found = read_rank_file(path)
    assert len(found.lines) == content[:length].count(b"\n")
    assert found.torn == (length > 0 and content[length - 1 : length] != b"\n")
    assert not found.ended


def test_zeros_that_a_power_cut_left_are_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    content = write_file(path)
    path.write_bytes(content + bytes(512))
    found = read_rank_file(path)
    assert found.torn
    assert found.ended


def test_the_checksum_covers_the_exact_bytes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    line = write_file(path).splitlines()[0]
    body, _, end = line.rpartition(b',"crc32":"')
    assert end == b'%08x"}' % zlib.crc32(body + b"}")


def test_lenient_reading_leaves_out_the_corrupt_line_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    lines = write_file(path).splitlines(keepends=True)
    lines[3] = lines[3].replace(b"0.125", b"0.625")
    path.write_bytes(b"".join(lines))
    with pytest.raises(CorruptFileError, match=r"rank-0\.jsonl:4: corrupt line: its checksum"):
        read_rank_file(path)
    found = read_rank_file(path, lenient=True)
    assert [line.seq for line in found.lines] == [seq for seq in range(len(lines)) if seq != 3]
    assert len(found.problems) == 1
    assert found.ended


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not json at all, and long enough for a checksum", "checksum"),
        (seal({"kind": "note", "time_unix_s": 1.0}), "seq, kind or time_unix_s"),
        (seal({"seq": 3, "kind": "note", "time_unix_s": 1.0}), "expected seq 0, found 3"),
        (seal({"seq": 0, "kind": "samples", "time_unix_s": 1.0, "samples": [1]}), "object of lists"),
        (seal({"seq": 0, "kind": "samples", "time_unix_s": 1.0, "samples": {"x": [1]}}), "neither step nor"),
        (
            seal({"seq": 0, "kind": "samples", "time_unix_s": 1.0, "steps": [1, 2], "samples": {"x": [1]}}),
            "differ in length",
        ),
        (seal({"seq": 0, "kind": "values", "time_unix_s": 1.0, "values": {"x": "1"}}), "expected a number"),
        (seal({"seq": 0, "kind": "values", "time_unix_s": 1.0, "values": {"x": 10**400}}), "out of range"),
        (seal({"seq": 0, "kind": "values", "time_unix_s": 1.0, "values": {"x": True}}), "expected a number"),
        (seal({"seq": 0, "kind": "begin", "time_unix_s": 1.0}), "no schema_version"),
    ],
)
def test_a_line_of_the_wrong_shape_is_refused_with_its_place(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rank-0.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(CorruptFileError, match=message) as caught:
        read_rank_file(path)
    assert str(caught.value).startswith(f"{path}:1: corrupt line: ")


def test_json_nested_to_exhaust_the_stack_is_an_error_like_any_other() -> None:
    with pytest.raises(ValueError, match="recursion"):
        parse(b'{"a":' + b"[" * 200_000)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", seal({"a": 1})[1:]])
def test_what_is_not_sealed_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="checksum"):
        unseal(data)


@pytest.mark.parametrize("lenient", [False, True])
def test_a_file_of_a_newer_version_is_refused_naming_both_versions(tmp_path: Path, *, lenient: bool) -> None:
    path = tmp_path / "rank-0.jsonl"
    path.write_bytes(seal({"seq": 0, "kind": "begin", "time_unix_s": 1.0, "schema_version": 999}) + b"\n")
    with pytest.raises(FutureVersionError, match=f"rank-0.jsonl:1: has schema_version 999.* to {SCHEMA_VERSION}"):
        read_rank_file(path, lenient=lenient)


def test_readings_describe_a_metric_once_and_go_on_where_its_series_ended(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    writer = RankWriter(path)
    writer.readings([Reading(STEP_TIME, series=[1.0, 2.0]), Reading(ACCURACY, series=[0.5], steps=[2])])
    writer.readings([Reading(STEP_TIME, series=[]), Reading(STARTUP, value=None)])
    writer.readings([Reading(STEP_TIME, series=[3.0])])
    writer.close()
    file = read_rank_file(path)
    assert [line.fields["info"]["name"] for line in file.of_kind("metric")] == [
        "step_time_s",
        "accuracy",
        "startup_time_s",
    ]
    assert [line.fields for line in file.of_kind("samples")] == [
        {"step": 0, "samples": {"step_time_s": [1.0, 2.0]}},
        {"steps": [2], "samples": {"accuracy": [0.5]}},
        {"step": 2, "samples": {"step_time_s": [3.0]}},
    ]
    assert [line.fields for line in file.of_kind("values")] == [{"values": {"startup_time_s": None}}]


def test_the_typed_lines_hold_what_they_were_given(tmp_path: Path) -> None:
    path = tmp_path / "rank-3.jsonl"
    writer = RankWriter(path)
    writer.begin(3, 4)
    writer.environment(Environment(settings={"threads": 1}, command=("optbench", "run")))
    writer.facts({"class": "torch.optim.adamw.AdamW"})
    writer.error("failed", "ValueError: caf\udce9", traceback="Traceback", step=7)
    writer.note("throttled")
    writer.end("failed")
    writer.close()
    begin, environment, facts, error, note, end = read_rank_file(path).lines
    assert begin.fields["pid"] == os.getpid()
    assert (begin.fields["rank"], begin.fields["world_size"]) == (3, 4)
    assert begin.fields["schema_version"] == SCHEMA_VERSION
    assert Environment.model_validate(environment.fields).command == ("optbench", "run")
    assert facts.fields == {"facts": {"class": "torch.optim.adamw.AdamW"}}
    assert error.fields == {
        "outcome": "failed",
        "reason": "ValueError: caf?",  # half a character is no text; what other readers refuse is not written
        "traceback": "Traceback",
        "step": 7,
    }
    assert (note.fields, end.fields) == ({"text": "throttled"}, {"outcome": "failed"})


def test_samples_without_as_many_steps_are_refused(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path / "rank-0.jsonl")
    with pytest.raises(ValueError, match="accuracy: 1 samples for 2 steps"):
        writer.readings([Reading(ACCURACY, series=[0.5], steps=[1, 2])])
    writer.close()


def test_reserved_fields_a_closed_writer_and_a_second_writer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    writer = RankWriter(path)
    with pytest.raises(ValueError, match="its own seq"):
        writer.write("note", seq=1)
    with pytest.raises(FileExistsError):
        RankWriter(path)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.note("late")


def test_each_line_is_in_the_file_once_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    writer = RankWriter(path)
    writer.note("first")
    assert len(read_rank_file(path).lines) == 1
    writer.note("second")
    assert len(read_rank_file(path).lines) == 2
    writer.close()


def test_appending_cuts_off_a_torn_tail_and_numbers_on(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(seal({"seq": 0, "kind": "run", "time_unix_s": 1.0}) + b'\n{"seq":1,"ki')
    writer, found = append_lines(path)
    assert found.torn
    writer.write("run", index=1)
    writer.close()
    after = read_rank_file(path)
    assert [line.seq for line in after.lines] == [0, 1]
    assert not after.torn


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_raises_with_the_name_of_the_file() -> None:
    path = Path("/dev/full")
    writer = LineWriter(path, os.open(path, os.O_WRONLY))
    with pytest.raises(OSError, match="No space left") as caught:
        writer.write("note", text="x")
    assert caught.value.filename == "/dev/full"
    writer.close()


LIMITED = """
import resource, sys
from pathlib import Path
from harness.rankfile import RankWriter, read_rank_file
path = Path(sys.argv[1])
writer = RankWriter(path)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
try:
    while True:
        writer.note("x" * 300)
except OSError as error:
    assert error.filename == str(path), error
before = read_rank_file(path)
assert not before.torn and before.lines, before
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
writer.error("failed", "the disk was full")
writer.end("failed")
assert len(read_rank_file(path).lines) == len(before.lines) + 2
"""


def test_a_line_that_did_not_fit_is_taken_back_and_later_ones_follow(tmp_path: Path) -> None:
    # the system's limit on a file's size cuts a write short just as a full disk does
    subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "rank-0.jsonl")], check=True, timeout=120)


def test_a_link_a_pipe_and_a_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "rank-0.jsonl").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "rank-1.jsonl")
    (tmp_path / "rank-2.jsonl").mkdir()
    with pytest.raises(CorruptFileError, match="symbolic link"):
        read_rank_file(tmp_path / "rank-0.jsonl")
    for rank in (1, 2):
        with pytest.raises(CorruptFileError, match="no regular file"):
            read_rank_file(tmp_path / f"rank-{rank}.jsonl")


def test_two_metrics_of_one_name_are_refused(tmp_path):
    info = MetricInfo(name="train_loss", unit="1", better="lower")
    writer = RankWriter(tmp_path / "rank-0.jsonl")
    writer.readings([Reading(info, series=[1.0])])
    for other in (
        Reading(info, series=[2.0], steps=[1]),
        Reading(info, value=2.0),
        Reading(info.model_copy(update={"better": "neither"}), series=[2.0]),
    ):
        with pytest.raises(OptbenchError, match="two metrics are called 'train_loss'"):
            writer.readings([other])
    writer.readings([Reading(info, series=[3.0])])
    writer.close()
