"""What PyTorch's strategies refuse in the plan, and what they predict."""

from __future__ import annotations

import pytest
import torch

from harness import precision
from harness.interfaces import OptimizerTraits, Predicts, World
from harness.machine import Accelerator, Machine
from harness.plan import resolve, workload_traits
from harness.registry import OPTIMIZERS, strategy
from harness.spec import RunSpec
from harness.strategies.clipping import clip
from harness.strategies.predictions import whole_tensor_shares

TORCH = ("single", "ddp", "fsdp2", "hsdp", "zero-redundancy")


def machine(*accelerators):
    return Machine(
        hostname="here",
        system="Linux",
        cpu="a processor",
        cores=4,
        memory_bytes=2**36,
        python="3.12",
        torch="2.13.0",
        accelerators=accelerators,
    )


GPU = Accelerator(index=0, type="cuda", name="a GPU", memory_bytes=2**36, capability="9.0")


def refused(name, optimizer="adamw/foreach", traits=None, gpus=0, **fields):
    fields = {"workload": "gpt", "device": "accelerator" if gpus else "cpu", **fields}
    here = machine(*[GPU.model_copy(update={"index": n}) for n in range(gpus)])
    entry, chosen = OPTIMIZERS.get(optimizer), strategy(name)
    spec = RunSpec(optimizer=optimizer, strategy=name, **fields)
    workload = workload_traits(spec.workload)
    spec = resolve(spec, workload, entry, chosen, here)
    return chosen.unsupported(spec, workload, traits or entry.traits, here)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "bf16-pure", "bf16-master", "fp16"])
def test_every_precision_runs_with_a_plain_optimizer(name, precision):
    assert refused(name, precision=precision) is None


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("single", {"world_size": 2}, ["one rank", "--strategy ddp"]),
        ("ddp", {"workload": "parameters"}, ["no backward", "--strategy single"]),
        ("fsdp2", {"workload": "parameters"}, ["no backward", "--strategy single"]),
        ("zero-redundancy", {"workload": "parameters"}, ["no backward", "--strategy single"]),
        ("fsdp2", {"workload": "recommender"}, ["sparse", "workload.sparse=false"]),
        ("zero-redundancy", {"workload": "recommender"}, ["sparse", "workload.sparse=false"]),
        ("single", {"workload": "recommender", "precision": "bf16-master"}, ["sparse", "workload.sparse=false"]),
        ("ddp", {"workload": "recommender", "clip_norm": 1.0}, ["clip_norm", "workload.sparse=false"]),
        ("fsdp2", {"optimizer": "lbfgs/forloop"}, ["lbfgs/forloop", "--strategy ddp"]),
        ("zero-redundancy", {"optimizer": "lbfgs/forloop"}, ["lbfgs/forloop", "--strategy ddp"]),
        ("fsdp2", {"optimizer": "adafactor/foreach"}, ["granularity tensor", "--strategy zero-redundancy"]),
        ("hsdp", {"world_size": 4, "strategy_options": {"replicas": 3}}, ["4 ranks", "1, 2, 4"]),
        ("fsdp2", {"world_size": 4, "strategy_options": {"reshard_after_forward": 4}}, ["4", "true, false, 2"]),
        ("fsdp2", {"strategy_options": {"param_dtype": "half"}}, ["param_dtype 'half'", "bfloat16"]),
        ("fsdp2", {"precision": "bf16", "strategy_options": {"param_dtype": "bfloat16"}}, ["bf16-master"]),
        ("ddp", {"strategy_options": {"static_graph": True}, "accumulation": 2}, ["static_graph", "leave one"]),
        ("ddp", {"strategy_options": {"comm_hook": "int8"}}, ["'int8'", "powersgd"]),
        ("ddp", {"strategy_options": {"comm_hook": "bf16"}}, ["on cpu", "fp16"]),
        ("ddp", {"strategy_options": {"comm_hook": "powersgd", "powersgd_start_iter": 1}}, ["2 at the earliest"]),
        ("ddp", {"strategy_options": {"comm_hook": "powersgd"}, "steps": 10}, ["10 steps"]),
        ("ddp", {"strategy_options": {"comm_hook": "powersgd", "powersgd_rank": 0}}, ["powersgd_rank = 0"]),
        ("ddp", {"strategy_options": {"comm_hook": "powersgd"}, "precision": "bf16-pure"}, ["bfloat16"]),
        ("single", {"workload": "parameters", "precision": "fp16"}, ["no loss", "fp32"]),
        ("single", {"strategy_options": {"cuda_graph": True}}, ["on cpu", "cuda_graph=false"]),
    ],
)
def test_what_cannot_run_says_which_part_and_what_to_do(name, fields, words):
    reason = refused(name, **fields)
    assert reason is not None
    for word in words:
        assert word in reason


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"optimizer": "lbfgs/forloop"}, "all gradients at once"),
        ({"optimizer": "adamw/compiled"}, "compile"),
        ({"precision": "fp16"}, "overflow"),
        ({"precision": "bf16-master"}, "bf16-pure"),
        ({"workload": "recommender", "optimizer": "sgd/forloop"}, "sparse"),
        ({"workload": "parameters"}, "no backward"),
    ],
)
def test_a_step_in_the_backward_pass_is_refused_what_needs_all_gradients(fields, word):
    reason = refused("single", strategy_options={"optimizer_in_backward": True}, **fields)
    assert word in reason
    assert "optimizer_in_backward=false" in reason


