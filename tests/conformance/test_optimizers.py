"""What every registered optimizer promises, tried on the CPU with real steps; a new entry needs no new test."""

import copy
import dataclasses
import importlib
import json
import math
import shutil

import pytest
import torch

from harness import kernels, system
from harness.inspection import constructors
from harness.interfaces import ParamGroup, WorkloadTraits
from harness.machine import Constructor, Machine
from harness.optimizers.construct import facts
from harness.rates import set_lr
from harness.registry import OPTIMIZERS
from harness.schedule import factor
from harness.seeding import seed_generators
from harness.spec import RunSpec

pytestmark = [
    pytest.mark.timeout(1800),  # the first run on a machine compiles DeepSpeed's kernels
    # torch's own, on importing its compiler and on making sparse tensors.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
    # Third-party packages' own.
    pytest.mark.filterwarnings("ignore:Learning rate changed between steps:UserWarning:heavyball"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:pytorch_optimizer"),
]

STEPS = 8

TOLERANCE = {
    "fused": 2e-6,
    "deepspeed": 5e-6,
    "deepspeed-cpu": 5e-6,
}
"""Largest difference from the for-loop after a few steps, relative to the largest parameter; 1e-6 otherwise."""

MUON_TOLERANCE = 5e-3  # Newton-Schulz runs in bfloat16, and a rounding differs once operations are fused

DENSE = WorkloadTraits(summary="", source="", sizes={}, default_size="")
SPARSE = DENSE.model_copy(update={"sparse_parameters": ("table",)})


COMPILES_ITSELF = "/torchao-"
"""Implementations that compile a step for each shape: tried below, once."""

MANY = "pytorch_optimizer:"
"""Names whose algorithm and options are the package's own."""


STILL = {
    "pytorch_optimizer:dadaptsgd",  # begins with 1e-6 of a step, below a bias's rounding
    "pytorch_optimizer:sara",  # moves elements below a threshold only
}


def spec_of(name, **fields):
    return RunSpec(workload="tensors", optimizer=name, device="cpu", **fields)


def compiles(name):
    return name.endswith("/compiled") or COMPILES_ITSELF in name


@pytest.fixture(scope="session")
def here():
    """The machine that runs the tests, with DeepSpeed's kernels compiled."""
    wanted = sorted({kernel for name in OPTIMIZERS.names() for kernel in OPTIMIZERS.get(name).traits.kernels})
    kernels.ensure(wanted, print, "cpu")
    families = {}
    for family, module in OPTIMIZERS.families().items():
        probe = getattr(importlib.import_module(module), "probe", None)
        families[family] = probe() if probe else {}
    return Machine(
        hostname="here",
        system="",
        cpu="",
        cores=1,
        memory_bytes=2**34,
        python="3",
        torch=torch.__version__,
        compilers={"c++": shutil.which("c++"), "ninja": shutil.which("ninja"), "nvcc": None},
        packages=system.packages(),
        constructors=constructors(
            [OPTIMIZERS.get(n).target for n in OPTIMIZERS.names() if n.startswith(MANY)], {}
        ),
        families=families,
    )


def supported(name, machine, traits=DENSE, **fields):
    return OPTIMIZERS.get(name).unsupported(spec_of(name, **fields), traits, machine) is None


class Problem:
    """A few parameters of each role, and gradients that are the same for every implementation."""

    SHAPES = (
        ("weight", (16, 8), "matrix"),
        ("out", (5, 16), "matrix"),
        ("bias", (16,), "vector"),
        ("words", (6, 5), "embedding"),
    )

    def __init__(self, sparse=None):
        seeded = torch.Generator().manual_seed(3)
        self.parameters = {
            name: torch.nn.Parameter(torch.randn(shape, generator=seeded)) for name, shape, _ in self.SHAPES
        }
        roles = {name: role for name, _, role in self.SHAPES}
        self.sparse = sparse
        if sparse is not None:
            self.parameters["table"] = torch.nn.Parameter(torch.randn((7, 4), generator=seeded))
            roles["table"] = "sparse"
        self.groups = [
            ParamGroup((name,), (tensor,), roles[name], decay=roles[name] != "vector")
            for name, tensor in self.parameters.items()
        ]

    def set_gradients(self, step):
        seeded = torch.Generator().manual_seed(100 + step)
        for name, tensor in self.parameters.items():
            gradient = torch.randn(tensor.shape, generator=seeded) / (step + 1)
            if name == "table":
                gradient[step % 3 :: 3] = 0
                gradient = gradient.to_sparse(1) if self.sparse == "sparse" else gradient
            tensor.grad = gradient

    def loss(self):
        for tensor in self.parameters.values():
            tensor.grad = None
        total = sum(((tensor - 0.5) ** 2).sum() for tensor in self.parameters.values())
        total.backward()
        return total

    def step(self, optimizer, entry, step):
        if entry.traits.closure:
            optimizer.step(self.loss)
        else:
            self.set_gradients(step)
            optimizer.step()

    def values(self):
        return torch.cat([tensor.detach().flatten() for tensor in self.parameters.values()])


def train(name, steps=STEPS, sparse=None, after=None, **fields):
    torch._dynamo.reset()  # or the compiler gives up after eight optimizers of one class
    entry, problem = OPTIMIZERS.get(name), Problem(sparse)
    optimizer = entry.build(problem.groups, spec_of(name, **fields))
    for step in range(steps):
        set_lr(optimizer, factor("warmup-cosine", step, steps))
        problem.step(optimizer, entry, step)
        if after is not None:
            after()
    return problem, optimizer


def difference(one, other):
    return ((one.values() - other.values()).abs().max() / other.values().abs().max()).item()


def reference_lion(problem, lr, betas, weight_decay):
    """Algorithm 2 of arXiv:2302.06675, for the parameters that decay; the others likewise with decay 0."""
    momentum = {name: torch.zeros_like(tensor) for name, tensor in problem.parameters.items()}
    for step in range(STEPS):
        problem.set_gradients(step)
        rate = lr * factor("warmup-cosine", step, STEPS)
        for name, tensor in problem.parameters.items():
            decay = 0.0 if name == "bias" else weight_decay
            update = torch.sign(betas[0] * momentum[name] + (1 - betas[0]) * tensor.grad)
            tensor.data.mul_(1 - rate * decay).sub_(rate * update)
            momentum[name].mul_(betas[1]).add_(tensor.grad, alpha=1 - betas[1])


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_it_runs_here_or_says_why_not_and_what_to_do(name, here):
    entry = OPTIMIZERS.get(name)
    traits = SPARSE if entry.traits.sparse_gradients == "only" else DENSE
    reason = entry.unsupported(spec_of(name), traits, here)
    if reason is not None:
        assert any(word in reason for word in ("use ", "run ", "build it", "--device", "add --set"))
        return
    if compiles(name):
        return  # stepped below, since the first step takes long
    # Some gather statistics for ten steps first, or leave out tensors by chance.
    patient = name.startswith(MANY) or entry.traits.evaluation_switch
    problem, optimizer = train(name, steps=24 if patient else 3, sparse="sparse" if traits is SPARSE else None)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert torch.isfinite(problem.values()).all()
    start = Problem(problem.sparse)
    moved = [not torch.equal(t, start.parameters[n]) for n, t in problem.parameters.items()]
    assert all(moved) or name in STILL


def implementations(algorithm):
    return [name for name in OPTIMIZERS.names() if OPTIMIZERS.get(name).traits.algorithm == algorithm]


ALGORITHMS = sorted({OPTIMIZERS.get(name).traits.algorithm for name in OPTIMIZERS.names()})


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if len(implementations(a)) > 1])
def test_implementations_of_one_algorithm_agree(algorithm, here):
    known = OPTIMIZERS.get(implementations(algorithm)[0]).algorithm.options
    options = {"weight_decay": 0.05} if "weight_decay" in known else {}
    names = [n for n in implementations(algorithm) if supported(n, here, optimizer_options=options)]
    names = [name for name in names if not compiles(name)]
    if len(names) < 2 or algorithm == "lion":
        return
    reference, _ = train(names[0], lr=0.01, optimizer_options=options)
    assert names[0].endswith("forloop")
    for name in names[1:]:
        other, _ = train(name, lr=0.01, optimizer_options=options)
        allowed = MUON_TOLERANCE if algorithm == "muon" else TOLERANCE.get(name.partition("/")[2], 1e-6)
        assert difference(other, reference) <= allowed, name


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.7)])
@pytest.mark.parametrize("name", ["lion/deepspeed-cpu", "lion/bitsandbytes"])
def test_lion_is_the_published_algorithm(name, betas, here):
    if not supported(name, here):
        pytest.skip(f"{name} is not installed")
    options = {"betas": list(betas), "weight_decay": 0.1}
    found, _ = train(name, lr=0.01, optimizer_options=options)
    expected = Problem()
    reference_lion(expected, 0.01, betas, 0.1)
    assert difference(found, expected) <= 1e-6


