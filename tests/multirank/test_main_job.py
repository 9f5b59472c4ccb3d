"""The main job with real parts: torchrun, two gloo ranks, torch.compile, DeepSpeed's kernels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import kernels
from harness.store import Store
from launch import local

STEPS = 8
RAN_AS = {
    "forloop": "forloop",
    "foreach": "foreach",
    "fused": "fused",
    "compiled": "compiled",
    "deepspeed": "own kernels",
    "deepspeed-cpu": "own kernels",
}
DAILY = ("foreach", "compiled", "deepspeed")
"""One of each family: torch's own, compiled, built when first asked for. Apex is refused here."""


def curve(record: dict) -> list[float]:
    return record["metrics"]["train_loss"]["series"]


def largest_difference(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other)
    return max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))


def words(**options: str | list[str]) -> list[str]:
    given = []
    for name, values in options.items():
        for value in values if isinstance(values, list) else [values]:
            given += [f"--{name}", value]
    return given


@pytest.mark.timeout(1500)  # the first run on a machine compiles DeepSpeed's kernels
@pytest.mark.parametrize("several", [DAILY, pytest.param(tuple(RAN_AS), marks=pytest.mark.exhaustive)], ids=len)
def test_every_family_trains_gpt_on_two_ranks_to_the_same_losses(optbench, several):
    built = kernels.ensure(["fused_adam", "cpu_adam"], print)
    assert set(built.values()) == {None}
    names = [f"adamw/{implementation}" for implementation in (*several, "apex")]
    ran = optbench.run(
        *words(
            workload="gpt",
            strategy="ddp",
            nproc="2",
            steps=str(STEPS),
            optimizer=names,
            set=["schedule=warmup-cosine", "global_batch=4"],
        ),
        "--json",
        timeout=1400,
    )
    rows = ran.json["runs"]
    assert ran.code == 0, ran.err
    assert [row["outcome"] for row in rows] == ["completed"] * len(several) + ["unsupported"]
    assert "Apex" in rows[-1]["reason"]
    records = [optbench.show(row["run_id"]) for row in rows[:-1]]
    assert [r["spec"]["optimizer"] for r in records] == names[:-1]
    first = records[0]
    for record in records:
        assert largest_difference(curve(first), curve(record)) < 1e-4
        metrics = record["metrics"]
        assert metrics["optimizer_state_bytes"]["value"] == pytest.approx(
            2 * metrics["parameter_bytes"]["value"], rel=0.01
        )
        assert metrics["gradient_bytes"]["value"] == metrics["parameter_bytes"]["value"]
        assert len(metrics["step_time_s"]["per_rank"]) == 2
        assert metrics["step_time_s"]["value"] >= max(metrics["step_time_s"]["per_rank"]) * 0.999
        assert metrics["validation_loss"]["series_steps"][-1] == STEPS
        assert record["spec"]["lr"] == 0.001
        assert record["facts"]["optimizer"]["arguments"]["weight_decay"] == 0.01
    assert [r["facts"]["ran_as"] for r in records] == [RAN_AS[each] for each in several]
    compiled = records[several.index("compiled")]["metrics"]
    assert compiled["graphs"]["value"] >= 1
    assert compiled["recompiles"]["value"] <= 1  # the schedule changes lr in every step
    assert compiled["compile_time_s"]["value"] > 0


def test_the_loss_curve_does_not_depend_on_ranks_or_accumulation(optbench):
    common = {"workload": "cnn", "optimizer": "adamw/foreach", "steps": 12, "global_batch": 32}
    records = optbench.together(
        {**common, "strategy": "single", "world_size": 1},
        {**common, "strategy": "ddp", "world_size": 4},
        {**common, "strategy": "ddp", "world_size": 2, "accumulation": 4},
    )
    assert [record["outcome"] for record in records] == ["completed"] * 3, records
    first, *others = map(curve, records)
    for other in others:
        assert largest_difference(first, other) < 1e-5


