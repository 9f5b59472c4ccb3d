"""Trials over plain tensors: planted faults are caught and named, and what is right passes."""

from __future__ import annotations

import pytest
from faulty_optimizers import FAULTS, SOUND

from harness.checks.curves import AMPLIFIES
from harness.optimizers.algorithms import ALGORITHMS
from harness.optimizers.construct import construct, torch_groups
from harness.optimizers.implementation import Implementation
from harness.optimizers.torch_native import OPTIMIZERS as NATIVE
from harness.references.table import reference
from harness.registry import OPTIMIZERS
from harness.spec import RunSpec
from harness.verification import sizes
from harness.verification.amplifying import amplified
from harness.verification.plain import trials


class Planted(Implementation):
    """A class as an implementation of AdamW."""

    def __init__(self, cls):
        super().__init__(ALGORITHMS["adamw"], "planted", "tests:Planted")
        self.cls = cls

    def build(self, groups, spec):
        chosen = self.hyperparameters(spec)
        listed = torch_groups(groups, chosen["lr"], chosen["weight_decay"])
        options = {key: chosen[key] for key in ("betas", "eps", "maximize")}
        return construct(self.cls, listed, **options)


def spec_of(name, **options):
    return RunSpec(workload="gpt", optimizer=name, device="cpu", **options)


def few_sizes(monkeypatch):
    """Try few lengths and counts: all of them are tried exhaustively."""
    monkeypatch.setattr(sizes, "LENGTHS", (1, 33, 1025))
    monkeypatch.setattr(sizes, "COUNTS", (1, 111))
    monkeypatch.setattr(sizes, "THOUSAND", 10)


def wrong(checks):
    return [check for check in checks if check.verdict == "wrong"]


LONG = {"wrong beta power", "beta1 off by 1e-3", "eps twice as large", "lr one step late"}
"""A constant is looked for until it fits: ten seconds and more, where others take one. beta2's is tried daily."""


@pytest.mark.parametrize(
    "fault", [pytest.param(each, marks=pytest.mark.exhaustive) if each in LONG else each for each in FAULTS]
)
def test_a_planted_fault_is_caught_and_its_cause_is_named(fault):
    cls, cause = FAULTS[fault]
    checks, found = trials(Planted(cls), spec_of("adamw/planted"), reference("adamw"))
    assert wrong(checks)
    assert cause is None or found == cause


@pytest.mark.parametrize("rewrite", SOUND)
def test_a_correct_rewrite_passes(rewrite, monkeypatch):
    few_sizes(monkeypatch)
    checks, cause = trials(Planted(SOUND[rewrite]), spec_of("adamw/planted"), reference("adamw"))
    assert wrong(checks) == []
    assert cause is None


def one_of_each() -> list[str]:
    """Return the first implementation of every algorithm, and all of AdamW."""
    first: dict[str, str] = {}
    for name, native in NATIVE.items():
        first.setdefault(native.traits.algorithm, name)
    return [name for name in NATIVE if name in first.values() or name.startswith("adamw/")]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own Adagrad makes sparse tensors
@pytest.mark.parametrize("name", one_of_each())
def test_the_native_registry_passes(name, monkeypatch):
    if not name.startswith("adamw/"):
        few_sizes(monkeypatch)
    assert alarms(name) == (None, [])


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", NATIVE)
def test_all_of_the_native_registry_passes(name):
    assert alarms(name) == (None, [])


def alarms(name):
    native = NATIVE[name]
    checks, cause = trials(native, spec_of(name), reference(native.traits.algorithm))
    assert checks
    return cause, wrong(checks)


@pytest.mark.parametrize(
    ("name", "amplifies"),
    [("adamw/foreach", False), ("muon/forloop", False), ("unlike_elements:Eigenbasis", True)],
)
def test_what_an_algorithm_makes_of_the_gradients_last_bits_is_measured(name, amplifies):
    check = amplified(OPTIMIZERS.get(name), spec_of(name))
    assert check.verdict == "recorded"
    assert (check.error > AMPLIFIES) == amplifies
    assert amplifies or check.error < 1e-4


def test_over_bfloat16_parameters_what_is_made_of_rounding_is_not_measured():
    spec = spec_of("adamw/foreach").model_copy(update={"precision": "bf16-pure"})
    assert amplified(NATIVE["adamw/foreach"], spec).verdict == "not applicable"