CHANGED = {
    "line_search_fn": "strong_wolfe",
    "adjust_lr_fn": "match_rms_adamw",
    "max_eval": 7,
    "t_alpha": 7,
    "t_beta3": 7,
    "adamw_lr": 0.5,
    "d": 1.5,
    "ns_coefficients": [3.0, -4.0, 2.0],
}
"""Values for the options whose default does not tell which other values are allowed."""


def another(option, default):
    if option in CHANGED:
        return CHANGED[option]
    if isinstance(default, bool):
        return not default
    if isinstance(default, list):
        return [0.25, *default[1:]] if default[0] is not None else [0.25, default[1]]
    return default + 2 if isinstance(default, int) else default * 0.5 + 0.125


def changed_options():
    names = [name for name in OPTIMIZERS.names() if not name.endswith("/compiled") and not name.startswith(MANY)]
    entries = [OPTIMIZERS.get(name) for name in names]
    return [
        (entry.name, option, another(option, default))
        for entry in entries
        for option, default in entry.algorithm.options.items()
        if option not in entry.fixed
    ]


@pytest.mark.parametrize(("name", "option", "value"), changed_options())
def test_every_option_reaches_the_constructor(name, option, value, here):
    entry = OPTIMIZERS.get(name)
    only_sparse = entry.traits.sparse_gradients == "only"
    momentum = {"momentum": 0.9} if option == "nesterov" and "momentum" in entry.algorithm.options else {}
    options = {option: value, **momentum}
    if option == "dampening" and name.startswith("sgd-nesterov"):
        options["nesterov"] = False  # torch refuses the two together
    if not supported(name, here, SPARSE if only_sparse else DENSE, optimizer_options=options):
        return
    problem = Problem("sparse" if only_sparse else None)
    plain, changed = (
        facts(entry.build(problem.groups, spec_of(name, optimizer_options=chosen))) for chosen in ({}, options)
    )
    assert changed != plain
    assert json.dumps(value) in json.dumps(changed, allow_nan=False)


