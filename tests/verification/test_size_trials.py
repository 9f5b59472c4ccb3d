"""Trials about size, count and layout: planted faults are caught and named, and what is right passes."""

from __future__ import annotations

import math
import time

import pytest
import torch
from faulty_optimizers import Written
from faulty_sizes import FAULTS, SOUND
from test_plain_trials import Planted, spec_of, wrong

from harness.interfaces import OptimizerTraits
from harness.optimizers.torch_native import OPTIMIZERS as NATIVE
from harness.references.table import reference
from harness.spec import RunSpec
from harness.verification import huge, layouts, size_trials, sizes, unreferenced_sizes
from harness.verification.plain import held, trials


def on_a_gpu(test):
    """Mark a test that needs a CUDA device."""
    lacking = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(lacking(test))


def tried(optimizer, names=None, granularity="element"):
    """Return what became of the named trials, or of all, of an implementation of AdamW."""
    spec, known = spec_of("adamw/planted"), reference("adamw")
    options = {**known.variants, **optimizer.hyperparameters(spec)}
    lr = options.pop("lr")
    judge = size_trials._Referenced(
        optimizer, spec, lambda scenario, _: held(optimizer, spec, known, options, lr)
    ).outcome
    chosen = [each for each in sizes.element_wise() if names is None or each.scenario.name in names]
    return [judge(each)[0] for each in chosen]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_size_count_or_layout_is_caught_and_named(fault):
    cls, name, words = FAULTS[fault]
    (found,) = tried(Planted(cls), {name})
    assert found.verdict == "wrong"
    assert words in found.cause


@pytest.mark.parametrize(
    ("fault", "declared", "verdict"),
    [
        ("channels-last", "contiguous", "recorded"),
        ("channels-last", "alike", "wrong"),
        ("the parameter's strides", "alike", "recorded"),
        ("unaligned start", "contiguous", "wrong"),
    ],
)
def test_what_is_declared_of_strides_excuses_those_alone(fault, declared, verdict):
    cls, name, words = FAULTS[fault]
    optimizer = Planted(cls)
    optimizer.traits = optimizer.traits.model_copy(update={"strides": declared})
    (found,) = tried(optimizer, {name})
    assert found.verdict == verdict
    assert words in found.cause


LONG = {"torch's foreach", "torch's for-loop"}
"""Tried daily as adamw/foreach and adamw/forloop of the registry."""


@pytest.mark.parametrize(
    "rewrite", [pytest.param(each, marks=pytest.mark.exhaustive) if each in LONG else each for each in SOUND]
)
def test_what_goes_about_sizes_in_its_own_way_passes(rewrite):
    assert {each.verdict for each in tried(Planted(SOUND[rewrite]))} == {"passed"}


def test_the_certificate_lists_the_lengths_and_counts_that_were_tried():
    checks, cause = trials(Planted(SOUND["torch's foreach"]), spec_of("adamw/planted"), reference("adamw"))
    details = {check.name: check.detail for check in checks if check.verdict == "passed"}
    assert cause is None
    for lengths in ("1,023-1,025", "4,095-4,097", "65,535-65,537", "131,075"):
        assert lengths in details["sizes"]
    assert "lists of tensors: 1, 111, 321, 513, 1,000" in details["counts"]
    assert "groups of one tensor: 1,000" in details["groups"]
    assert {"transposed", "channels-last"} <= set(details["layouts"].replace(",", "").split())
    assert "expanded" in details["gradients that lie otherwise"]


def test_a_compiled_step_is_tried_on_a_few_lengths_and_the_rest_is_named():
    traits = OptimizerTraits(algorithm="adamw", granularity="element", compiled=True)
    assert {math.prod(each.shape) for each in sizes.compiled(traits)} >= {17, 129, 1025, 4097, 65_537}
    assert "not tried" in sizes.COMPILED_WORDS


def test_lengths_that_cost_too_much_are_left_out_and_named():
    started = []

    def slow(tried):
        started.append(tried)
        until = time.process_time() + 3e-3 * tried.elements
        while time.process_time() < until:
            pass
        return size_trials.Outcome("passed"), 2.0

    line = size_trials._climb(sizes.by_cost(matrices=False)[0], slow, 2.0)
    assert len(started) < len(sizes.by_cost(matrices=False)[0])
    assert "not tried, for what it would cost: vectors of" in line.check().detail
    assert "65,535-65,537" in line.check().detail


def test_state_that_grows_with_the_square_of_a_length_ends_the_lengths():
    line = size_trials._climb(
        sizes.by_cost(matrices=False)[0], lambda _: (size_trials.Outcome("passed"), 1000.0), 100.0
    )
    assert len(line.tried) == 1
    assert "not tried" in line.check().detail


@pytest.mark.parametrize("layout", ["framed", "offset", "transposed", "channels-last", "gaps"])
def test_a_tensor_lies_as_asked_and_what_is_written_around_it_is_found(layout):
    values = torch.randn(2, 3, 5, 4)
    tensor = layouts.laid_out(values, layout)
    assert torch.equal(tensor, values)
    assert tensor.is_contiguous() == (layout in {"framed", "offset"})
    assert layouts.overwritten(tensor) is None
    tensor.mul_(2)
    assert layouts.overwritten(tensor) is None
    layouts.whole(tensor)[-1] = 0.0
    assert layouts.overwritten(tensor) > 0


class Alone(Planted):
    """A class of which nothing is known."""

    def __init__(self, cls):
        super().__init__(cls)
        self.traits = self.traits.model_copy(update={"granularity": "undeclared"})


ALONE = {
    "last hundredth": ("sizes", "the last 1/100 of every tensor"),
    "tensor number 321": ("counts", "tensor number 321"),
    "the parameter's strides": ("gradients that lie otherwise", "gradients"),
}


