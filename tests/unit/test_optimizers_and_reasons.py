"""The table of algorithms, how optimizers are constructed and described, and the reasons for refusals."""

import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InvalidInputError, OptbenchError, UnsupportedError
from harness.interfaces import ParamGroup, WorkloadTraits
from harness.machine import Accelerator, Constructor, Machine
from harness.optimizers.algorithms import ALGORITHMS
from harness.optimizers.composite import Composite
from harness.optimizers.construct import construct, facts, json_safe, torch_groups
from harness.optimizers.custom import Custom
from harness.optimizers.torch_native import CLASSES, FLAGS
from harness.rates import set_lr
from harness.registry import OPTIMIZERS
from harness.spec import RunSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAITS = WorkloadTraits(summary="", source="", sizes={}, default_size="")


def spec_of(name, **fields):
    return RunSpec(workload="tensors", optimizer=name, **fields)


def machine(**fields):
    known = {
        "hostname": "",
        "system": "",
        "cpu": "",
        "cores": 1,
        "memory_bytes": 1,
        "python": "3",
        "torch": "2.9.0",
        "compilers": {"c++": "14", "ninja": "1", "nvcc": None},
        "packages": {"deepspeed": "0.19.8"},
    }
    return Machine(**{**known, **fields})


def groups(*, scale=1.0):
    matrix, bias = torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(4))
    return [
        ParamGroup(("weight",), (matrix,), "matrix"),
        ParamGroup(("bias",), (bias,), "vector", decay=False, lr_scale=scale),
    ]


