"""Under the real torchrun: runs that train wrongly at full speed are wrong, and say why; sound ones are not."""

from __future__ import annotations

import pytest
from conftest import Optbench

TWO = {"world_size": 2}
LONGER = {"workload": "gpt", "steps": 8, "global_batch": 4}  # steps that last milliseconds

FAULTS = {
    "one rank skips a step": (
        {"strategy": "faulty_runs:SkipsOnOneRank", **TWO},
        "check of replicas: after step 20",
    ),
    "ranks are seeded differently": (
        {"strategy": "faulty_runs:SeededDifferently", **TWO},
        "check of replicas: before the first step",
    ),
    "shards are seeded differently": (
        {"workload": "lstm", "strategy": "faulty_runs:ShardsSeededDifferently", **TWO},
        "check of initial values",
    ),
    "gradients are not averaged": (
        {"strategy": "faulty_runs:NotAveraged", **TWO},
        "check of replicas: after step 4",
    ),
    "zero_grad before step": ({"strategy": "faulty_runs:ForgetsGradients", **TWO}, "check of work"),
    "gradients set to zero before step": (
        {"strategy": "faulty_runs:ZeroesGradients", "optimizer": "adamw/foreach", **TWO},
        "every gradient that reached the optimizer in the first steps was zero",
    ),
    "gradients of the first step for ever": (
        {"strategy": "faulty_runs:KeepsGradients", **TWO},
        "that reached the optimizer in step 2 are those of step 1",
    ),
    "step does nothing": ({"strategy": "faulty_runs:DoesNothing"}, "no parameter of any rank changed"),
    "no step of the last turn does anything": (
        {"strategy": "faulty_runs:StopsInTheEnd"},
        "no parameter of any rank changed in the last",
    ),
    "a thread goes on after the step": (
        {"strategy": "faulty_runs:ReturnsEarly"},
        "check of step is over",
    ),
    "the engine ends its step early": (
        {"strategy": "faulty_runs:EndsBeforeTheStep", **LONGER},
        "check of clock: rank 0: the steps recorded take",
    ),
    "the clock leaves the step out": (
        {"collectors": ["faulty_runs:ForgetfulClock"], **LONGER},
        "check of clock: rank 0: the steps recorded take",
    ),
    "every rank reads the same samples": (
        {"workload": "faulty_runs:SameForAll", "strategy": "ddp", **TWO},
        "32 of the 64 samples of the global batch were read by no rank, 32 were read more than once",
    ),
    "ranks read the samples of another step": (
        {"workload": "faulty_runs:Jumps", "strategy": "ddp", **TWO},
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


def planted(names):
    """Return the fields of runs with these faults."""
    small = {"workload": "linear_regression", "optimizer": "sgd/forloop", "strategy": "single", "steps": 20}
    return [{**small, "world_size": 1, **FAULTS[name][0]} for name in names]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the records of runs with faults and of sound ones, by what they are: one world trained all."""
    runs = {each: sound(*each) for each in SOUND} | dict(zip(FIRST, planted(FIRST), strict=True))
    user = Optbench(tmp_path_factory.mktemp("trained") / "results")
    return dict(zip(runs, user.together(*runs.values()), strict=True))


def is_told(record, fault):
    assert record["outcome"] == "wrong", record
    assert FAULTS[fault][1] in record["reason"]
    checks = record["facts"]["checks"]
    assert [name for name, found in checks.items() if found["verdict"] == "wrong"]


@pytest.mark.parametrize("fault", FIRST)
def test_a_run_with_a_planted_fault_is_wrong_and_says_why(trained, fault):
    is_told(trained[fault], fault)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", [each for each in FAULTS if each not in FIRST])
def test_a_run_with_any_other_fault_is_wrong_too(optbench, fault):
    (record,) = optbench.together(*planted([fault]))
    is_told(record, fault)


def test_a_wrong_run_shows_its_speed_nowhere(optbench):
    words = ["--workload", "linear_regression", "--steps", "20", "--optimizer", "sgd/forloop"]
    words += ["--strategy", "faulty_runs:StopsInTheEnd", "--no-verify"]
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


SOUND = (("fsdp2", "cnn"), ("zero3", "lstm"))
MORE_SOUND = (("fsdp2", "lstm"), ("ddp", "recommender"), ("zero-redundancy", "cnn"), ("zero2", "recommender"))


def sound(strategy, workload):
    base = {"optimizer": "adamw/foreach", "world_size": 2, "steps": 4, "accumulation": 2}
    options = {"workload_options": {"sparse": False}} if workload == "recommender" else {}
    return {**base, "strategy": strategy, "workload": workload, **options}


def pass_every_check(records):
    for record in records:
        assert record["outcome"] == "completed", record
        checks = record["facts"]["checks"]
        applied = {name for name, found in checks.items() if found["verdict"] == "passed"}
        assert {"shards", "step is over", "samples", "work"} <= applied, checks


def test_sound_runs_pass_every_check_that_applies(trained):
    pass_every_check(trained[each] for each in SOUND)


@pytest.mark.exhaustive
def test_more_sound_runs_pass_every_check_that_applies(optbench):
    pass_every_check(optbench.together(*(sound(*each) for each in MORE_SOUND)))
