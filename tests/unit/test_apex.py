"""Apex's classes with the native classes' hyperparameters, over doubles of its kernels; and the probe's words."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.interfaces import ParamGroup, WorkloadTraits
from harness.machine import Accelerator, Machine
from harness.optimizers.apex import OPTIMIZERS
from harness.optimizers.construct import facts
from harness.rates import set_lr
from harness.registry import OPTIMIZERS as ALL
from harness.spec import RunSpec

DOUBLE = Path(__file__).parents[1] / "apex_double"
TRAITS = WorkloadTraits(summary="", source="", sizes={}, default_size="")
STEPS = 6


@pytest.fixture
def kernels(monkeypatch):
    """Apex and its kernels, importable for one test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(DOUBLE)
    importlib.invalidate_caches()
    yield importlib.import_module("amp_C")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {"apex", "amp_C"}:
            del sys.modules[name]


def spec_of(name, **fields):
    return RunSpec(workload="tensors", optimizer=name, **fields)


def parameters():
    seeded = torch.Generator().manual_seed(5)
    return [torch.nn.Parameter(torch.randn(shape, generator=seeded)) for shape in ((6, 4), (3, 6), (6,))]


def grouped(tensors):
    return [
        ParamGroup(("a", "b"), tuple(tensors[:2]), "matrix"),
        ParamGroup(("c",), tuple(tensors[2:]), "vector", decay=False, lr_scale=0.5),
    ]


def gradients(step):
    seeded = torch.Generator().manual_seed(50 + step)
    return [torch.randn(shape, generator=seeded) * 3 for shape in ((6, 4), (3, 6), (6,))]


def train(name, **fields):
    tensors = parameters()
    optimizer = ALL.get(name).build(grouped(tensors), spec_of(name, **fields))
    for step in range(STEPS):
        set_lr(optimizer, 1 / (step + 1))
        optimizer.zero_grad()
        for tensor, gradient in zip(tensors, gradients(step), strict=True):
            tensor.grad = gradient
        optimizer.step()
    return torch.cat([tensor.detach().flatten() for tensor in tensors]), optimizer


ADAM = [
    {},
    {"betas": [0.5, 0.9], "eps": 1e-2, "weight_decay": 0.3},
]
SAME = [
    *[("adamw/apex", "adamw/forloop", options) for options in ADAM],
    *[("adam/apex", "adam/forloop", options) for options in ADAM],
    ("adam/apex", "adam/forloop", {"weight_decay": 0.3, "decoupled_weight_decay": True}),
    ("sgd/apex", "sgd/forloop", {}),
    ("sgd/apex", "sgd/forloop", {"weight_decay": 0.3}),
    ("sgd/apex", "sgd/forloop", {"weight_decay": 0.3, "momentum": 0.7, "dampening": 0.2}),
    ("sgd-momentum/apex", "sgd-momentum/forloop", {"weight_decay": 0.3}),
    ("sgd-nesterov/apex", "sgd-nesterov/forloop", {"weight_decay": 0.3}),
    ("adagrad/apex", "adagrad/forloop", {}),
    ("adagrad/apex", "adagrad/forloop", {"eps": 1e-2, "weight_decay": 0.3}),
]


@pytest.mark.parametrize(("name", "native", "options"), SAME)
def test_hyperparameters_mean_what_they_mean_in_the_native_class(name, native, options, kernels):
    found, _ = train(name, lr=0.05, optimizer_options=options)
    expected, _ = train(native, lr=0.05, optimizer_options=options)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