def step(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


# The table


@pytest.mark.parametrize("algorithm", CLASSES)
def test_defaults_are_those_of_the_native_class(algorithm):
    parameters = inspect.signature(getattr(torch.optim, CLASSES[algorithm])).parameters
    named = {"sgd-momentum": {"momentum"}, "sgd-nesterov": {"momentum", "nesterov"}}.get(algorithm, set())
    entry = ALGORITHMS[algorithm]
    assert entry.lr == parameters["lr"].default
    for option, value in entry.options.items():
        if not option.startswith("adamw_") and option not in named:
            expected = parameters[option].default
            assert value == (list(expected) if isinstance(expected, tuple) else expected), option


@pytest.mark.parametrize("algorithm", CLASSES)
def test_every_keyword_of_the_native_class_is_an_option_or_a_flag(algorithm):
    name = CLASSES[algorithm]
    keywords = set(inspect.signature(getattr(torch.optim, name)).parameters) - {"params", "lr"}
    assert keywords == {o for o in ALGORITHMS[algorithm].options if not o.startswith("adamw_")} | set(FLAGS[name])


def test_every_class_of_torch_is_there_in_each_way_that_torch_has():
    classes = {
        name
        for name, found in vars(torch.optim).items()
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and name != "Optimizer"
    }
    assert set(CLASSES.values()) == classes
    for algorithm, name in CLASSES.items():
        ways = {n.partition("/")[2] for n in OPTIMIZERS.names() if n.startswith(f"{algorithm}/")}
        has = {
            flag
            for flag in ("foreach", "fused")
            if flag in inspect.signature(getattr(torch.optim, name)).parameters
        }
        assert {"forloop", "compiled"} | has <= ways, name


def test_names_and_traits_are_read_without_torch():
    code = """if True:
        import sys
        from harness.registry import OPTIMIZERS
        print([OPTIMIZERS.get(name).traits.granularity for name in OPTIMIZERS.names()][:1])
        print("torch" in sys.modules, "deepspeed" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['element']", "False False"]


# Groups, arguments, rates


def test_groups_that_are_treated_alike_become_one():
    tensors = [torch.ones(1) for _ in range(4)]
    listed = [
        ParamGroup(("a",), (tensors[0],), "matrix"),
        ParamGroup(("b",), (tensors[1],), "vector", decay=False),
        ParamGroup(("c",), (tensors[2],), "head"),
        ParamGroup(("d",), (tensors[3],), "sparse"),
    ]
    first, second = torch_groups(listed, 0.1, 0.01)
    assert (first["lr"], first["weight_decay"], second["weight_decay"]) == (0.1, 0.01, 0.0)
    assert [id(t) for t in first["params"]] == [id(tensors[0]), id(tensors[2])]
    assert [id(t) for t in second["params"]] == [id(tensors[1]), id(tensors[3])]
    assert len(torch_groups(listed, 0.1, 0.0)) == 1
    assert "weight_decay" not in torch_groups(listed, 0.1, None)[0]


def test_set_lr_multiplies_each_groups_own_peak():
    optimizer = OPTIMIZERS.get("adamw/forloop").build(groups(scale=0.1), spec_of("adamw/forloop", lr=0.5))
    for factor in (0.2, 1.0, 0.0):
        set_lr(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.5 * factor, 0.5 * 0.1 * factor]


def test_set_lr_fills_a_tensor_in_place():
    rate = torch.tensor(0.25)
    optimizer = construct(torch.optim.SGD, [torch.nn.Parameter(torch.ones(2))], lr=rate)
    set_lr(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.125


def test_set_lr_survives_a_state_dict():
    spec = spec_of("adamw/forloop", lr=0.5)
    optimizer, other = (OPTIMIZERS.get("adamw/forloop").build(groups(), spec) for _ in range(2))
    set_lr(optimizer, 0.1)
    other.load_state_dict(optimizer.state_dict())
    set_lr(other, 1.0)
    assert other.param_groups[0]["lr"] == 0.5


def test_facts_tell_what_reached_the_constructor_and_what_stands_in_the_groups():
    optimizer = OPTIMIZERS.get("adamw/fused").build(
        groups(), spec_of("adamw/fused", optimizer_options={"betas": [0.8, 0.9], "weight_decay": 0.2})
    )
    found = facts(optimizer)
    assert found["class"] == "torch.optim.adamw.AdamW"
    flags = {key: found["arguments"][key] for key in ("foreach", "fused", "capturable", "differentiable")}
    assert flags == {"foreach": False, "fused": True, "capturable": False, "differentiable": False}
    assert found["arguments"]["betas"] == [0.8, 0.9]
    decays = [(group["elements"], group["weight_decay"], group["fused"]) for group in found["groups"]]
    assert decays == [(12, 0.2, True), (4, 0.0, True)]


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS.names() if n.partition("/")[2] in {"foreach", "fused"}])
def test_flags_are_explicit_in_every_group(name):
    optimizer = OPTIMIZERS.get(name).build(groups(), spec_of(name))
    word = name.partition("/")[2]
    for group in optimizer.param_groups:
        flags = {flag: group[flag] for flag in ("foreach", "fused") if flag in group}
        assert flags == {flag: flag == word for flag in flags}
        assert word in flags


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_anything_can_be_described_in_json(value):
    json.dumps(json_safe(value), allow_nan=False)


def test_tensors_and_classes_are_described_in_json():
    described = json_safe([torch.tensor(0.5), torch.zeros(2, 3), torch.float32, torch.optim.SGD, float("inf")])
    assert described[0] == {"tensor": 0.5, "dtype": "torch.float32", "device": "cpu"}
    assert described[1]["tensor"] == "(2, 3)"
    assert described[2:] == ["torch.float32", "torch.optim.sgd.SGD", "inf"]


# Composites


def test_a_composite_reaches_its_parts_through_groups_state_and_loading():
    optimizer = OPTIMIZERS.get("muon/forloop").build(groups(), spec_of("muon/forloop", lr=0.1))
    assert isinstance(optimizer, Composite)
    assert [type(part).__name__ for part in optimizer.parts] == ["Muon", "AdamW"]
    step(optimizer)
    matrix, bias = (group["params"][0] for group in optimizer.param_groups)
    assert set(optimizer.state[matrix]) == {"momentum_buffer"}
    assert set(optimizer.state[bias]) == {"step", "exp_avg", "exp_avg_sq"}
    other = OPTIMIZERS.get("muon/forloop").build(groups(), spec_of("muon/forloop", lr=0.1))
    other.load_state_dict(optimizer.state_dict())
    other.param_groups[1]["lr"] = 0.0
    assert other.parts[1].param_groups[0]["lr"] == 0.0
    assert other.parts[0].state is other.state
    before = other.param_groups[1]["params"][0].detach().clone()
    step(other)
    assert torch.equal(other.param_groups[1]["params"][0], before)
    optimizer.zero_grad()
    assert matrix.grad is None
    assert bias.grad is None


def test_a_composite_evaluates_a_closure_once_and_with_gradients():
    optimizer = OPTIMIZERS.get("muon/forloop").build(groups(), spec_of("muon/forloop"))
    seen = []

    def closure():
        loss = sum((p**2).sum() for group in optimizer.param_groups for p in group["params"])
        loss.backward()
        seen.append(loss)
        return loss

    assert optimizer.step(closure) is seen[0]
    assert len(seen) == 1


def test_muon_without_a_matrix_says_what_to_use():
    with pytest.raises(UnsupportedError, match="use adamw"):
        OPTIMIZERS.get("muon/forloop").build(groups()[1:], spec_of("muon/forloop"))


def test_lbfgs_takes_one_rate_only():
    with pytest.raises(UnsupportedError, match="one learning rate"):
        OPTIMIZERS.get("lbfgs/forloop").build(groups(scale=0.5), spec_of("lbfgs/forloop"))


# Reasons


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("adamw/compiled", {"compilers": {"c++": None}}, "apt-get install g++"),
        ("adamw/deepspeed", {"packages": {"deepspeed": None}}, "pip install -e '.[deepspeed]'"),
        ("adamw/deepspeed", {"compilers": {"c++": None, "ninja": "1"}}, "apt-get install g++"),
        ("adamw/deepspeed-cpu", {"compilers": {"c++": "1", "ninja": None}}, "pip install ninja"),
        ("lion/deepspeed", {}, "use lion/deepspeed-cpu"),
        ("lamb/deepspeed", {}, "works on cuda only"),
        ("adamw/apex", {}, "Apex is not installed"),
        ("adamw/forloop", {"torch": None}, "pip install torch"),
        ("muon/forloop", {"constructors": {"torch.optim:Muon": Constructor(error="no Muon")}}, "no Muon"),
        ("sparseadam/forloop", {}, "use adam"),
        ("lbfgs/compiled", {}, "use lbfgs/forloop"),
        ("adamw/deepspeed", {"families": {"deepspeed": {"error": "no wheel"}}}, "no wheel"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(name, fields, words):
    reason = OPTIMIZERS.get(name).unsupported(spec_of(name), TRAITS, machine(**fields))
    assert words in reason


def test_a_built_kernel_needs_no_compiler():
    found = {"deepspeed": {"device": "cpu", "built": ["cpu_adam"], "kernels": {"cpu_adam": True}}}
    bare = machine(compilers={}, families=found)
    name = "adamw/deepspeed-cpu"
    assert OPTIMIZERS.get(name).unsupported(spec_of(name), TRAITS, bare) is None


def test_kernels_for_host_memory_are_refused_on_an_accelerator():
    cuda = machine(accelerators=(Accelerator(index=0, type="cuda", name="x"),))
    name = "adamw/deepspeed-cpu"
    assert "adamw/deepspeed" in OPTIMIZERS.get(name).unsupported(spec_of(name), TRAITS, cuda)
    assert OPTIMIZERS.get(name).unsupported(spec_of(name, device="cpu"), TRAITS, cuda) is None
    needs = OPTIMIZERS.get("lion/deepspeed").unsupported(spec_of("lion/deepspeed"), TRAITS, cuda)
    assert "nvcc" in needs


def test_a_fused_kernel_that_the_device_lacks_is_unsupported():
    cuda = machine(
        accelerators=(Accelerator(index=0, type="cuda", name="x"),),
        families={"native": {"fused": {"Adagrad": ["cpu"], "AdamW": ["cpu", "cuda"]}}},
        constructors={
            "torch.optim:Adagrad": Constructor(parameters={"fused": None, "foreach": None}),
            "torch.optim:AdamW": Constructor(parameters={"fused": None, "foreach": None}),
        },
    )
    reason = OPTIMIZERS.get("adagrad/fused").unsupported(spec_of("x"), TRAITS, cuda)
    assert "no fused Adagrad kernel for cuda" in reason
    assert OPTIMIZERS.get("adamw/fused").unsupported(spec_of("x"), TRAITS, cuda) is None


def test_lamb_by_deepspeed_needs_the_correction_off():
    cuda = machine(
        accelerators=(Accelerator(index=0, type="cuda", name="x"),),
        compilers={"c++": "1", "ninja": "1", "nvcc": "12"},
    )
    lamb = OPTIMIZERS.get("lamb/deepspeed")
    assert "bias_correction=false" in lamb.unsupported(spec_of("x"), TRAITS, cuda)
    assert lamb.unsupported(spec_of("x", optimizer_options={"bias_correction": False}), TRAITS, cuda) is None


def test_an_option_that_only_this_torch_has_can_be_named():
    newer = machine(
        constructors={"torch.optim:AdamW": Constructor(parameters={"betas": 0, "cautious": False, "fused": None})}
    )
    options = OPTIMIZERS.get("adamw/forloop").options(newer)
    assert options["cautious"] is False
    assert not {"fused", "lr", "params"} & set(options)


# The user's own


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of the user's."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_the_example_trains_and_lowers_a_loss(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    entry = OPTIMIZERS.get("my_optimizer:SignMomentum")
    assert entry.traits.granularity == "undeclared"
    assert not entry.traits.closure
    options = {"momentum": 0.5, "weight_decay": 0.1}
    listed = groups(scale=0.5)
    optimizer = entry.build(listed, spec_of(entry.name, lr=0.1, optimizer_options=options))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]
    assert facts(optimizer)["arguments"] == {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}
    tensors = [parameter for group in listed for parameter in group.parameters]
    losses = []
    for _ in range(20):
        loss = sum((tensor**2).sum() for tensor in tensors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_without_lr_the_classs_own_default_holds(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    optimizer = OPTIMIZERS.get("my_optimizer:SignMomentum").build(groups(scale=0.5), spec_of("x"))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 5e-5]


def test_a_constructor_that_raises_is_named_with_its_arguments(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    entry = OPTIMIZERS.get("my_optimizer:SignMomentum")
    spec = spec_of(entry.name, lr=0.1, optimizer_options={"momentum": 2.0})
    with pytest.raises(OptbenchError) as caught:
        entry.build(groups(), spec)
    message = str(caught.value)
    assert "my_optimizer:SignMomentum(groups, momentum=2.0, lr=0.1) raised ValueError: momentum is 2.0" in message
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_required_closure_is_seen_live_and_in_the_source(module):
    name = module(
        "needs_closure",
        "import torch\nclass Needs(torch.optim.Optimizer):\n"
        "    def step(self, closure):\n        return closure()\n",
    )
    assert Custom(f"{name}:Needs").traits.closure
    code = f"""if True:
        import sys
        sys.path[:0] = {sys.path!r}
        from harness.optimizers.custom import Custom
        print(Custom("{name}:Needs").traits.closure, "torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_declared_traits_are_taken(module):
    name = module(
        "declares",
        "import torch\nfrom harness.interfaces import OptimizerTraits\n"
        "class Declares(torch.optim.Optimizer):\n"
        "    traits = OptimizerTraits(algorithm='mine', granularity='element', state_tensors=1)\n",
    )
    traits = Custom(f"{name}:Declares").traits
    assert (traits.algorithm, traits.granularity, traits.state_tensors) == ("mine", "element", 1)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_module_at_all:X", "No module named"),
        ("torch.optim:NoSuchClass", "NoSuchClass"),
        ("torch.nn:Linear", "is no torch.optim.Optimizer subclass"),
        ("torch.optim:__doc__", "is no torch.optim.Optimizer subclass"),
    ],
)
def test_what_cannot_be_used_is_named(target, words):
    with pytest.raises(InvalidInputError, match=words):
        Custom(target).build(groups(), spec_of(target))