def resumable():
    slow = {name for name in OPTIMIZERS.names() if compiles(name)} - {"adamw/compiled"}
    return [name for name in OPTIMIZERS.names() if name not in slow]


@pytest.mark.parametrize("name", resumable())
def test_state_saved_and_loaded_goes_on_as_if_nothing_had_happened(name, here):
    entry = OPTIMIZERS.get(name)
    sparse = "sparse" if entry.traits.sparse_gradients == "only" else None
    if not supported(name, here, SPARSE if sparse else DENSE):
        return
    torch._dynamo.reset()
    problem, resumed = Problem(sparse), Problem(sparse)
    optimizer = entry.build(problem.groups, spec_of(name))
    for step in range(3):
        problem.step(optimizer, entry, step)
    other = entry.build(resumed.groups, spec_of(name))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for tensor, saved in zip(resumed.parameters.values(), problem.parameters.values(), strict=True):
        tensor.data.copy_(saved.data)
    for step in range(3, 6):
        for each, made in ((problem, optimizer), (resumed, other)):
            seed_generators(step)  # some draw numbers
            set_lr(made, 0.5)
            each.step(made, entry, step)
    assert torch.equal(problem.values(), resumed.values())


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if f"{a}/compiled" in OPTIMIZERS.names()])
def test_a_compiled_step_agrees_and_a_schedule_does_not_compile_it_again(algorithm, here):
    name = f"{algorithm}/compiled"
    if not supported(name, here):
        return
    counters = torch._dynamo.utils.counters
    counters.clear()
    graphs = []
    compiled, optimizer = train(name, after=lambda: graphs.append(counters["stats"]["unique_graphs"]))
    reference, _ = train(f"{algorithm}/forloop")
    assert difference(compiled, reference) <= (MUON_TOLERANCE if algorithm == "muon" else 5e-6)
    disproof = OPTIMIZERS.get(name).disproved(optimizer)
    if disproof is not None:
        assert "nothing was compiled" in disproof
        assert algorithm == "adafactor"
        return
    # The second step of some differs from the first: their momentum is there.
    assert 1 <= graphs[1] == graphs[-1] <= 2 * len(getattr(optimizer, "parts", "1"))


@pytest.mark.parametrize("name", ["sgd/forloop", "sgd/foreach", "sgd-momentum/forloop", "adagrad/forloop"])
def test_sparse_gradients_train_as_dense_ones_do(name, here):
    options = {"weight_decay": 0.1}
    assert supported(name, here, SPARSE, optimizer_options=options)
    sparse, _ = train(name, sparse="sparse", lr=0.1, optimizer_options=options)
    dense, _ = train(name, sparse="dense", lr=0.1, optimizer_options=options)
    assert difference(sparse, dense) < 1e-6


@pytest.mark.parametrize(
    "name", ["adamw/fused", "adagrad/foreach", "sgd/fused", "adamw/compiled", "lbfgs/forloop"]
)
def test_sparse_gradients_are_refused_with_the_way_out(name, here):
    reason = OPTIMIZERS.get(name).unsupported(spec_of(name), SPARSE, here)
    assert "workload.sparse=false" in reason
    assert supported(name, here, SPARSE, workload_options={"sparse": False})


def test_a_scaled_group_keeps_its_scale(here):
    for name in ("adamw/fused", "sgd/forloop", "muon/forloop", "adamw/compiled", "adamw/deepspeed"):
        problem = Problem()
        groups = [dataclasses.replace(problem.groups[0], lr_scale=0.25), *problem.groups[1:]]
        optimizer = OPTIMIZERS.get(name).build(groups, spec_of(name, lr=0.4))
        set_lr(optimizer, 0.5)
        rates = {math.floor(float(group["lr"]) * 1000 + 0.5) / 1000 for group in optimizer.param_groups}
        assert rates == {0.05, 0.2}, name


def test_a_flag_that_this_torch_lacks_is_unsupported(here):
    older = here.model_copy(
        update={"constructors": {"torch.optim:Adagrad": Constructor(parameters={"lr": 0.01, "foreach": None})}}
    )
    assert "has no fused Adagrad" in OPTIMIZERS.get("adagrad/fused").unsupported(spec_of("x"), DENSE, older)
    assert OPTIMIZERS.get("adagrad/foreach").unsupported(spec_of("x"), DENSE, older) is None