@pytest.mark.parametrize("fault", ALONE)
def test_a_fault_is_found_without_a_reference(fault, monkeypatch):
    name, words = ALONE[fault]
    ladders = sizes.by_cost(matrices=True)
    kept = [[each for each in ladder if each.scenario.name == name] for ladder in ladders]
    monkeypatch.setattr(sizes, "by_cost", lambda **_: [*kept, []])
    monkeypatch.setattr(size_trials, "BUDGET_S", math.inf)
    found, cause = unreferenced_sizes.trials(
        Alone(FAULTS[fault][0]), spec_of("adamw/planted"), draws=False, moves_all=True
    )
    assert wrong(found), found
    assert words in cause


class Statistics(Written):
    """Divides each gradient by its norm where that is above 1: legitimate, and no element's own affair."""

    def gradient(self, p, group):
        g = super().gradient(p, group)
        return g / max(1.0, float(g.norm()))


def test_what_depends_on_a_whole_tensor_is_not_held_to_pieces_of_it(monkeypatch):
    monkeypatch.setattr(sizes, "COUNTS", (1, 111))
    monkeypatch.setattr(sizes, "THOUSAND", 10)
    found, cause = unreferenced_sizes.trials(
        Alone(Statistics), spec_of("adamw/planted"), draws=False, moves_all=True
    )
    assert (wrong(found), cause) == ([], None)


class ShortIndex(Written):
    """Counts elements with an index that ends at 2^16, or at 2^31."""

    ends = 2**16

    def update(self, p, g, group, number):
        kept = p.detach()[self.ends :].clone()
        super().update(p, g, group, number)
        p[self.ends :] = kept


def huge_check(cls, elements, edges, precision="fp32"):
    optimizer, spec = Planted(cls), spec_of("adamw/planted", precision=precision)
    options = {**reference("adamw").variants, **optimizer.hyperparameters(spec)}
    lr = options.pop("lr")
    return huge.check(optimizer, spec, held(optimizer, spec, reference("adamw"), options, lr), elements, edges)


@pytest.mark.parametrize(
    ("cls", "verdict", "words"),
    [
        (Written, "passed", "131,101 elements, looked at in 3 places"),
        (ShortIndex, "wrong", "element number 65,537 of 131,101 does not move, in 2 of 3 places"),
    ],
)
def test_a_long_tensor_is_looked_at_at_its_ends_and_around_the_boundary(cls, verdict, words):
    found = huge_check(cls, 131_101, (2**16,))
    assert (found.verdict, found.detail) == (verdict, words)


def test_an_element_outside_the_windows_that_moves_otherwise_is_found():
    class Spot(Written):
        def update(self, p, g, group, number):
            super().update(p, g, group, number)
            p[100_000] = 0.5

    found = huge_check(Spot, 131_101, (2**16,))
    assert (found.verdict, "element number 100,001 of" in found.detail) == ("wrong", True)


def test_too_little_memory_is_said(monkeypatch):
    monkeypatch.setattr(huge, "free_bytes", lambda _: 2**30)
    found = huge_check(Written, huge.ELEMENTS, huge.EDGES)
    assert found.verdict == "not applicable"
    assert "not tried: needs 40 GiB of memory, 1 are free" in found.detail


@pytest.mark.exhaustive
@pytest.mark.parametrize("planted", [False, True])
def test_more_than_two_to_the_31_elements(planted):
    native = NATIVE["sgd/forloop"]
    spec = spec_of("sgd/forloop", precision="bf16-pure", lr=0.1)

    class Short(torch.optim.SGD):
        """Its index has 32 bits."""

        def step(self, closure=None):
            for group in self.param_groups:
                whole = group["params"]
                group["params"] = [p.detach()[: 2**31] for p in whole]
                for part, p in zip(group["params"], whole, strict=True):
                    part.grad = p.grad[: 2**31]
                super().step()
                group["params"] = whole

    class Planted(type(native)):
        def build(self, groups, spec):
            return Short([{"params": list(group.parameters)} for group in groups], lr=0.1, foreach=False)

    optimizer = Planted(native.algorithm, "forloop") if planted else native
    options = {**reference("sgd").variants, **optimizer.hyperparameters(spec)}
    lr = options.pop("lr")
    found = huge.check(optimizer, spec, held(optimizer, spec, reference("sgd"), options, lr))
    if found.verdict == "not applicable":
        pytest.skip(found.detail)
    assert found.verdict == ("wrong" if planted else "passed"), found.detail
    assert not planted or found.detail.startswith("element number 2,147,483,649 of 2,147,487,747 does not move")


@on_a_gpu
@pytest.mark.parametrize("name", ["adamw/fused", "adamw/foreach", "adamw/forloop"])
def test_more_than_two_to_the_31_elements_on_a_gpu(name):
    native, spec = NATIVE[name], RunSpec(workload="gpt", optimizer=name, precision="bf16-pure")
    options = {**reference("adamw").variants, **native.hyperparameters(spec)}
    lr = options.pop("lr")
    found = huge.check(native, spec, held(native, spec, reference("adamw"), options, lr))
    if found.verdict == "not applicable":
        pytest.skip(found.detail)
    assert found.verdict == "passed", found.detail


@on_a_gpu
@pytest.mark.parametrize("name", ["adamw/fused", "adamw/foreach", "sgd-momentum/fused"])
def test_sizes_counts_and_layouts_pass_on_a_gpu(name):
    checks, cause = trials(NATIVE[name], RunSpec(workload="gpt", optimizer=name), reference(name.split("/")[0]))
    assert (wrong(checks), cause) == ([], None)
