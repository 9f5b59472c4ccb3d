"""Under the real torchrun: runs that train wrongly at full speed are wrong, and say why; sound ones are not."""

from __future__ import annotations

import json

import pytest

RANKS = ("--nproc", "2")
SMALL = ("--workload", "linear_regression", "--steps", "20")

FAULTS = {
    "one rank skips a step": (
        ["--strategy", "faulty_runs:SkipsOnOneRank", *RANKS],
        "check of replicas: after step 20",
    ),
    "ranks are seeded differently": (
        ["--strategy", "faulty_runs:SeededDifferently", *RANKS],
        "check of replicas: before the first step",
    ),
    "shards are seeded differently": (
        ["--workload", "lstm", "--strategy", "faulty_runs:ShardsSeededDifferently", *RANKS],
        "check of initial values",
    ),
    "gradients are not averaged": (
        ["--strategy", "faulty_runs:NotAveraged", *RANKS],
        "check of replicas: after step 4",
    ),
    "zero_grad before step": (["--strategy", "faulty_runs:ForgetsGradients", *RANKS], "check of work"),
    "gradients set to zero before step": (
        ["--strategy", "faulty_runs:ZeroesGradients", "--optimizer", "adamw/foreach", *RANKS],
        "every gradient that reached the optimizer in the first steps was zero",
    ),
    "gradients of the first step for ever": (
        ["--strategy", "faulty_runs:KeepsGradients", *RANKS],
        "that reached the optimizer in step 2 are those of step 1",
    ),
    "step does nothing": (["--strategy", "faulty_runs:DoesNothing"], "no parameter of any rank changed"),
    "no step of the last turn does anything": (
        ["--strategy", "faulty_runs:StopsInTheEnd"],
        "no parameter of any rank changed in the last",
    ),
    "a thread goes on after the step": (
        ["--strategy", "faulty_runs:ReturnsEarly"],
        "check of step is over",
    ),
    "the engine ends its step early": (
        ["--workload", "gpt", "--strategy", "faulty_runs:EndsBeforeTheStep"],
        "check of clock: rank 0: the steps recorded take",
    ),
    "the clock leaves the step out": (
        ["--workload", "gpt", "--set", 'collectors=["faulty_runs:ForgetfulClock"]'],
        "check of clock: rank 0: the steps recorded take",
    ),
    "every rank reads the same samples": (
        ["--workload", "faulty_runs:SameForAll", "--strategy", "ddp", *RANKS],
        "32 of the 64 samples of the global batch were read by no rank, 32 were read more than once",
    ),
    "ranks read the samples of another step": (
        ["--workload", "faulty_runs:Jumps", "--strategy", "ddp", *RANKS],
        "64 of the 64 samples of the global batch were read by no rank",
    ),
}


FIRST = (
    "one rank skips a step",
    "shards are seeded differently",
    "gradients set to zero before step",
    "a thread goes on after the step",
    "the clock leaves the step out",
    "every rank reads the same samples",
)
"""One of each check; the others are tried exhaustively."""


@pytest.mark.parametrize(
    "fault", [each if each in FIRST else pytest.param(each, marks=pytest.mark.exhaustive) for each in FAULTS]
)
def test_a_run_with_a_planted_fault_is_wrong_and_says_why(optbench, fault):
    words, reason = FAULTS[fault]
    words = [*SMALL, "--optimizer", "sgd/forloop", *words] if "--optimizer" not in words else [*SMALL, *words]
    ran = optbench.run(*_last_wins(words), "--no-verify", "--json")
    (row,) = ran.json["runs"]
    assert row["outcome"] == "wrong", row
    assert reason in row["reason"]
    assert ran.code == 4
    checks = optbench.show(row["run_id"])["facts"]["checks"]
    assert [name for name, found in checks.items() if found["verdict"] == "wrong"]


def _last_wins(words):
    """Keep of each repeated option the last value."""
    chosen = dict(zip(words[::2], words[1::2], strict=True))
    return [word for pair in chosen.items() for word in pair]


def test_a_wrong_run_shows_its_speed_nowhere(optbench):
    words = [*SMALL, "--optimizer", "sgd/forloop", "--strategy", "faulty_runs:StopsInTheEnd", "--no-verify"]
    ran = optbench.run(*words)
    assert ran.code == 4
    assert "wrong" in ran.out
    assert " ms" not in ran.out
    assert " µs" not in ran.out
    shown = optbench("show", "latest", "--results", str(optbench.results))
    assert "not shown: the answer is wrong" in shown.out
    assert "samples_per_s" not in shown.out
    record = optbench("show", "latest", "--json", "--results", str(optbench.results)).json
    assert record["metrics"] == {}
    listed = optbench("show", "--json", "--results", str(optbench.results)).json["runs"]
    assert listed[0]["step_time_s"] is None
    lines = (optbench.results / record["run_id"] / "rank-0.jsonl").read_text()
    assert "step_time_s" in lines


@pytest.mark.parametrize(
    ("strategy", "workloads"),
    [
        pytest.param("ddp", ("recommender",), marks=pytest.mark.exhaustive),
        ("fsdp2", ("lstm", "cnn")),
        pytest.param("zero-redundancy", ("cnn",), marks=pytest.mark.exhaustive),
        pytest.param("zero2", ("recommender",), marks=pytest.mark.exhaustive),
        ("zero3", ("lstm",)),
    ],
)
def test_sound_runs_pass_every_check_that_applies(optbench, tmp_path, strategy, workloads):
    runs = [{"workload": each} for each in workloads]
    base = {"optimizer": "adamw/foreach", "strategy": strategy, "world_size": 2, "steps": 10, "accumulation": 2}
    lines = ["[defaults]", *(f"{key} = {json.dumps(value)}" for key, value in base.items())]
    for run in runs:
        lines += ["[[runs]]", *(f"{key} = {json.dumps(value)}" for key, value in run.items())]
        if run["workload"] == "recommender":
            lines.append("workload_options = {sparse = false}")
    (tmp_path / "sweep.toml").write_text("\n".join(lines))
    rows = optbench.run(str(tmp_path / "sweep.toml"), "--no-verify", "--json").json["runs"]
    assert {row["outcome"] for row in rows} <= {"completed", "unsupported"}, rows
    assert any(row["outcome"] == "completed" for row in rows)
    for row in rows:
        if row["outcome"] == "completed":
            checks = optbench.show(row["run_id"])["facts"]["checks"]
            applied = {name for name, found in checks.items() if found["verdict"] == "passed"}
            assert {"shards", "step is over", "samples", "work"} <= applied, checks
