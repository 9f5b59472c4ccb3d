"""Families of installed packages: what they say where something is missing, and what they do where it is not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from harness import system
from harness.errors import InvalidInputError
from harness.interfaces import ParamGroup, WorkloadTraits
from harness.machine import Constructor
from harness.optimizers.construct import facts
from harness.optimizers.pytorch_optimizer import KNOWN, UNFIT
from harness.plan import out_of_tree
from harness.rates import set_lr
from harness.registry import OPTIMIZERS
from harness.remedies import THIRD_PARTY
from harness.spec import RunSpec
from tests.unit.test_plan import machine

WORKLOAD = WorkloadTraits(summary="", source="", sizes={}, default_size="")
ONLY = WORKLOAD.model_copy(update={"optimizer_only": True})
FAMILIES = ("torchao", "bitsandbytes", "transformer-engine", "heavyball", "schedulefree", "pytorch_optimizer")
INSTALLED = {**dict.fromkeys((*THIRD_PARTY, "transformer-engine"), "1.0")}

here = {name: version is not None for name, version in system.packages().items()}


def needs(package):
    return pytest.mark.skipif(not here[package], reason=f"{package} is not installed")


def spec(name, **fields):
    return RunSpec(workload="gpt", optimizer=name, device=fields.pop("device", "cpu"), **fields)


def a_machine(accelerators=0, **fields):
    return machine(accelerators).model_copy(
        update={"compilers": {"c++": "12"}, "packages": INSTALLED, "families": {}, **fields}
    )


def reason(name, found=None, workload=WORKLOAD, **fields):
    return OPTIMIZERS.get(name).unsupported(spec(name, **fields), workload, found or a_machine())


def names_of(family):
    return [n for n in OPTIMIZERS.names() if OPTIMIZERS.families()[family] == type(OPTIMIZERS.get(n)).__module__]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_package_is_told_with_the_command_that_installs_it(family):
    bare = a_machine(accelerators=1, packages=dict.fromkeys(INSTALLED))
    names = names_of(family)
    assert names
    for name in names:
        told = reason(name, bare, device="accelerator", strategy="single")
        assert "is not installed; run pip install" in told, name
        assert ("third-party" in told) is (family != "transformer-engine")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_package_that_cannot_be_imported_says_why(family):
    broken = a_machine(accelerators=1, families={family: {"error": "OSError: libcudart.so.99"}})
    assert "libcudart.so.99" in reason(names_of(family)[0], broken, device="accelerator")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("adamw/torchao-cpu-offload", "use adamw/fused"),
        ("adamw/bitsandbytes-paged-8bit", "use adamw/bitsandbytes-8bit"),
        ("ademamix/bitsandbytes", "use ademamix/bitsandbytes-8bit"),
        ("adamw/transformer-engine", "use adamw/fused"),
        ("sgd/transformer-engine", "use sgd/fused"),
    ],
)
def test_what_needs_a_gpu_says_what_to_use_on_a_cpu(name, word):
    assert word in reason(name)
    assert reason(name, a_machine(accelerators=1), device="accelerator") is None


def test_offloading_refuses_what_would_change_gradients_after_they_were_copied():
    def told(workload=WORKLOAD, **fields):
        found = a_machine(accelerators=1)
        return reason("adamw/torchao-cpu-offload", found, workload, device="accelerator", **fields)

    assert told() is None
    assert "--strategy single" in told(strategy="ddp", world_size=1)
    assert "clip_norm" in told(clip_norm=1.0)
    assert "its scale" in told(precision="fp16")
    assert "no backward" in told(ONLY)


def test_what_compiles_itself_needs_a_compiler_unless_told_otherwise():
    bare = a_machine(compilers={"c++": None})
    assert "apt-get install g++" in reason("adamw/torchao-8bit", bare)
    assert reason("soap/heavyball", bare) is None  # eager on CPUs
    assert "apt-get install g++" in reason("soap/heavyball", bare, optimizer_options={"compile_mode": "default"})
    assert "is unknown; use one of auto" in reason("soap/heavyball", optimizer_options={"compile_mode": "fast"})


def test_listing_and_planning_import_none_of_the_packages():
    code = (
        "import sys; from harness.registry import OPTIMIZERS\n"
        "for name in OPTIMIZERS.names(): OPTIMIZERS.get(name).traits\n"
        "found = {'torch', 'torchao', 'bitsandbytes', 'heavyball', 'schedulefree', 'pytorch_optimizer'}\n"
        "print(sorted(found & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_pytorch_optimizer_are_the_familys_and_no_out_of_tree_code():
    lion = OPTIMIZERS.get("pytorch_optimizer:lion")
    assert type(lion).__name__ == "PytorchOptimizer"
    assert lion.traits.granularity == "element"
    assert out_of_tree([spec("pytorch_optimizer:lion"), spec("mine.own:Lion")])[0] == ["mine.own:Lion"]
    assert set(KNOWN) <= {n.partition(":")[2] for n in OPTIMIZERS.names()} | set(UNFIT)


def test_a_misspelt_name_of_a_package_of_many_gets_the_near_one():
    with pytest.raises(InvalidInputError) as told:
        OPTIMIZERS.get("pytorch_optimizer:lionn")
    assert "did you mean pytorch_optimizer:lion" in str(told.value.problems[0])


def test_options_of_pytorch_optimizer_are_the_constructors():
    target = OPTIMIZERS.get("pytorch_optimizer:lion").target
    known = {target: Constructor(parameters={"lr": 1e-4, "betas": [0.9, 0.99]}, open_ended=True)}
    found = a_machine(constructors=known)
    assert OPTIMIZERS.get("pytorch_optimizer:lion").options(found) == {"betas": [0.9, 0.99]}
    assert "cannot be driven here" in reason("pytorch_optimizer:alig", found)
    adan = {"max_grad_norm": 1.0}
    assert "use clip_norm" in reason("pytorch_optimizer:adan", found, optimizer_options=adan)


def group(*shape):
    seeded = torch.Generator().manual_seed(1)
    return ParamGroup(("weight",), (torch.nn.Parameter(torch.randn(shape, generator=seeded)),), "matrix")


def steps(name, count=10, shape=(64, 128), **fields):
    made = group(*shape)
    (weight,) = made.parameters
    optimizer = OPTIMIZERS.get(name).build([made], spec(name, **fields))
    for step in range(count):
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        set_lr(optimizer, 1 - step / count)
        optimizer.step()
    return weight.detach(), optimizer


def quantised_difference(name, exact="adamw/foreach"):
    """Return the largest difference from the exact steps, in units of the largest step that was taken."""
    (found, optimizer), (wanted, _) = steps(name), steps(exact)
    start = group(64, 128).parameters[0].detach()
    assert OPTIMIZERS.get(name).disproved(optimizer) is None
    return ((found - wanted).abs().max() / (wanted - start).abs().max()).item(), optimizer


@needs("bitsandbytes")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("adamw/bitsandbytes-8bit", "adamw/foreach"),
        ("sgd-momentum/bitsandbytes-8bit", "sgd-momentum/foreach"),
        ("rmsprop/bitsandbytes-8bit", "rmsprop/foreach"),
        ("adagrad/bitsandbytes-8bit", "adagrad/foreach"),
    ],
)
def test_eight_bit_state_takes_the_bytes_it_says_and_steps_nearly_alike(name, exact):
    difference, optimizer = quantised_difference(name, exact)
    assert 0 < difference < 0.15
    (kept,) = optimizer.state.values()
    held = sum(t.nbytes for key, t in kept.items() if torch.is_tensor(t) and not key.startswith("qmap"))
    assert held == OPTIMIZERS.get(name).traits.state_bytes * 64 * 128


@needs("bitsandbytes")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_eight_bits_over_small_tensors_are_disproved():
    _, optimizer = steps("adamw/bitsandbytes-8bit", shape=(8, 8))
    assert "no state was quantised" in OPTIMIZERS.get("adamw/bitsandbytes-8bit").disproved(optimizer)


@needs("torchao")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "bound"), [("adamw/torchao-8bit", 0.1), ("adamw/torchao-4bit", 1.0), ("adamw/torchao-fp8", 0.3)]
)
def test_low_bits_take_the_bytes_they_say_and_steps_nearly_alike(name, bound):
    torch._dynamo.reset()
    difference, optimizer = quantised_difference(name)
    assert 0 < difference < bound
    (kept,) = optimizer.state.values()
    held = sum(kept[moment].codes.nbytes + kept[moment].scale.nbytes for moment in ("exp_avg", "exp_avg_sq"))
    assert held == OPTIMIZERS.get(name).traits.state_bytes * 64 * 128


@needs("schedulefree")
@pytest.mark.parametrize("name", [n for n in OPTIMIZERS.names() if "/schedulefree-" in n])
def test_schedule_free_begins_in_train_mode_and_evaluates_other_parameters(name):
    weight, optimizer = steps(name)
    assert OPTIMIZERS.get(name).traits.evaluation_switch
    trained = weight.clone()
    optimizer.eval()
    evaluated = weight.clone()
    optimizer.train()
    assert not torch.equal(trained, evaluated)
    assert (weight - trained).abs().max() < 1e-5


@needs("heavyball")
@pytest.mark.filterwarnings("ignore:Learning rate changed between steps:UserWarning")
def test_heavyball_runs_eagerly_on_a_cpu_takes_gradients_away_and_records_its_mode():
    _, optimizer = steps("adamw-clamped/heavyball")
    assert optimizer.param_groups[0]["params"][0].grad is None
    arguments = facts(optimizer)["arguments"]
    assert (arguments["compile_mode"], arguments["caution"], arguments["warmup_steps"]) == ("none", False, 0)
