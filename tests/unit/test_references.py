"""The references against torch.optim in float64 and against the installed libraries in float32."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.errors import UnsupportedError
from harness.optimizers.algorithms import ALGORITHMS
from harness.references.table import REFERENCES, WITHOUT, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from harness.references.reference import Reference

STEPS = 30
SHAPES = ((), (1,), (7,), (5, 3), (3, 8), (2, 3, 4))
ADAM = {"betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.1}
SGD = {"weight_decay": 0.1}


def rate(step: int, peak: float) -> float:
    """A schedule that no step repeats, and a jump."""
    return peak * (1 + step / 10) * (0.3 if step > 15 else 1)


def gradients(seed: int, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[list[Tensor]]:
    source = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes] for _ in range(STEPS)]


def hyperparameters(held: Reference, options: Mapping[str, Any], lr: float) -> dict[str, Any]:
    known = {key: tuple(v) if isinstance(v, list) else v for key, v in ALGORITHMS[held.algorithm].options.items()}
    shared = {"role": "matrix", "lr": lr, "peak_lr": lr, "dtype": torch.float64, "weight_decay": 0.0}
    return {**shared, **known, **held.variants, **options}


def worst(
    held: Reference, optimizer: torch.optim.Optimizer, tensors: Sequence[Tensor], options: Mapping[str, Any]
) -> float:
    """Return the largest difference over all steps and tensors, relative to the tensor's largest update so far."""
    peak = float(optimizer.param_groups[0]["lr"])
    chosen = hyperparameters(held, options, peak)
    states: list[dict[str, Any]] = [{} for _ in tensors]
    sizes = [1e-30 for _ in tensors]
    assert held.update is not None
    found = 0.0
    for step, each in enumerate(gradients(1, [tuple(tensor.shape) for tensor in tensors])):
        lr = rate(step, peak)
        for group in optimizer.param_groups:
            group["lr"] = lr
        before = [tensor.detach().double().clone() for tensor in tensors]
        exact = [g.to(tensor.dtype).double() for g, tensor in zip(each, tensors, strict=True)]
        for tensor, g in zip(tensors, exact, strict=True):
            tensor.grad = g.to(tensor.dtype)
        optimizer.step()
        for index, (tensor, start, g) in enumerate(zip(tensors, before, exact, strict=True)):
            expected = held.update(start, g, states[index], {**chosen, "lr": lr, "step": step + 1}) - start
            error = (tensor.detach().double() - start - expected).abs().max()
            sizes[index] = max(sizes[index], float(expected.abs().max()))
            found = max(found, float(error) / sizes[index])
    return found