def test_a_module_that_raises_on_import_is_named(module):
    name = module("broken_on_import", "raise RuntimeError('half written')\n")
    with pytest.raises(InvalidInputError, match="RuntimeError: half written"):
        Custom(f"{name}:X").build(groups(), spec_of(f"{name}:X"))


def test_options_come_from_the_probed_signature():
    probed = machine(
        constructors={
            "a:B": Constructor(parameters={"lr": 0.1, "beta": 0.9}, required=("rank",)),
            "a:Open": Constructor(open_ended=True),
            "a:Bad": Constructor(error="ImportError: no a"),
        }
    )
    assert Custom("a:B").options(probed) == {"beta": 0.9, "rank": None, "groups": None}
    assert Custom("a:Open").options(probed) is None
    assert "--set optimizer.rank=" in Custom("a:B").unsupported(spec_of("a:B"), TRAITS, probed)
    ready = spec_of("a:B", optimizer_options={"rank": 3})
    assert Custom("a:B").unsupported(ready, TRAITS, probed) is None
    assert "ImportError: no a" in Custom("a:Bad").unsupported(spec_of("a:Bad"), TRAITS, probed)


def test_a_class_without_a_rate_or_with_other_words_works(module):
    name = module(
        "odd",
        "import torch\nclass Odd(torch.optim.Optimizer):\n"
        "    def __init__(self, params, *, shrink=0.5, **rest):\n"
        "        super().__init__(params, {'shrink': shrink, **rest})\n"
        "    @torch.no_grad()\n"
        "    def step(self, closure=None):\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                p.mul_(group['shrink'])\n",
    )
    optimizer = Custom(f"{name}:Odd").build(groups(), spec_of("x"))
    set_lr(optimizer, 0.5)
    step(optimizer)
    assert "lr" not in optimizer.param_groups[0]
    assert optimizer.param_groups[0]["params"][0][0, 0].item() == 0.5
    with_rate = Custom(f"{name}:Odd").build(groups(), spec_of("x", lr=0.25))
    assert with_rate.param_groups[0]["lr"] == 0.25
