"""From rank files to a record: reductions as numpy makes them, and outcomes from what the ranks wrote."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import CorruptFileError
from harness.interfaces import Reading
from harness.rankfile import RankWriter
from harness.record import Environment, MetricInfo
from harness.sealed import seal
from harness.spec import RunSpec
from harness.summary import RankMetric, reduce_metric, reduce_values, summarise
from harness.versions import FutureVersionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.record import Outcome

    Value = float | int | None

RUN_ID = "20261123T060000-0123456789abcdef"
STEP_TIME = MetricInfo(name="step_time_s", unit="s", better="lower")
TRAIN_LOSS = MetricInfo(
    name="train_loss",
    unit="1",
    better="lower",
    across_ranks="mean",
    over_steps="last",
    skip_warmup=False,
    keep_series=True,
)
ACCURACY = TRAIN_LOSS.model_copy(update={"name": "accuracy", "better": "higher", "across_ranks": "first"})
STARTUP = MetricInfo(name="startup_time_s", unit="s", better="lower")
POWER = MetricInfo(name="power_w", unit="W", better="neither", scope="node", across_ranks="sum")

NUMPY: dict[str, Callable[[Any], Any]] = {
    "max": np.max,
    "min": np.min,
    "sum": np.sum,
    "mean": np.mean,
    "median": np.median,
    "last": lambda values: values[-1],
    "first": lambda values: values[0],
}

numbers = st.none() | st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6) | st.just(math.nan)


def make_run(tmp_path: Path, *, world_size: int = 2, steps: int = 10, warmup_steps: int = 2) -> Path:
    folder = tmp_path / RUN_ID
    folder.mkdir()
    spec = RunSpec(
        workload="cnn", optimizer="sgd/forloop", world_size=world_size, steps=steps, warmup_steps=warmup_steps
    )
    (folder / "spec.json").write_text(spec.model_dump_json())
    return folder


def write_rank(
    folder: Path,
    rank: int,
    readings: Sequence[Reading] = (),
    *,
    world_size: int = 2,
    error: tuple[Outcome, str] | None = None,
    end: Outcome | None = "completed",
) -> None:
    writer = RankWriter(folder / f"rank-{rank}.jsonl")
    writer.begin(rank, world_size)
    writer.readings(readings)
    if error:
        writer.error(*error, traceback="Traceback …", step=3)
    if end:
        writer.end(end)
    writer.close()


def as_numpy(how: str, values: Sequence[Value]) -> Value:
    known = [value for value in values if value is not None]
    return NUMPY[how](np.array(known, dtype=float)) if known else None


def close(found: Value, expected: Value) -> bool:
    if found is None or expected is None:
        return found is expected
    return found == pytest.approx(expected, nan_ok=True, rel=1e-9, abs=1e-5)


def all_close(found: Sequence[Value], expected: Sequence[Value]) -> bool:
    return len(found) == len(expected) and all(map(close, found, expected))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4).flatmap(lambda ranks: st.lists(st.tuples(*[numbers] * ranks), max_size=25)),
    st.sampled_from(["max", "mean", "sum", "min", "first"]),
    st.sampled_from(["median", "last", "mean", "sum", "max"]),
    st.integers(0, 30),
)
def test_series_reduce_over_ranks_and_then_over_steps_as_in_numpy(
    samples: list[tuple[Value, ...]], across_ranks: Any, over_steps: Any, warmup_steps: int
) -> None:
    info = MetricInfo(
        name="x", unit="1", better="lower", across_ranks=across_ranks, over_steps=over_steps, keep_series=True
    )
    world_size = len(samples[0]) if samples else 1
    ranks = {
        rank: RankMetric(series={step: row[rank] for step, row in enumerate(samples, start=1)})
        for rank in range(world_size)
    }
    metric = reduce_metric(info, ranks, world_size, warmup_steps)
    if across_ranks == "first":
        job = [row[0] for row in samples]
    else:
        job = [as_numpy(across_ranks, row) for row in samples]
    assert close(metric.value, as_numpy(over_steps, job[warmup_steps:]))
    own = [[row[rank] for row in samples[warmup_steps:]] for rank in range(world_size)]
    assert all_close(metric.per_rank, [as_numpy(over_steps, series) for series in own])
    if samples:
        assert metric.series is not None
        assert all_close(metric.series, job)
        assert metric.series_steps is None
    timed = [value for value in job[warmup_steps:] if value is not None]
    if timed:
        expected = np.percentile(np.array(timed, dtype=float), [10, 50, 90, 99])
        assert metric.quantiles is not None
        assert list(metric.quantiles) == ["p10", "p50", "p90", "p99"]
        assert all_close(list(metric.quantiles.values()), list(expected))
    else:
        assert metric.quantiles is None
        assert metric.value is None


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.integers(0, 7), numbers), st.sampled_from(["max", "mean", "sum", "min", "first"]))
def test_values_of_a_run_reduce_over_the_ranks_that_know_theirs(values: dict[int, Value], how: Any) -> None:
    info = STARTUP.model_copy(update={"across_ranks": how})
    metric = reduce_metric(info, {rank: RankMetric(value) for rank, value in values.items()}, 8, 3)
    assert close(metric.value, as_numpy(how, [values[rank] for rank in sorted(values)]))
    assert all_close(metric.per_rank, [values.get(rank) for rank in range(8)])
    assert metric.quantiles is None
    assert metric.series is None


@pytest.mark.parametrize(
    ("how", "values", "expected"),
    [
        ("sum", [2**60, 1], 2**60 + 1),  # bytes are counted exactly
        ("max", [3, 2], 3),
        ("median", [1, 5, 9], 5),
        ("sum", [math.inf, -math.inf], math.nan),
        ("mean", [math.inf, 1.0], math.inf),
        ("median", [1.0, math.inf, math.inf], math.inf),
        ("sum", [1e308, 1e308], math.inf),
        ("last", [1.0, math.nan], math.nan),
        ("max", [None, None], None),
        ("mean", [], None),
    ],
)
def test_integers_stay_exact_and_infinities_stay_infinite(how: str, values: list[Value], expected: Value) -> None:
    found = reduce_values(how, values)
    assert found == expected or (found is not None and expected is not None and math.isnan(found + expected))
    assert isinstance(found, int) == isinstance(expected, int)


def test_a_metric_whose_samples_all_fall_into_the_warm_up_is_unknown(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=10, warmup_steps=2)
    for rank in range(2):
        write_rank(folder, rank, [Reading(STEP_TIME, series=[0.5, 0.25])])
    metric = summarise(folder).metrics["step_time_s"]
    assert metric.value is None
    assert metric.per_rank == (None, None)
    assert metric.quantiles is None


def test_evaluations_keep_the_step_counts_after_which_they_were_made(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    for rank in range(2):
        write_rank(folder, rank, [Reading(ACCURACY, series=[0.25, 0.5, 0.75], steps=[1, 2, 3])])
    metric = summarise(folder).metrics["accuracy"]
    assert metric.value == 0.75
    assert metric.series == (0.25, 0.5, 0.75)
    assert metric.series_steps == (1, 2, 3)  # though they are what consecutive steps would be


def test_a_node_metric_comes_from_the_rank_that_reported_it_and_a_jobs_has_no_ranks(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    whole = STARTUP.model_copy(update={"name": "mfu", "scope": "job"})
    write_rank(folder, 0, [Reading(whole, value=0.5)])
    write_rank(folder, 1, [Reading(POWER, value=300.0)])
    metrics = summarise(folder).metrics
    assert (metrics["power_w"].value, metrics["power_w"].per_rank) == (300.0, (None, 300.0))
    assert (metrics["mfu"].value, metrics["mfu"].per_rank) == (0.5, ())


def test_ranks_that_ended_apart_are_compared_over_the_steps_that_all_have(tmp_path: Path) -> None:
    folder = make_run(tmp_path, warmup_steps=0)
    write_rank(folder, 0, [Reading(STEP_TIME, series=[1.0, 1.0, 1.0, 9.0, 9.0])], end=None)
    write_rank(folder, 1, [Reading(STEP_TIME, series=[2.0, 2.0, 2.0])], end=None)
    record = summarise(folder)
    assert record.metrics["step_time_s"].value == 2.0
    assert record.metrics["step_time_s"].per_rank == (1.0, 2.0)
    assert record.outcome == "incomplete"
    assert record.reason == "rank 0: cut off after 5 of 10 steps; rank 1: cut off after 3 of 10 steps"
    assert any("after 3 to 5 steps" in note for note in record.notes)


def test_a_whole_run_is_completed_with_what_rank_0_said_of_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    writer = RankWriter(folder / "rank-0.jsonl")
    writer.begin(0, 2)
    writer.environment(Environment(settings={"threads": 2}))
    writer.facts({"class": "SGD", "parameters": 10})
    writer.facts({"parameters": 11})
    writer.note("throttled")
    writer.readings([Reading(TRAIN_LOSS, series=[4.0, 2.0])])
    writer.end()
    writer.close()
    write_rank(folder, 1, [Reading(TRAIN_LOSS, series=[2.0, 1.0])])
    record = summarise(folder, notes=("the launcher's",))
    assert (record.run_id, record.outcome, record.reason) == (RUN_ID, "completed", None)
    assert record.environment.settings == {"threads": 2}
    assert record.facts == {"class": "SGD", "parameters": 11}
    assert record.notes == ("the launcher's", "throttled")
    assert record.metrics["train_loss"].series == (3.0, 1.5)
    assert record.metrics["train_loss"].value == 1.5
    assert record.started_unix_s is not None
    assert record.ended_unix_s is not None
    assert record.started_unix_s <= record.ended_unix_s


def test_the_first_error_by_time_is_the_cause(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    write_rank(folder, 1, error=("out_of_memory", "MemoryError: 8 GiB"), end="out_of_memory")
    write_rank(folder, 0, error=("failed", "RuntimeError: connection closed by peer"), end="failed")
    record = summarise(folder)
    assert record.outcome == "out_of_memory"
    assert record.reason == "rank 1, after 3 steps: MemoryError: 8 GiB"


def test_the_launchers_outcome_wins_and_the_ranks_give_its_reason(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    write_rank(folder, 0, end=None)
    write_rank(folder, 1, error=("failed", "ValueError: no"), end=None)
    assert summarise(folder, "timed_out", "no sign of life for 60 s").reason == "no sign of life for 60 s"
    record = summarise(folder, "timed_out")
    assert (record.outcome, record.reason) == ("timed_out", "rank 1, after 3 steps: ValueError: no")


@pytest.mark.parametrize("outcome", [None, "completed"])
def test_a_missing_rank_file_is_incomplete_whatever_the_launcher_saw(
    tmp_path: Path, outcome: Outcome | None
) -> None:
    folder = make_run(tmp_path, world_size=8)
    write_rank(folder, 0, world_size=8)
    record = summarise(folder, outcome)
    assert record.outcome == "incomplete"
    assert record.reason == "ranks 1, 2, 3, 4 and 3 more: no file"


def test_an_unsupported_cell_needs_no_rank(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    record = summarise(folder, "unsupported", "no CUDA device", environment=Environment(command=("optbench",)))
    assert (record.outcome, record.reason, record.metrics) == ("unsupported", "no CUDA device", {})
    assert record.environment.command == ("optbench",)
    assert record.notes == ()


def test_one_corrupt_line_makes_the_run_incomplete_and_keeps_the_rest(tmp_path: Path) -> None:
    folder = make_run(tmp_path, warmup_steps=0)
    for rank in range(2):
        write_rank(folder, rank, [Reading(STEP_TIME, series=[1.0, 2.0]), Reading(STARTUP, value=7.5)])
    path = folder / "rank-1.jsonl"
    path.write_bytes(path.read_bytes().replace(b"7.5", b"8.5"))
    record = summarise(folder, "completed")
    assert record.outcome == "incomplete"
    assert record.reason is not None
    assert record.reason.startswith(f"{path}:5: corrupt line: ")
    assert record.reason in record.notes
    assert record.metrics["step_time_s"].value == 1.5
    assert record.metrics["startup_time_s"].per_rank == (7.5, None)


def test_a_torn_tail_is_no_corruption(tmp_path: Path) -> None:
    folder = make_run(tmp_path, world_size=1, warmup_steps=0)
    write_rank(folder, 0, [Reading(STEP_TIME, series=[1.0])], world_size=1)
    path = folder / "rank-0.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    record = summarise(folder)
    assert record.reason == "rank 0: cut off after 1 of 10 steps"
    assert record.metrics["step_time_s"].value == 1.0


def test_numbers_without_a_meaning_and_wrong_meanings_are_noted(tmp_path: Path) -> None:
    folder = make_run(tmp_path, world_size=1)
    writer = RankWriter(folder / "rank-0.jsonl")
    writer.begin(0, 1)
    writer.write("metric", info={"name": "y", "unit": 3})
    writer.write("values", values={"x": 1.0})
    writer.write("environment", moon="full")
    writer.end()
    writer.close()
    record = summarise(folder)
    assert record.outcome == "completed"
    assert record.metrics == {}
    assert [note.partition(":")[0] for note in record.notes] == [
        "rank 0's environment cannot be read",
        "rank 0 describes a metric wrongly",
        "rank 0 gives numbers of x without its meaning; they are left out",
    ]


def test_a_strangers_sizes_do_not_size_our_memory(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps({**spec, "world_size": 10**15, "warmup_steps": "all"}))
    writer = RankWriter(folder / "rank-0.jsonl")
    writer.begin(0, 10**15)
    writer.write("metric", info=TRAIN_LOSS.model_dump())
    writer.write("samples", step=10**15, samples={"train_loss": [1.0]})
    writer.write("samples", step=-5, samples={"train_loss": [2.0]})
    writer.end()
    writer.close()
    (folder / "rank-99999999999.jsonl").write_text("")
    metric = summarise(folder).metrics["train_loss"]
    assert metric.series == (2.0, 1.0)
    assert metric.series_steps == (-4, 10**15 + 1)
    assert len(metric.per_rank) == 2**20


def test_a_rank_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    line = {"seq": 0, "kind": "begin", "time_unix_s": 1.0, "schema_version": 999}
    (folder / "rank-0.jsonl").write_bytes(seal(line) + b"\n")
    with pytest.raises(FutureVersionError, match="schema_version 999"):
        summarise(folder)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"a": NaN}'])
def test_a_folder_without_a_spec_holds_no_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "spec.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"spec\.json: (is missing|cannot be read)"):
        summarise(tmp_path)


@pytest.mark.parametrize(("unclaimed", "expected"), [((0, 0), False), ((0, 8), True), ((0, None), True)])
def test_a_value_beside_unclaimed_memory_or_a_failed_trace_on_any_rank_is_a_lower_bound(
    tmp_path, unclaimed, expected
):
    state = MetricInfo(name="state_bytes", unit="B", better="lower", at_least_beside="unclaimed_bytes")
    beside = MetricInfo(name="unclaimed_bytes", unit="B", better="lower")
    folder = make_run(tmp_path)
    for rank in range(2):
        write_rank(folder, rank, [Reading(state, value=100), Reading(beside, value=unclaimed[rank])])
    record = summarise(folder)
    assert record.metrics["state_bytes"].at_least is expected
    assert json.loads(record.model_dump_json())["metrics"]["state_bytes"]["at_least"] is expected