def leaves(dtype: torch.dtype, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [
        (0.05 * torch.randn(shape, generator=source, dtype=torch.float64)).to(dtype).requires_grad_()
        for shape in shapes
    ]


NATIVE: tuple[tuple[str, type[torch.optim.Optimizer], dict[str, Any]], ...] = (
    ("adam", torch.optim.Adam, ADAM),
    ("adam", torch.optim.Adam, {**ADAM, "amsgrad": True, "maximize": True}),
    ("adam", torch.optim.Adam, {**ADAM, "decoupled_weight_decay": True}),
    ("adamw", torch.optim.AdamW, ADAM),
    ("adamw", torch.optim.AdamW, {**ADAM, "amsgrad": True, "maximize": True}),
    ("adamax", torch.optim.Adamax, ADAM),
    ("adamax", torch.optim.Adamax, {**ADAM, "maximize": True}),
    ("nadam", torch.optim.NAdam, ADAM),
    ("nadam", torch.optim.NAdam, {**ADAM, "decoupled_weight_decay": True, "maximize": True}),
    ("radam", torch.optim.RAdam, ADAM),
    ("radam", torch.optim.RAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    ("adagrad", torch.optim.Adagrad, {"weight_decay": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    ("adagrad", torch.optim.Adagrad, {"eps": 0.01, "maximize": True}),
    ("adadelta", torch.optim.Adadelta, {"weight_decay": 0.1}),
    ("adadelta", torch.optim.Adadelta, {"rho": 0.7, "eps": 0.01, "maximize": True}),
    ("rmsprop", torch.optim.RMSprop, {"weight_decay": 0.1, "eps": 0.01}),
    ("rmsprop", torch.optim.RMSprop, {"momentum": 0.8, "centered": True, "maximize": True, "alpha": 0.9}),
    ("rprop", torch.optim.Rprop, {}),
    ("rprop", torch.optim.Rprop, {"etas": (0.3, 1.7), "step_sizes": (0.005, 0.05), "maximize": True}),
    ("sgd", torch.optim.SGD, SGD),
    ("sgd", torch.optim.SGD, {**SGD, "maximize": True}),
    ("sgd-momentum", torch.optim.SGD, {**SGD, "momentum": 0.8, "dampening": 0.3}),
    ("sgd-nesterov", torch.optim.SGD, {**SGD, "momentum": 0.8, "nesterov": True, "maximize": True}),
    ("asgd", torch.optim.ASGD, {"weight_decay": 0.1, "lambd": 0.1, "t0": 5}),
    ("asgd", torch.optim.ASGD, {"alpha": 0.5, "lambd": 0.2, "maximize": True}),
    ("adafactor", torch.optim.Adafactor, {"weight_decay": 0.1}),
    ("adafactor", torch.optim.Adafactor, {"beta2_decay": -0.5, "eps": (0.1, 0.2), "d": 1.2, "maximize": True}),
)


@pytest.mark.parametrize(("name", "cls", "options"), NATIVE)
def test_a_reference_computes_what_the_native_class_does_in_float64(
    name: str, cls: Callable[..., torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    held = REFERENCES[name]
    tensors = leaves(torch.float64)
    bound = 1e-7 if name in {"nadam", "asgd"} else 1e-9  # they keep a number a tensor in float32
    assert worst(held, cls(tensors, lr=0.01, **options), tensors, options) <= bound


MATRICES = ((5, 3), (3, 8), (16, 16))


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": False, "momentum": 0.8}, {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}]
)
def test_muon_rounds_as_the_native_class_does(options: dict[str, Any]) -> None:
    tensors = leaves(torch.float64, MATRICES)
    optimizer = torch.optim.Muon(tensors, lr=0.01, weight_decay=0.1, **options)
    assert (
        worst(REFERENCES["muon"], optimizer, tensors, {"weight_decay": 0.1, **options}) <= 0.02
    )  # a tie may round up or down


def test_muon_takes_adamw_where_there_is_no_matrix_inside_the_model() -> None:
    own = {"adamw_lr": 0.01, "adamw_betas": (0.8, 0.95), "adamw_eps": 0.01, "adamw_weight_decay": 0.1}
    tensors = leaves(torch.float64)
    optimizer = torch.optim.AdamW(tensors, lr=0.01, **ADAM)
    held = REFERENCES["muon"]
    assert worst(held, optimizer, tensors, {**own, "adamw_lr": None, "role": "head"}) <= 1e-9


def family(package: str, name: str) -> Callable[..., torch.optim.Optimizer]:
    found = pytest.importorskip(package)
    for part in name.split("."):
        found = getattr(found, part)
    return found


HEAVYBALL = {
    "compile_step": False,
    "storage_dtype": "float32",
    "gradient_clipping": None,
    "update_clipping": None,
}
VECTORS = ((7,), (5, 3), (3, 8))
LIBRARIES: tuple[tuple[str, str, str, dict[str, Any], dict[str, Any], float], ...] = (
    ("adamw-clamped", "heavyball", "AdamW", ADAM, HEAVYBALL, 1e-5),
    ("laprop", "heavyball", "LaProp", {**ADAM, "eps": 1e-8}, HEAVYBALL, 1e-5),
    ("adopt", "heavyball", "ADOPT", ADAM, HEAVYBALL, 1e-5),
    ("sgd-momentum", "heavyball", "SGD", {"momentum": 0.8}, {**HEAVYBALL, "beta": 0.8}, 1e-5),
    # Rounded at random to bfloat16, which the iteration stretches.
    ("muon-ema", "heavyball", "Muon", ADAM, HEAVYBALL, 0.15),
    ("muon-ema", "heavyball", "Muon", {**ADAM, "nesterov": False}, HEAVYBALL, 0.15),
    ("adamw-schedule-free", "schedulefree", "AdamWScheduleFree", {**ADAM, "warmup_steps": 5, "r": 0.5}, {}, 1e-4),
    ("adamw-schedule-free", "schedulefree", "AdamWScheduleFree", ADAM, {"foreach": False}, 1e-4),
    ("radam-schedule-free", "schedulefree", "RAdamScheduleFree", ADAM, {}, 1e-4),
    ("radam-schedule-free", "schedulefree", "RAdamScheduleFree", {"silent_sgd_phase": False}, {}, 1e-4),
    ("sgd-schedule-free", "schedulefree", "SGDScheduleFree", {"momentum": 0.8, "warmup_steps": 5}, {}, 1e-4),
    ("lion", "bitsandbytes.optim", "Lion32bit", {"betas": (0.8, 0.95), "weight_decay": 0.1}, {}, 1e-5),
    ("adamw", "bitsandbytes.optim", "AdamW32bit", ADAM, {}, 1e-5),
    ("sgd-momentum", "bitsandbytes.optim", "SGD32bit", {"momentum": 0.8, "weight_decay": 0.1}, {}, 1e-5),
    ("rmsprop", "bitsandbytes.optim", "RMSprop32bit", {"alpha": 0.9, "eps": 0.01, "weight_decay": 0.1}, {}, 1e-5),
    ("adagrad", "bitsandbytes.optim", "Adagrad32bit", {"eps": 0.01, "weight_decay": 0.1}, {}, 1e-5),
)


@pytest.mark.filterwarnings("ignore:Learning rate changed:UserWarning")  # heavyball's
@pytest.mark.parametrize(("name", "package", "cls", "options", "more", "bound"), LIBRARIES)
def test_a_reference_computes_what_a_library_documents(  # one column a parameter
    name: str, package: str, cls: str, options: dict[str, Any], more: dict[str, Any], bound: float
) -> None:
    made = family(package, cls)
    if package == "heavyball":
        vars(importlib.import_module("heavyball.utils"))["compile_mode"] = None
    tensors = leaves(torch.float32, VECTORS)
    known = {key: value for key, value in options.items() if "beta" not in more or key != "momentum"}
    optimizer = made(tensors, lr=0.01, **known, **more)
    if package == "schedulefree":
        optimizer.train()
    assert worst(REFERENCES[name], optimizer, tensors, options) <= bound


def test_ademamix_follows_both_schedules_of_the_librarys_own_reference() -> None:
    options = {"betas": (0.8, 0.95, 0.99), "eps": 1e-2, "weight_decay": 0.1, "t_alpha": 20, "t_beta3": 25}
    made = family("bitsandbytes.optim.ademamix", "_ReferenceAdEMAMix")
    tensors = leaves(torch.float32, [(5, 3)])  # of several, all but the first have alpha scaled again
    assert worst(REFERENCES["ademamix"], made(tensors, lr=0.01, **options), tensors, options) <= 1e-5


def test_lamb_computes_what_a_library_documents_without_decay_and_correction() -> None:
    made = family("pytorch_optimizer", "Lamb")
    options = {"betas": (0.8, 0.95), "eps": 1e-9, "weight_decay": 0.0}
    tensors = leaves(torch.float32, VECTORS)
    optimizer = made(tensors, lr=0.01, adam_debias=True, **options)
    assert worst(REFERENCES["lamb"], optimizer, tensors, {**options, "bias_correction": False}) <= 1e-5


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("adamw-schedule-free", "AdamWScheduleFree", {"warmup_steps": 4}),
        ("radam-schedule-free", "RAdamScheduleFree", {}),
        ("sgd-schedule-free", "SGDScheduleFree", {"warmup_steps": 4}),
    ],
)
def test_a_group_that_counts_its_steps_counts_those_without_a_gradient(
    name: str, cls: str, options: dict[str, Any]
) -> None:
    held = REFERENCES[name]
    assert held.update is not None
    p = leaves(torch.float64, [(5,)])[0]
    optimizer = family("schedulefree", cls)([p], lr=0.01, **options)
    optimizer.train()
    state: dict[str, Any] = {}
    idle: list[float] = []
    for step, (g,) in enumerate(gradients(6, [(5,)])):
        lr = optimizer.param_groups[0]["lr"] = rate(step, 0.01)
        p.grad, before = (None if step % 4 in {0, 3} else g.clone()), p.detach().clone()
        optimizer.step()
        if p.grad is None:
            idle.append(lr)
            continue
        h = hyperparameters(held, {**options, "idle": idle}, 0.01) | {"lr": lr}
        torch.testing.assert_close(held.update(before, g, state, h), p.detach(), rtol=0, atol=1e-13)
        idle = []


def quadratic(size: int) -> Callable[[Tensor], tuple[float, Tensor]]:
    source = torch.Generator().manual_seed(3)
    root = torch.randn(size, size, generator=source, dtype=torch.float64)
    curvature, pull = root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64), torch.ones(size).double()
    return lambda p: (float(p @ curvature @ p / 2 - pull @ p), curvature @ p - pull)


@pytest.mark.parametrize("options", [{}, {"max_iter": 3, "history_size": 2}, {"max_eval": 2}])
def test_lbfgs_moves_as_the_native_class_does_on_a_quadratic(options: dict[str, Any]) -> None:
    held, evaluate = REFERENCES["lbfgs"], quadratic(8)
    assert held.minimise is not None
    p = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([p], lr=0.5, **options)

    def closure() -> Tensor:
        loss, gradient = evaluate(p.detach())
        p.grad = gradient
        return torch.tensor(loss, dtype=torch.float64)

    state: dict[str, Any] = {}
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.5 if step < 3 else 0.3
        h = hyperparameters(held, options, optimizer.param_groups[0]["lr"])
        expected = held.minimise(p.detach().clone(), evaluate, state, h)
        optimizer.step(closure)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-12)


def test_lbfgs_refuses_a_line_search() -> None:
    held = REFERENCES["lbfgs"]
    assert held.minimise is not None
    h = hyperparameters(held, {"line_search_fn": "strong_wolfe"}, 1.0)
    with pytest.raises(UnsupportedError, match="line_search_fn"):
        held.minimise(torch.zeros(2).double(), quadratic(2), {}, h)


FULL: dict[str, dict[str, Any]] = {
    "adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 0.1},
    "rmsprop": {"momentum": 0.8, "centered": True},
    "sgd": {"momentum": 0.8, "dampening": 0.3},
    "sgd-momentum": {"dampening": 0.3},
    "nadam": {"betas": (0.7, 0.95)},
    "ademamix": {"betas": (0.8, 0.95, 0.99), "t_alpha": 20, "t_beta3": 25, "alpha": 5.0},
    "asgd": {"lambd": 0.1},
    "rprop": {"etas": (0.3, 1.7), "step_sizes": (0.005, 0.05)},
    "muon": {"adamw_eps": 0.1},
    "adamw-schedule-free": {"warmup_steps": 5},
    "sgd-schedule-free": {"warmup_steps": 5},
    "adafactor": {"eps": (0.01, 1e-3), "lr": 1.0},
    **{key: {"eps": 1.0} for key in ("adamw-clamped", "laprop", "adopt")},
}
"""Options under which every mistake shows."""

CAUSES = [(name, cause) for name, held in REFERENCES.items() if held.update for cause in held.mistakes]


def run(held: Reference, options: Mapping[str, Any], role: str, shape: tuple[int, ...]) -> list[Tensor]:
    assert held.update is not None
    peak = options.get("lr", 0.01)
    h = hyperparameters(held, options, peak) | {"role": role, "maximize": options.get("maximize", True)}
    p = leaves(torch.float64, [shape])[0].detach() * (1000 if held.algorithm == "lamb" else 1)
    state: dict[str, Any] = {}
    path = []
    for step, (g,) in enumerate(gradients(4, [shape])):
        if role == "sparse":
            g[torch.arange(len(g)) % 3 == step % 3] = 0
        scale = 1 + 20 * (step % 7 == 3)
        p = held.update(p, scale * g, state, {**h, "lr": rate(step, peak)})
        path.append(p)
    return path


@pytest.mark.parametrize(("name", "cause"), CAUSES)
def test_a_mistake_changes_what_the_reference_computes(name: str, cause: str) -> None:
    held = REFERENCES[name]
    known = ALGORITHMS[name].options
    base = {key: value for key, value in {**ADAM, "amsgrad": True}.items() if key in known} | FULL.get(name, {})
    for decoupled in (False, True):
        options = base | ({"decoupled_weight_decay": decoupled} if "decoupled_weight_decay" in known else {})
        shape = (60, 40) if name == "lion" else (6, 4)  # few signs depend on the rounding of a moment
        for role in ("matrix", "head", "sparse"):
            right, wrong = (run(held, options | dict(s), role, shape) for s in ({}, held.mistakes[cause]))
            largest = max(float((a - b).abs().max()) for a, b in zip(right, wrong, strict=True))
            if largest > 1e-6:
                return
    pytest.fail("it changes nothing")


@pytest.mark.parametrize("cause", REFERENCES["lbfgs"].mistakes)
def test_a_mistake_changes_where_lbfgs_goes(cause: str) -> None:
    held, evaluate = REFERENCES["lbfgs"], quadratic(8)
    ends = []
    for switches in ({}, held.mistakes[cause]):
        p, state = torch.zeros(8, dtype=torch.float64), dict[str, Any]()
        assert held.minimise is not None
        ends.append(held.minimise(p, evaluate, state, hyperparameters(held, {"max_iter": 4, **switches}, 0.5)))
    assert float((ends[0] - ends[1]).abs().max()) > 1e-6


def test_no_reference_changes_its_arguments() -> None:
    for name, held in REFERENCES.items():
        if held.update is not None:
            p, g = (each.clone() for each in gradients(5, [(6, 4)])[0] * 2)
            kept = p.clone(), g.clone()
            for _ in range(2):
                held.update(p, g, {}, hyperparameters(held, {}, 0.01))
            assert torch.equal(p, kept[0]), name
            assert torch.equal(g, kept[1]), name


def test_sparse_adam_leaves_rows_without_a_gradient_alone() -> None:
    held = REFERENCES["sparseadam"]
    assert held.update is not None
    p = leaves(torch.float64, [(6, 3)])[0]
    optimizer = torch.optim.SparseAdam([p], lr=0.01, betas=(0.8, 0.95), eps=0.01)
    options = hyperparameters(held, {"betas": (0.8, 0.95), "eps": 0.01, "role": "sparse"}, 0.01)
    state: dict[str, Any] = {}
    for step, (g,) in enumerate(gradients(2, [(6, 3)])):
        g[torch.arange(6) % 3 == step % 3] = 0
        before = p.detach().clone()
        p.grad = g.to_sparse(1)
        optimizer.step()
        torch.testing.assert_close(p.detach(), held.update(before, g, state, options), rtol=0, atol=1e-13)


def test_every_algorithm_has_a_reference_or_a_reason_why_not() -> None:
    assert set(REFERENCES) | set(WITHOUT) == set(ALGORITHMS)
    assert not set(REFERENCES) & set(WITHOUT)
    assert reference("adamw") is REFERENCES["adamw"]
    assert reference("no-such") is None
