"""What DeepSpeed's stages refuse in the plan, the config that they write, and what they predict."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from harness.interfaces import OptimizerTraits, Predicts, World
from harness.machine import Accelerator, Machine
from harness.plan import resolve, workload_traits
from harness.registry import OPTIMIZERS, STRATEGIES, strategy
from harness.spec import RunSpec
from harness.strategies.deepspeed_config import REDUCE_BUCKET, configuration

STAGES = ("zero0", "zero1", "zero2", "zero3")
OFFLOADED = ("zero1-offload", "zero2-offload", "zero3-offload")
GPU = Accelerator(index=0, type="cuda", name="a GPU", memory_bytes=2**36, capability="9.0")
ELEMENT = OptimizerTraits(algorithm="x", granularity="element")


def machine(*accelerators, deepspeed="0.19.8", compiler="g++ 13", **families):
    return Machine(
        hostname="here",
        system="Linux",
        cpu="a processor",
        cores=4,
        memory_bytes=2**36,
        python="3.12",
        torch="2.13.0",
        accelerators=accelerators,
        packages={"deepspeed": deepspeed},
        compilers={"c++": compiler, "ninja": "1.11", "nvcc": "12.8"},
        families={"deepspeed": {"error": None, **families}},
    )


def refused(name, optimizer="adamw/foreach", traits=None, gpus=0, here=None, **fields):
    fields = {"workload": "gpt", "device": "accelerator" if gpus else "cpu", **fields}
    here = here or machine(*[GPU.model_copy(update={"index": n}) for n in range(gpus)])
    entry, chosen = OPTIMIZERS.get(optimizer), strategy(name)
    spec = RunSpec(optimizer=optimizer, strategy=name, **fields)
    workload = workload_traits(spec.workload)
    spec = resolve(spec, workload, entry, chosen, here)
    return chosen.unsupported(spec, workload, traits or entry.traits, here) or entry.unsupported(
        spec, workload, here
    )


def config(name, **fields):
    fields = {"workload": "gpt", "optimizer": "adamw/foreach", "global_batch": 16, **fields}
    spec, chosen = RunSpec(strategy=name, **fields), strategy(name)
    options = {**chosen.options, **spec.strategy_options}
    return configuration(spec, chosen.stage, options, None, elements=1000, world_size=2, offload=chosen.offload)


@pytest.mark.parametrize("name", [*STAGES, *OFFLOADED])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-master", "fp16"])
def test_every_precision_runs_with_a_plain_optimizer(name, precision):
    assert refused(name, precision=precision) is None


@pytest.mark.parametrize(
    ("name", "optimizer", "fields", "words"),
    [
        ("zero2", "adamw/foreach", {"workload": "parameters"}, ["no backward", "--strategy single"]),
        ("zero1", "adagrad/forloop", {"workload": "recommender"}, ["sparse", "workload.sparse=false"]),
        ("zero0", "lbfgs/forloop", {}, ["closure", "--strategy ddp"]),
        ("zero1", "adafactor/forloop", {}, ["whole tensors", "flat partitions", "zero0 or ddp"]),
        ("zero3", "muon/forloop", {}, ["whole matrices", "zero0 or ddp"]),
        ("zero2", "muon/deepspeed", {"clip_norm": 1.0}, ["before it clips", "leave clip_norm out"]),
        ("zero3", "muon/deepspeed", {}, ["strategy.reduce_scatter=false"]),
        ("zero1-offload", "adamw/deepspeed", {}, ["FusedAdam", "adamw/deepspeed-cpu"]),
        ("zero2-offload", "adamw/foreach", {"precision": "bf16-pure"}, ["DeepSpeedCPUAdam", "bf16-master"]),
        ("zero2-offload", "adamw/compiled", {"gpus": 2}, ["host memory", "adamw/deepspeed-cpu"]),
        ("zero1", "adamw/foreach", {"strategy_options": {"communication_dtype": "fp8"}}, ["'fp8'", '"bf16"']),
        ("zero1", "adamw/foreach", {"strategy_options": {"grad_accum_dtype": "fp32"}}, ["bf16-master"]),
    ],
)
def test_what_a_stage_cannot_do_faithfully_is_refused_with_the_part_and_the_remedy(name, optimizer, fields, words):
    reason = refused(name, optimizer, **fields)
    assert reason is not None
    assert all(word in reason for word in words), reason


@pytest.mark.parametrize(
    ("here", "words"),
    [
        (machine(deepspeed=None), ["not installed", "pip install"]),
        (machine(error="OSError: libfoo.so"), ["cannot be imported", "libfoo.so", "pip install"]),
    ],
)
def test_without_deepspeed_every_stage_says_how_to_get_it(here, words):
    for name in (*STAGES, *OFFLOADED):
        reason = refused(name, here=here)
        assert reason is not None
        assert all(word in reason for word in words), reason


def test_offload_without_a_compiler_refuses_deepspeeds_own_adam_and_runs_others():
    here = machine(compiler=None)
    reason = refused("zero2-offload", "adamw/deepspeed-cpu", here=here)
    assert reason is not None
    assert "cpu_adam" in reason
    assert "C++ compiler" in reason
    assert refused("zero2-offload", "adamw/foreach", here=here) is None


def test_deepspeeds_cpu_adam_runs_beside_an_accelerator_under_offload_only():
    assert refused("zero2-offload", "adamw/deepspeed-cpu", gpus=2) is None
    assert "works on cpu only" in str(refused("zero2", "adamw/deepspeed-cpu", gpus=2))


def test_deepspeeds_own_muon_runs_where_zero_orthogonalises_whole_gradients():
    for name in ("zero0", "zero1", "zero2", "zero1-offload", "zero2-offload"):
        assert refused(name, "muon/deepspeed") is None
    assert refused("zero3", "muon/deepspeed", strategy_options={"reduce_scatter": False}) is None


def test_an_optimizer_that_draws_initial_values_itself_runs_under_stage_zero_only():
    traits = OptimizerTraits(algorithm="x", granularity="element", own_initial_values=True)
    assert refused("zero0", traits=traits) is None
    for name in (*STAGES[1:], *OFFLOADED):
        assert "initial values of its own" in refused(name, traits=traits), name


def test_undeclared_optimizers_pass_the_plan_and_those_that_average_themselves_do_not():
    assert refused("zero2", traits=ELEMENT.model_copy(update={"granularity": "undeclared"})) is None
    assert "twice" in str(refused("zero2", traits=ELEMENT.model_copy(update={"owns_reduction": True})))


@pytest.mark.parametrize("name", [*STAGES, *OFFLOADED])
def test_the_config_always_says_how_gradients_are_clipped_and_counted(name):
    found = config(name, accumulation=4)
    assert found["gradient_clipping"] == 0.0
    assert config(name, clip_norm=0.5)["gradient_clipping"] == 0.5
    assert (found["train_batch_size"], found["gradient_accumulation_steps"]) == (16, 4)
    assert found["train_micro_batch_size_per_gpu"] == 2
    assert ("offload_optimizer" in found["zero_optimization"]) == (name in OFFLOADED)


def test_buckets_are_no_larger_than_the_model_unless_asked_for():
    assert config("zero2")["zero_optimization"]["reduce_bucket_size"] == 1000
    asked = config("zero2", strategy_options={"reduce_bucket_size": 2000})
    assert asked["zero_optimization"]["reduce_bucket_size"] == 2000
    assert REDUCE_BUCKET == 500_000_000


def test_parameters_go_to_the_host_when_asked_for():
    asked = config("zero3-offload", strategy_options={"offload_parameters": True})
    assert asked["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert "offload_param" not in config("zero3-offload")["zero_optimization"]


@pytest.mark.parametrize(
    ("optimizer", "strategy_name", "kind", "adam_w_mode"),
    [
        ("adamw/deepspeed", "zero2", "AdamW", True),
        ("adam/deepspeed", "zero2", "Adam", False),
        ("adamw/deepspeed-cpu", "zero2-offload", "AdamW", True),
        ("adam/deepspeed-cpu", "zero2-offload", "Adam", False),
        ("lion/deepspeed-cpu", "zero3-offload", "Lion", None),
        ("adagrad/deepspeed-cpu", "zero1-offload", "Adagrad", None),
    ],
)
def test_deepspeeds_own_optimizers_are_named_in_its_config(optimizer, strategy_name, kind, adam_w_mode):
    spec = RunSpec(workload="gpt", optimizer=optimizer, strategy=strategy_name, lr=0.5)
    section = OPTIMIZERS.get(optimizer).deepspeed_config(spec)
    assert section["type"] == kind
    assert section["params"]["lr"] == 0.5
    assert section["params"].get("adam_w_mode") is adam_w_mode


@pytest.mark.parametrize(
    ("optimizer", "strategy_name"),
    [("adamw/deepspeed-cpu", "zero2"), ("adagrad/deepspeed-cpu", "zero1"), ("muon/deepspeed", "zero0")],
)
def test_what_the_config_would_make_another_class_of_is_passed_in(optimizer, strategy_name):
    spec = RunSpec(workload="gpt", optimizer=optimizer, strategy=strategy_name)
    assert OPTIMIZERS.get(optimizer).deepspeed_config(spec) is None


def test_stage_zero_has_no_offload_form():
    assert [name for name in STRATEGIES.names() if name.startswith("zero0")] == ["zero0"]


SHAPES = {"weight": (10, 10), "bias": (7,), "head": (3, 5)}


def predicted(name, optimizer="adamw/foreach", ranks=2, rank=0, **fields):
    chosen = strategy(name)
    assert isinstance(chosen, Predicts)
    spec = RunSpec(workload="gpt", optimizer=optimizer, strategy=name, **fields)
    world = World(rank, ranks, rank, torch.device("cpu"), "gloo")
    return chosen.predict(SHAPES, spec, OPTIMIZERS.get(optimizer).traits, world, ())


def test_stage_one_and_two_cut_padded_groups_and_all_reduce_gradients():
    # Weights: 115 elements, padded to a multiple of 4; vectors: 7, padded likewise.
    padded = 116 + 8
    for name, reductions in (("zero1", 1), ("zero2", 3)):
        found = predicted(name, accumulation=3)
        assert found.held_bytes["master"] == padded / 2 * 4
        assert found.held_bytes["state"] == padded / 2 * 8
        assert found.held_bytes["parameters"] == padded * 4
        assert found.payload_bytes["all_gather"] == padded * 4
        assert found.payload_bytes["all_reduce"] == pytest.approx(122 * 4 * reductions, abs=8)
    assert predicted("zero1", accumulation=3).held_bytes["gradients"] == 122 * 4
    # Rank 0's half of the weights lies in the first tensor, rank 1's in both.
    touching = [predicted("zero2", accumulation=3, rank=rank).held_bytes["gradients"] for rank in (0, 1)]
    assert touching == [(100 + 7) * 4, (115 + 7) * 4]


def test_without_decay_there_is_one_group():
    found = predicted("zero1", optimizer="adam/foreach")
    assert found.held_bytes["parameters"] == 124 * 4  # 122, padded to a multiple of 4


def test_stage_three_cuts_every_tensor_and_scatters_gradients():
    share = 50 + 4 + 8
    found = predicted("zero3", accumulation=2)
    assert found.held_bytes["state"] == share * 8
    assert found.held_bytes["gradients"] == share * 4
    assert found.held_bytes["parameters"] == (share + 122) * 4  # small ones stay whole too
    assert found.payload_bytes["reduce_scatter"] == share * 2 * 2 * 4
    assert found.payload_bytes["all_gather"] == share * 2 * 4
    none_small = {"stage3_param_persistence_threshold": 0}
    gathered = predicted("zero3", accumulation=2, strategy_options=none_small)
    assert gathered.payload_bytes["all_gather"] == 2 * share * 2 * 4


def test_sixteen_bit_parameters_halve_what_is_sent_and_keep_fp32_masters():
    found = predicted("zero2", precision="bf16-master")
    assert found.held_bytes["master"] == 62 * 4
    assert found.held_bytes["parameters"] == 124 * 2
    assert found.payload_bytes["all_gather"] == 124 * 2
    assert predicted("zero2", precision="bf16-pure").held_bytes["master"] == 62 * 2


def test_planning_a_zero_run_imports_neither_torch_nor_deepspeed():
    code = (
        "import sys; from harness.registry import strategy\n"
        "[strategy(f'zero{n}') for n in range(4)]\n"
        "sys.exit(bool({'torch', 'deepspeed'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
