"""Proofs through real engines, in worlds of two ranks: sound ones pass, faults are caught with their cause."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT_S = 400

STRATEGIES = ("ddp", "fsdp2", "zero-redundancy", "zero0", "zero1", "zero2", "zero3")
SOUND = [
    *(("adamw/foreach", strategy, "fp32") for strategy in STRATEGIES),
    *(("sgd-momentum/foreach", strategy, "fp32") for strategy in ("fsdp2", "zero1")),
    *(("adamw/foreach", strategy, "bf16-master") for strategy in ("ddp", "zero3")),
]
MORE_SOUND = [
    *(("sgd-momentum/foreach", strategy, "fp32") for strategy in STRATEGIES if strategy not in {"fsdp2", "zero1"}),
    *(("adamw/foreach", strategy, "bf16-master") for strategy in ("fsdp2", "zero1")),
]

FAULTS = {
    "NotAveraged": "gradients are not averaged over the ranks: each steps with its own",
    "Summed": "gradients are summed over the ranks, not averaged",
    "AveragedTwice": "gradients are averaged twice: 1/N^2 over N ranks",
    "OnlyRankZero": "only rank 0's gradient is used",
    "SeededDifferently": "ranks start from different parameters: they are seeded differently",
    "OneRankSkipsAStep": "on rank 1 alone: the step is left out at times: in step 5",
    "EverySecondStepDoesNothing": "every second step is left out",
    "EverySeventhStepDoesNothing": "every seventh step is left out",
    "StepDoesNothing": "nothing happens: the step moves no parameter",
    "ZeroGradBeforeStep": "the gradient is zero when the step is taken (zero_grad between backward and step)",
    "LastMicroBatchOnly": "only the last micro-batch's gradient is used",
    "MicroBatchesSummed": "gradients of micro-batches are summed, not averaged",
    "AccumulationOffByOne": "accumulation is off by one: the last micro-batch is left out",
    "NeverCleared": "gradients are never cleared: they add up over the steps",
    "ClippedByTheShard": "clipped by the norm of each rank's shard instead of the global norm",
    "ClippedBeforeAveraging": "clipped by each rank's own norm before gradients are averaged",
    "ClippedAtOneUnasked": "gradients are clipped at 1.0, which nobody asked for",
    "NotClipped": "gradients are not clipped",
    "StaleRate": "lr is stale: it stays at its first value",
    "RateOneStepLate": "lr is stale: each step uses the rate of the step before",
    "RateStaleAfterLoading": "lr is stale after loading: it stays at the saved rate until it changes",
    "StateLostOnLoad": "the optimizer's state is lost on load",
    "GradientDropped": "these tensors are left out: head.weight",
    "OneRankRounds": None,
    "PastAChunkOfTheShard": (
        "3 of 131,075 elements do not move, such as number 65,537 (in every tensor of more than 33,153 elements)"
    ),
    "PastALaunch": "tensors number 110 to 125 of 126 do not move",
}


WHOLE = {
    ("Normed", "ddp"): "passed",
    ("Normed", "fsdp2"): "passed",
    ("Normed", "faulty_engines:ShardsForTensors"): "wrong",
    ("ByPlace", "ddp"): "passed",
    ("ByPlace", "zero-redundancy"): "wrong",
    ("Eigenbasis", "zero-redundancy"): "passed",
}
"""Optimizers without a reference that depend on whole tensors or their list: what a strategy makes of them."""


MORE_FAULTS = {
    "Summed",
    "OnlyRankZero",
    "EverySecondStepDoesNothing",
    "StepDoesNothing",
    "MicroBatchesSummed",
    "NeverCleared",
    "ClippedBeforeAveraging",
    "ClippedAtOneUnasked",
    "StaleRate",
    "RateStaleAfterLoading",
}
"""Another of these kinds is tried daily."""


def proved(folder, jobs):
    """Return a certificate a job, all made in one world."""
    asked, out, log = folder / "jobs.json", folder / "out.jsonl", folder / "log"
    specs = [{"workload": "linear_regression", "device": "cpu", "world_size": 2, **job} for job in jobs]
    asked.write_text(json.dumps([{"spec": spec} for spec in specs]), encoding="utf-8")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONWARNINGS": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{HERE}"
    with log.open("w", encoding="utf-8") as told:
        subprocess.run(
            [sys.executable, *words, "-m", "harness.verification.world", str(asked), str(out)],
            stdout=told,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=LIMIT_S,
            check=False,
        )
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    assert len(lines) == len(jobs), log.read_text(encoding="utf-8", errors="replace")[-3000:]
    return [json.loads(line) for line in lines]


def sound_jobs(cells):
    return [{"optimizer": each, "strategy": name, "precision": precision} for each, name, precision in cells]


DAILY = ["Replicas", *(name for name in FAULTS if name not in MORE_FAULTS), "Raises"]


@pytest.fixture(scope="module")
def daily(tmp_path_factory):
    """Return the certificates of sound cells and of engines from outside: one world made all."""
    whole = [{"optimizer": f"unlike_elements:{name}", "strategy": strategy} for name, strategy in WHOLE]
    made = proved(tmp_path_factory.mktemp("proved"), [*sound_jobs(SOUND), *whole, *engine_jobs(DAILY)])
    return dict(zip([*SOUND, *WHOLE, *DAILY], made, strict=True))


@pytest.fixture(scope="module")
def faulty(daily):
    return {name: daily[name] for name in DAILY}


def engine_jobs(names):
    return [{"optimizer": "adamw/foreach", "strategy": f"faulty_engines:{name}"} for name in names]


def passed_every_check(made):
    assert (made["outcome"], made["cause"]) == ("passed", None), made["reason"]
    checks = {check["name"]: check for check in made["checks"]}
    for name in ("update", "resumed from a saved state", "update, accumulated and clipped"):
        assert 0 < checks[name]["error"] <= checks[name]["bound"]
    assert checks["replicas are identical"]["verdict"] == "passed"
    assert checks["sizes"]["verdict"] == "passed"
    assert "131,075" in checks["sizes"]["detail"]


@pytest.mark.parametrize("cell", SOUND, ids="-".join)
def test_a_sound_engine_passes_every_check(daily, cell):
    passed_every_check(daily[cell])


@pytest.mark.exhaustive
def test_more_sound_engines_pass_every_check(tmp_path):
    for made in proved(tmp_path, sound_jobs(MORE_SOUND)):
        passed_every_check(made)


def test_an_engine_from_outside_passes_too(faulty):
    assert faulty["Replicas"]["outcome"] == "passed", faulty["Replicas"]["reason"]


@pytest.mark.parametrize("cell", WHOLE, ids="-".join)
def test_what_depends_on_whole_tensors_is_held_to_itself_on_one_rank(daily, cell):
    """Also where its decomposition is arbitrary: gradients are the same to the bit, and so are updates."""
    made = daily[cell]
    assert made["outcome"] == WHOLE[cell], made
    (check,) = [check for check in made["checks"] if check["name"] == "as over whole tensors"]
    assert check["verdict"] == WHOLE[cell]
    if WHOLE[cell] == "wrong":
        assert "moves otherwise than over whole tensors on one rank" in made["reason"]


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in MORE_FAULTS])
def test_a_fault_of_the_engine_is_caught_and_named(faulty, name):
    made = faulty[name]
    assert made["outcome"] == "wrong"
    assert made["cause"] == FAULTS[name], made["reason"]


@pytest.mark.exhaustive
def test_more_faults_of_engines_are_caught_and_named(tmp_path):
    names = sorted(MORE_FAULTS)
    found = dict(zip(names, proved(tmp_path, engine_jobs(names)), strict=True))
    assert {name: (made["outcome"], made["cause"]) for name, made in found.items()} == {
        name: ("wrong", FAULTS[name]) for name in MORE_FAULTS
    }


def test_what_raises_costs_the_world_no_more_than_its_own_proof(faulty):
    raised = faulty["Raises"]
    assert (raised["outcome"], raised["reason"]) == ("failed", "ValueError: broken on purpose")
    assert {made["outcome"] for name, made in faulty.items() if name != "Raises"} == {"passed", "wrong"}