def lamb(lr, *, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, bias_correction=True):
    """Algorithm 2 of arXiv:1904.00962 with the identity as phi, decay on the matrices only."""
    tensors = [tensor.detach() for tensor in parameters()]
    state = [(torch.zeros_like(tensor), torch.zeros_like(tensor)) for tensor in tensors]
    for step in range(1, STEPS + 1):
        rate = lr / step
        for index, (tensor, gradient) in enumerate(zip(tensors, gradients(step - 1), strict=True)):
            decay, scale = (weight_decay, 1.0) if index < 2 else (0.0, 0.5)
            m, v = state[index]
            m.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])
            v.mul_(betas[1]).add_(gradient**2, alpha=1 - betas[1])
            corrections = [1 - beta**step if bias_correction else 1.0 for beta in betas]
            update = (m / corrections[0]) / ((v / corrections[1]).sqrt() + eps) + decay * tensor
            tensor.sub_(rate * scale * (tensor.norm() / update.norm()) * update)
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("name", ["lamb/apex", "lamb/apex-mixed-precision"])
@pytest.mark.parametrize(
    "options",
    [{}, {"betas": [0.6, 0.8], "eps": 1e-3, "weight_decay": 0.2}, {"bias_correction": False}],
)
def test_lamb_is_the_papers_with_every_clipping_off(name, options, kernels):
    found, _ = train(name, lr=0.05, optimizer_options=options)
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    torch.testing.assert_close(found, lamb(0.05, **plain), rtol=2e-5, atol=2e-6)


def novograd(lr, *, betas=(0.9, 0.999), weight_decay=0.0, reg_inside_moment=False, grad_averaging=True):
    """arXiv:1905.11286, Algorithm 1, or with the decay outside of the moment; corrected, norms start at g_1."""
    tensors = [tensor.detach() for tensor in parameters()]
    moments = [torch.zeros_like(tensor) for tensor in tensors]
    squares = [gradient.norm() ** 2 for gradient in gradients(0)]
    for step in range(1, STEPS + 1):
        for index, (tensor, gradient) in enumerate(zip(tensors, gradients(step - 1), strict=True)):
            decay, rate = (weight_decay, lr / step) if index < 2 else (0.0, 0.5 * lr / step)
            squares[index] = betas[1] * squares[index] + (1 - betas[1]) * gradient.norm() ** 2
            length = (squares[index] / (1 - betas[1] ** step)).sqrt() + 1e-8
            share = 1 - betas[0] if grad_averaging else 1.0
            inside = gradient / length + decay * tensor if reg_inside_moment else gradient
            moments[index] = betas[0] * moments[index] + share * inside
            update = moments[index] / (1 - betas[0] ** step)
            tensor.sub_(rate * (update if reg_inside_moment else update / length + decay * tensor))
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": [0.95, 0.98], "weight_decay": 0.2},
        {"reg_inside_moment": True, "grad_averaging": False, "weight_decay": 0.2},
    ],
)
def test_novograd_follows_its_options(options, kernels):
    found, _ = train("novograd/apex", lr=0.05, optimizer_options=options)
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    torch.testing.assert_close(found, novograd(0.05, **plain), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("adamw/apex", ["multi_tensor_adam"] * 2),
        ("sgd/apex", ["multi_tensor_sgd"] * 2),
        ("adagrad/apex", ["multi_tensor_adagrad"] * 2),
        ("lamb/apex", ["multi_tensor_l2norm"] * 2 + ["multi_tensor_lamb"] * 2),
        ("lamb/apex-mixed-precision", ["multi_tensor_l2norm"] + ["multi_tensor_lamb_mp"] * 2),
        ("novograd/apex", ["multi_tensor_novograd"] * 2),
    ],
)
def test_a_step_launches_one_kernel_for_each_group(name, order, kernels):
    kernels.calls.clear()
    train(name)
    assert kernels.calls == order * STEPS