def test_shards_are_their_own_master_weights_in_the_backward_pass():
    options = {"optimizer_in_backward": True}
    assert refused("fsdp2", precision="bf16-master", strategy_options=options) is None
    assert "plain shards" in refused("fsdp2", optimizer="sgd/fused", strategy_options=options)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"optimizer": "sgd/foreach"}, "reads values on the host"),
        ({"precision": "fp16"}, "scaler"),
        ({"steps": 10}, "warmup_steps"),
        ({"workload": "parameters"}, "neither"),
        ({"workload": "recommender", "optimizer": "adam/foreach"}, "sparse"),
    ],
)
def test_a_cuda_graph_is_refused_what_cannot_be_replayed(fields, word):
    graph = {"cuda_graph": True}
    assert word in refused("single", gpus=1, strategy_options=graph, **fields)
    assert refused("single", gpus=1, strategy_options=graph) is None


@pytest.mark.parametrize("name", TORCH)
def test_an_optimizer_that_reduces_gradients_itself_goes_elsewhere(name):
    traits = OptimizerTraits(algorithm="adamw", granularity="element", owns_reduction=True)
    assert "--strategy apex-distributed" in refused(name, traits=traits)


def test_sparse_gradients_are_averaged_on_cpus_only():
    assert refused("ddp", optimizer="sparseadam/forloop", workload="recommender", world_size=2) is None
    on_gpus = refused("ddp", optimizer="sparseadam/forloop", workload="recommender", gpus=2, world_size=2)
    assert "reduce no sparse tensors" in on_gpus
    assert "workload.sparse=false" in on_gpus
    assert refused("single", optimizer="sparseadam/forloop", workload="recommender", gpus=1) is None


def test_an_optimizer_that_unscales_itself_is_refused_fp16():
    here = machine(GPU)
    fp16 = RunSpec(workload="gpt", optimizer="lamb/apex-mixed-precision", precision="fp16")
    traits = OPTIMIZERS.get(fp16.optimizer).traits
    assert "--precision bf16" in precision.unsupported(fp16, traits, here)
    assert precision.unsupported(fp16.model_copy(update={"precision": "bf16"}), traits, here) is None


OWN_VALUES = OptimizerTraits(algorithm="x", granularity="element", own_initial_values=True)
"""Draws initial values by the place of a tensor in the list that it is given."""


@pytest.mark.parametrize("name", ["fsdp2", "hsdp", "zero-redundancy"])
def test_an_optimizer_that_draws_initial_values_itself_is_refused_where_a_rank_is_given_parts(name):
    reason = refused(name, traits=OWN_VALUES)
    assert "initial values of its own" in reason
    assert "--strategy ddp" in reason


def test_an_optimizer_that_draws_initial_values_itself_runs_where_a_rank_has_all_of_them():
    assert refused("single", traits=OWN_VALUES) is None
    assert refused("ddp", traits=OWN_VALUES) is None
    in_backward = {"strategy_options": {"optimizer_in_backward": True}}
    assert "place in a list" in refused("single", traits=OWN_VALUES, **in_backward)


def test_distributed_fused_adam_goes_with_its_own_strategy_on_cuda_only():
    own = {"optimizer": "adamw/apex-distributed"}
    assert refused("apex-distributed", gpus=2, **own) is None
    assert "zero2" in refused("apex-distributed", **own)
    assert "--optimizer adamw/apex-distributed" in refused("apex-distributed", gpus=2)
    assert "gradient scaler" in refused("apex-distributed", gpus=2, precision="fp16", **own)
    assert "workload.sparse=false" in refused("apex-distributed", gpus=2, workload="recommender", **own)
    for name in TORCH:
        assert "--strategy apex-distributed" in refused(name, gpus=2 if name != "single" else 1, **own)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, ["not installed", "APEX_DISTRIBUTED_ADAM=1"]),
        ({"state": "no-kernels"}, ["amp_C", "APEX_DISTRIBUTED_ADAM=1"]),
        ({"state": "no-distributed-kernels"}, ["DistributedFusedAdam's kernels", "APEX_DISTRIBUTED_ADAM=1"]),
    ],
)
def test_missing_kernels_of_distributed_fused_adam_come_with_the_build_that_makes_them(found, words):
    here = machine(GPU).model_copy(update={"families": {"apex-distributed": found}})
    spec = RunSpec(
        workload="gpt", optimizer="adamw/apex-distributed", strategy="apex-distributed", device="accelerator"
    )
    reason = OPTIMIZERS.get("adamw/apex-distributed").unsupported(spec, workload_traits("gpt"), here)
    for word in words:
        assert word in reason
    ready = machine(GPU).model_copy(update={"families": {"apex-distributed": {"state": "ok"}}})
    assert OPTIMIZERS.get("adamw/apex-distributed").unsupported(spec, workload_traits("gpt"), ready) is None


