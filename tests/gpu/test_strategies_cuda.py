"""PyTorch's strategies on CUDA devices: what CPUs cannot show. Skipped without one; NCCL needs two."""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

BOUND = 1e-3
"""Largest relative difference of a loss over 20 steps: reductions on a device add up in no fixed order."""


def trained(optbench, *words: str) -> dict:
    common = ("--workload", "gpt", "--steps", "20", "--set", "warmup_steps=4", "--json")
    ran = optbench.run(*common, *words)
    (row,) = ran.json["runs"]
    assert row["outcome"] == "completed", row["reason"]
    return optbench.show(row["run_id"])


def curve(record: dict) -> list[float]:
    return record["metrics"]["train_loss"]["series"]


def difference(record: dict, expected: dict) -> float:
    pairs = zip(curve(record), curve(expected), strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


@pytest.mark.parametrize("optimizer", ["adamw/foreach", "adamw/fused"])
@pytest.mark.parametrize("more", [[], ["--precision", "bf16"], ["--set", "schedule=warmup-cosine"]])
def test_a_captured_step_trains_as_the_eager_one(optbench, optimizer, more):
    words = ["--optimizer", optimizer, "--strategy", "single", "--set", "clip_norm=0.5", *more]
    eager = trained(optbench, *words)
    captured = trained(optbench, *words, "--set", "strategy.cuda_graph=true")
    assert captured["facts"]["cuda_graph"] is True
    assert difference(captured, eager) < (BOUND if "bf16" not in more else 2e-2)


def test_a_step_in_the_backward_pass_holds_fewer_gradients(optbench):
    words = ["--optimizer", "adamw/fused", "--strategy", "single"]
    after = trained(optbench, *words)
    within = trained(optbench, *words, "--set", "strategy.optimizer_in_backward=true")
    assert difference(within, after) < BOUND
    peaks = [record["metrics"]["peak_allocated_bytes"]["value"] for record in (within, after)]
    assert peaks[0] < peaks[1]


@pytest.mark.parametrize("precision", ["tf32", "bf16", "bf16-pure", "bf16-master", "fp16"])
def test_every_precision_trains_on_a_device(optbench, precision):
    words = ["--optimizer", "adamw/fused", "--strategy", "single"]
    exact = trained(optbench, *words)
    assert difference(trained(optbench, *words, "--precision", precision), exact) < 5e-2


@two_devices
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp", "zero-redundancy"])
@pytest.mark.parametrize("precision", ["fp32", "bf16-master", "fp16"])
def test_two_devices_train_what_one_trains(optbench, strategy, precision):
    words = ["--optimizer", "adamw/foreach", "--precision", precision, "--set", "clip_norm=0.5"]
    alone = trained(optbench, *words, "--strategy", "single")
    pair = trained(optbench, *words, "--strategy", strategy, "--nproc", "2", "--set", "accumulation=2")
    assert difference(pair, alone) < (BOUND if precision == "fp32" else 2e-2)


@two_devices
@pytest.mark.parametrize("hook", ["bf16", "fp16"])
def test_compressed_gradients_cost_little_accuracy(optbench, hook):
    words = ["--optimizer", "adamw/foreach", "--strategy", "ddp", "--nproc", "2"]
    hooked = trained(optbench, *words, "--set", f"strategy.comm_hook={hook}")
    assert difference(hooked, trained(optbench, *words)) < 1e-2


@two_devices
def test_apex_reduction_of_its_own_trains_what_ddp_trains(optbench):
    pytest.importorskip("distributed_adam_cuda", reason="needs Apex with DistributedFusedAdam's kernels")
    words = ["--nproc", "2", "--set", "clip_norm=0.5", "--set", "accumulation=2"]
    plain = trained(optbench, *words, "--strategy", "ddp", "--optimizer", "adamw/foreach")
    own = trained(optbench, *words, "--strategy", "apex-distributed", "--optimizer", "adamw/apex-distributed")
    assert difference(own, plain) < BOUND