@pytest.mark.parametrize("name", ["adam/apex", "adamw/apex"])
def test_under_a_cuda_graph_rates_are_tensors_of_the_groups_own(name, kernels):
    plain, _ = train(name, lr=0.05)
    found, optimizer = train(name, lr=0.05, strategy_options={"cuda_graph": True})
    assert all(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.05, 0.025]
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-7)  # a rate in a tensor is a float32


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_record_tells_class_flags_and_arguments(name, kernels):
    _, optimizer = train(name, lr=0.05)
    found = json.loads(json.dumps(facts(optimizer), allow_nan=False))
    assert found["class"].rpartition(".")[2] == OPTIMIZERS[name].target.partition(":")[2]
    assert found["arguments"]["lr"] == 0.05
    assert [group["tensors"] for group in found["groups"]] == [2, 1]
    assert [group["initial_lr"] for group in found["groups"]] == [0.05, 0.025]
    if "adam" in name:
        flags = {key: found["arguments"][key] for key in ("adam_w_mode", "capturable", "master_weights")}
        assert flags == {"adam_w_mode": name == "adamw/apex", "capturable": False, "master_weights": False}
    if "lamb" in name:
        assert found["arguments"]["max_grad_norm"] == "inf"


@pytest.mark.parametrize("name", ["adamw/apex", "sgd-momentum/apex", "novograd/apex", "lamb/apex"])
def test_state_saved_and_loaded_goes_on(name, kernels):
    _, optimizer = train(name)
    copied = ALL.get(name).build(grouped(parameters()), spec_of(name))
    copied.load_state_dict(optimizer.state_dict())
    assert facts(copied)["groups"] == facts(optimizer)["groups"]


def machine(state, detail=None, device="cuda"):
    return Machine(
        hostname="",
        system="",
        cpu="",
        cores=1,
        memory_bytes=1,
        python="3",
        torch="2",
        accelerators=(Accelerator(index=0, type=device, name="x"),) if device != "cpu" else (),
        families={"apex": {"state": state, "detail": detail}},
    )


def test_each_missing_part_has_its_own_reason_and_remedy():
    reasons = {
        state: ALL.get("adamw/apex").unsupported(spec_of("adamw/apex"), TRAITS, machine(state))
        for state in ("absent", "unrelated", "broken", "no-kernels", "no-cuda")
    }
    assert len(set(reasons.values())) == 5
    assert "pip uninstall apex" in reasons["unrelated"]
    assert all("pip install apex" not in reason for reason in reasons.values())
    built = [reason for state, reason in reasons.items() if state != "no-cuda"]
    assert all("--no-build-isolation ." in reason for reason in built)
    assert ALL.get("adamw/apex").unsupported(spec_of("adamw/apex"), TRAITS, machine("ok")) is None


def test_a_cpu_run_on_a_machine_with_kernels_is_unsupported():
    spec = spec_of("adamw/apex", device="cpu")
    assert "this run is on cpu" in ALL.get("adamw/apex").unsupported(spec, TRAITS, machine("ok"))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("adamw/apex", "amsgrad", True), ("sgd/apex", "maximize", True), ("adagrad/apex", "lr_decay", 0.1)],
)
def test_what_a_fused_class_cannot_compute_is_unsupported(name, option, value):
    spec = spec_of(name, optimizer_options={option: value})
    assert option in ALL.get(name).unsupported(spec, TRAITS, machine("ok"))


def probed(*folders):
    """What a process sees that has these folders first on its path."""
    code = "import json; from harness.optimizers.apex import probe; print(json.dumps(probe()))"
    path = os.pathsep.join(map(str, folders))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_probe_tells_the_states_apart(tmp_path):
    assert probed(tmp_path)["state"] == "absent"
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("# a web framework")
    assert probed(tmp_path)["state"] == "unrelated"
    (tmp_path / "apex" / "__init__.py").write_text("import pyramid_session_of_another_age")
    assert probed(tmp_path)["state"] == "unrelated"
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "apex").symlink_to(DOUBLE / "apex")
    assert probed(bare)["state"] == "no-kernels"
    (bare / "amp_C.py").write_text("raise ImportError('undefined symbol')")
    assert probed(bare) == {"state": "no-kernels", "detail": "undefined symbol"}
    assert probed(DOUBLE)["state"] == "no-cuda"
