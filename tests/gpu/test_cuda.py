"""What only a CUDA device shows; skipped without one. Two devices are needed for NCCL."""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def trained(optbench, *words: str) -> list[dict]:
    ran = optbench.run(*words, "--steps", "20", "--json")
    return [{**optbench.show(row["run_id"]), "row": row} for row in ran.json["runs"]]


def test_a_run_uses_the_device_times_it_with_events_and_reads_its_memory(optbench):
    (record,) = trained(optbench, "--workload", "gpt", "--optimizer", "adamw/fused", "--strategy", "single")
    assert record["outcome"] == "completed", record["reason"]
    assert record["spec"]["device"] == "accelerator"
    metrics = record["metrics"]
    assert metrics["peak_allocated_bytes"]["value"] > metrics["parameter_bytes"]["value"]
    assert 0 < metrics["optimizer_time_s"]["value"] < metrics["step_time_s"]["value"]
    assert record["environment"]["hardware"]["accelerators"]
    curve = metrics["train_loss"]["series"]
    assert curve[-1] < curve[0]


def test_implementations_agree_on_the_device(optbench):
    names = ["adamw/forloop", "adamw/foreach", "adamw/fused", "adamw/compiled", "adamw/apex", "adamw/deepspeed"]
    words = [word for name in names for word in ("--optimizer", name)]
    records = trained(optbench, "--workload", "gpt", "--strategy", "single", *words)
    curves = [r["metrics"]["train_loss"]["series"] for r in records if r["outcome"] == "completed"]
    assert len(curves) >= 3
    for curve in curves[1:]:
        assert max(abs(a - b) / abs(a) for a, b in zip(curves[0], curve, strict=True)) < 1e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_ranks_over_nccl_give_the_losses_of_one(optbench):
    (alone,) = trained(optbench, "--workload", "cnn", "--optimizer", "adamw/foreach", "--strategy", "single")
    (pair,) = trained(
        optbench, "--workload", "cnn", "--optimizer", "adamw/foreach", "--strategy", "ddp", "--nproc", "2"
    )
    one, two = (r["metrics"]["train_loss"]["series"] for r in (alone, pair))
    assert max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True)) < 1e-3


def test_cpu_runs_stay_possible_beside_a_device(optbench):
    (record,) = trained(optbench, "--workload", "cnn", "--optimizer", "adamw/fused", "--device", "cpu")
    assert record["outcome"] == "completed"
    assert record["metrics"]["peak_allocated_bytes"]["value"] is None


def test_a_paired_assertion_waits_for_what_a_call_has_left_to_the_device():
    """Both calls return as soon as their work is queued."""
    import optbench

    matrix = torch.randn(4096, 4096, device="cuda")

    def multiplies(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    with pytest.raises(AssertionError, match=r"slower: [34]\.\d+x"):
        optbench.assert_not_slower(lambda: multiplies(8), lambda: multiplies(2), margin="50 %")