@pytest.mark.parametrize(
    ("workload", "optimizer"),
    [
        ("recommender", "sparseadam/forloop"),
        pytest.param("lstm", "muon/forloop", marks=pytest.mark.exhaustive),
        pytest.param("resnet", "sgd-nesterov/foreach", marks=pytest.mark.exhaustive),
    ],
)
def test_unlike_workloads_and_optimizers_train_too(optbench, workload, optimizer):
    ran = optbench.run(*words(workload=workload, optimizer=optimizer, strategy="ddp", steps="4"), "--json")
    assert [row["outcome"] for row in ran.json["runs"]] == ["completed"], ran.json
    losses = curve(optbench.show(ran.json["runs"][0]["run_id"]))
    assert len(losses) == 4
    assert all(0 < loss < 20 for loss in losses)
    assert len(set(losses)) == 4


def test_a_plan_that_was_written_runs_by_hand_under_torchrun(optbench, tmp_path):
    planned = optbench(
        "plan",
        *words(workload="cnn", optimizer="adamw/foreach", strategy="ddp", nproc="2", steps="5"),
        "--write",
        str(tmp_path / "plans"),
        "--json",
    )
    assert planned.code == 0
    (cell,) = planned.json["cells"]
    assert cell["command"].endswith("plan-0.json")
    script = Path(__file__).parents[2] / "launch" / "torchrun.sh"
    done = subprocess.run(
        ["bash", str(script), str(tmp_path / "plans" / "plan-0.json"), "--results", str(optbench.results)],
        env=optbench.environment(PYTHON=sys.executable),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout
    assert optbench.show("latest")["outcome"] == "completed"


def test_cells_that_turn_out_to_be_the_same_code_say_so(optbench):
    # torch's foreach path falls back to the loop for sparse gradients.
    ran = optbench.run(
        *words(workload="recommender", strategy="single", steps="12", optimizer=["sgd/forloop", "sgd/foreach"])
    )
    assert ran.code == 0, ran.err
    assert "sgd/foreach ran the same operators as sgd/forloop" in " ".join(ran.out.split())


@pytest.mark.exhaustive
def test_ddp_on_one_rank_runs_and_says_that_it_is_the_same_as_single(optbench):
    ran = optbench.run(
        *words(workload="cnn", strategy="ddp", nproc="1", steps="3", optimizer="sgd/forloop"), "--json"
    )
    assert ran.code == 0, ran.json
    assert "the same as single" in optbench.show("latest")["notes"][0]


@pytest.mark.exhaustive
@pytest.mark.timeout(300)
def test_nodes_with_disks_of_their_own_make_one_run_once_their_files_are_gathered(optbench, tmp_path):
    small = words(workload="linear_regression", optimizer="sgd/foreach", strategy="ddp", nproc="2", steps="5")
    planned = optbench("plan", *small, "--write", str(tmp_path / "plans"), "--json")
    assert planned.code == 0, planned.err
    script = Path(__file__).parents[2] / "launch" / "torchrun.sh"
    port = local.free_port()
    stores = [tmp_path / "first node", tmp_path / "second node"]
    nodes = []
    for rank, store in enumerate(stores):
        further = f"--nnodes=2 --node-rank={rank} --master-addr=127.0.0.1 --master-port={port}"
        nodes.append(
            subprocess.Popen(
                ["bash", str(script), str(tmp_path / "plans" / "plan-0.json"), "--results", str(store)],
                env=optbench.environment(PYTHON=sys.executable, TORCHRUN_ARGS=further),
                cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    told = [node.communicate(timeout=200) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    (run,) = (path.name for path in stores[0].iterdir() if path.name[0].isdigit())
    assert "incomplete: rank 1: no file" in told[0][0]
    assert f"show {run} --results '{stores[0]}'" in told[0][0]
    assert Store(stores[0]).read(run).outcome == Store(stores[1]).read(run).outcome == "incomplete"
    shutil.copy(stores[1] / run / "rank-1.jsonl", stores[0] / run)
    record = Store(stores[0]).read(run)
    assert record.outcome == "completed"
    assert all(value is not None for value in record.metrics["step_time_s"].per_rank)
