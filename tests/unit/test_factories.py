"""Functions that make an optimizer, in the place of a class."""

from __future__ import annotations

import sys

import pytest
import torch

from harness import inspection
from harness.errors import OptbenchError
from harness.optimizers.construct import facts
from harness.registry import OPTIMIZERS
from harness.targets import constructor_defaults
from tests.unit.test_stepping import HERE, engine_of, proof_of, spec_of


def test_a_function_that_returns_an_optimizer_runs_with_its_parameters_as_hyperparameters():
    engine, stream = engine_of("make", lr=0.25, optimizer_options={"weight_decay": 0.5})
    before = [p.detach().clone() for p in engine._module.parameters()]
    next(stream)
    assert not all(map(torch.equal, before, engine._module.parameters()))
    found = facts(engine._optimizer)
    assert found["class"] == f"{HERE}.Plain"
    assert found["arguments"] == {"lr": 0.25, "weight_decay": 0.5}


@pytest.mark.parametrize(("name", "like"), [("make", "sgd"), ("make_sharp", None)])
def test_a_function_that_returns_an_optimizer_is_proved(name, like):
    made = proof_of(name, like)
    assert (made.outcome, made.reason) == ("passed", None)


def test_a_function_declares_traits_as_an_attribute():
    assert OPTIMIZERS.get(f"{HERE}:make_sharp").traits.gradients_on_entry


def test_the_keywords_of_a_function_are_read_live_and_from_its_source():
    assert inspection.constructor(f"{HERE}:make").parameters == {"lr": 0.01, "weight_decay": 0.0}
    assert constructor_defaults(f"{HERE}:make") == {"lr": 0.01, "weight_decay": 0.0}
    assert inspection.constructor(f"{HERE}:make_adamw").open_ended
    assert constructor_defaults(f"{HERE}:make_adamw") is None


def test_a_function_that_returns_no_optimizer_is_told():
    spec = spec_of(f"{HERE}:make_nothing")
    with pytest.raises(OptbenchError, match="it returns list, no instance"):
        engine_of("make_nothing")
    assert inspection.constructor(spec.optimizer).error is None


def test_what_is_neither_class_nor_function_is_told():
    assert "is no class, and no function" in inspection.constructor(f"{HERE}:math").error
    assert "math" in vars(sys.modules[HERE])