SHAPES = {"embed.weight": (10, 8), "block.weight": (5, 8), "block.bias": (5,), "scale": ()}
ELEMENTS = 80 + 40 + 5 + 1


def predicted(name, rank=0, ranks=2, **fields):
    chosen = strategy(name)
    assert isinstance(chosen, Predicts)
    spec = RunSpec(workload="gpt", optimizer="adamw/foreach", strategy=name, world_size=ranks, **fields)
    world = World(rank, ranks, rank, torch.device("cpu"), "gloo")
    return chosen.predict(SHAPES, spec, OPTIMIZERS.get("adamw/foreach").traits, world, ("block",))


def test_replicas_hold_everything_and_reduce_every_gradient_once():
    found = predicted("ddp", accumulation=4)
    assert found.held_bytes["state"] == 8 * ELEMENTS
    assert found.payload_bytes == {"all_reduce": 4 * ELEMENTS}
    assert predicted("single").payload_bytes == {}
    rounded = predicted("ddp", precision="bf16-master")
    assert rounded.held_bytes["parameters"] == 2 * ELEMENTS
    assert rounded.held_bytes["master"] == 4 * ELEMENTS
    assert rounded.payload_bytes == {"all_reduce": 2 * ELEMENTS}


def test_compressed_gradients_are_counted_as_they_are_sent():
    assert predicted("ddp", strategy_options={"comm_hook": "fp16"}).payload_bytes == {"all_reduce": 2 * ELEMENTS}
    power = predicted("ddp", strategy_options={"comm_hook": "powersgd", "powersgd_rank": 1})
    assert power.payload_bytes == {"all_reduce": 4 * ((10 + 8) + (5 + 8) + 5 + 1)}


def test_whole_tensors_go_largest_first_to_the_emptiest_rank():
    assert whole_tensor_shares(SHAPES, 2) == [["embed.weight"], ["block.weight", "block.bias", "scale"]]
    assert predicted("zero-redundancy", 0).held_bytes["state"] == 8 * 80
    assert predicted("zero-redundancy", 1).held_bytes["state"] == 8 * 46
    assert predicted("zero-redundancy").payload_bytes["broadcast"] == 4 * ELEMENTS


def test_shards_are_chunks_of_rows_and_collectives_carry_their_padding():
    first, last = predicted("fsdp2", 0), predicted("fsdp2", 1)
    assert first.held_bytes["parameters"] == 4 * (40 + 24 + 3 + 1)
    assert last.held_bytes["parameters"] == 4 * (40 + 16 + 2)
    root, block = 80 + 2, 2 * (24 + 3)
    assert first.payload_bytes["all_gather"] == 4 * (root + 2 * block)
    assert first.payload_bytes["reduce_scatter"] == 4 * (root + block)
    assert first.payload_bytes["all_reduce"] == 0
    accumulated = predicted("fsdp2", accumulation=3, clip_norm=1.0)
    assert accumulated.payload_bytes["all_gather"] == 3 * first.payload_bytes["all_gather"]
    assert accumulated.payload_bytes["reduce_scatter"] == first.payload_bytes["reduce_scatter"]
    assert accumulated.payload_bytes["all_reduce"] == 4
    kept = predicted("fsdp2", strategy_options={"reshard_after_forward": False})
    assert kept.payload_bytes["all_gather"] == 4 * (root + block)
    rounded = predicted("fsdp2", precision="bf16-master")
    assert rounded.payload_bytes["all_gather"] * 2 == first.payload_bytes["all_gather"]
    assert rounded.payload_bytes["reduce_scatter"] == first.payload_bytes["reduce_scatter"]


def test_replicas_of_shards_reduce_the_scattered_gradients_between_them():
    found = predicted("hsdp", rank=3, ranks=4)
    assert found.held_bytes == predicted("fsdp2", rank=1, ranks=2).held_bytes
    assert found.payload_bytes["all_reduce"] == 4 * (41 + 27)


def test_clipping_adds_up_in_float32_and_leaves_small_gradients_alone():
    gradients = [torch.full((300,), 1.0, dtype=torch.bfloat16), torch.full((2, 50), 1.0, dtype=torch.bfloat16)]
    norm = clip(gradients, 10.0, None, torch.device("cpu"))
    assert norm.dtype == torch.float32
    assert norm.item() == 20.0
    assert gradients[0].float().mean().item() == pytest.approx(0.5)
    small = [torch.full((4,), 0.5)]
    assert clip(small, 10.0, None, torch.device("cpu")).item() == 1.0
    assert small[0].tolist() == [0.5] * 4
    assert clip([], 1.0, None, torch.device("cpu")).item() == 0.0
