"""Options that a constructor's signature does not show: passed on, held by an object, or fixed."""

from __future__ import annotations

import pytest
import torch

from harness.hyperparameters import held
from harness.interfaces import ParamGroup
from harness.registry import OPTIMIZERS
from harness.verification.engines import held_to
from harness.verification.prove import reference
from tests.unit.test_stepping import HERE, line, proof_of, spec_of


def left_out(made):
    return {check.name: check.detail for check in made.checks if check.verdict == "not applicable"}


def settings(name, **options):
    """Return each group's rate and decay as a run has them: of a matrix, a bias, and a matrix at half the rate."""
    spec = spec_of(f"{HERE}:{name}", optimizer_options=options)
    tensors = [
        torch.nn.Parameter(torch.ones(2, 2)),
        torch.nn.Parameter(torch.ones(2)),
        torch.nn.Parameter(torch.ones(3, 2)),
    ]
    groups = [
        ParamGroup(("a",), (tensors[0],), "matrix"),
        ParamGroup(("b",), (tensors[1],), "vector", decay=False),
        ParamGroup(("c",), (tensors[2],), "matrix", lr_scale=0.5),
    ]
    live = OPTIMIZERS.get(spec.optimizer).build(groups, spec)
    by_id = {id(p): group for group in live.param_groups for p in group["params"]}
    return [(by_id[id(t)]["lr"], by_id[id(t)]["weight_decay"]) for t in tensors]


@pytest.mark.parametrize(
    ("name", "options", "lr", "decay"),
    [
        ("PassesOptionsOn", {}, 1e-3, 0.01),
        ("PassesOptionsOn", {"weight_decay": 0.2}, 1e-3, 0.2),
        ("PassesEverythingOn", {"weight_decay": 0.2}, 1e-3, 0.2),
        ("PassesPositionsOn", {}, 1e-3, 0.01),
        ("SwallowsOptions", {}, 1e-3, 0.03),
        ("TakesADataclass", {}, 2e-3, 0.05),
        ("make_adamw", {"weight_decay": 0.2}, 1e-3, 0.2),
    ],
)
def test_rate_and_decay_that_the_signature_does_not_show_are_set_by_group(name, options, lr, decay):
    expected = [(lr, decay), (lr, 0.0), (lr / 2, decay)]
    assert settings(name, **options) == [pytest.approx(each) for each in expected]


@pytest.mark.parametrize("name", ["PassesOptionsOn", "make_adamw"])
def test_options_that_are_passed_on_are_tried(name):
    made = proof_of(name, "adamw")
    assert (made.outcome, made.reason) == ("passed", None)
    assert left_out(made) == {}


@pytest.mark.parametrize("name", ["SwallowsOptions", "TakesADataclass"])
def test_options_that_cannot_be_set_are_left_out_and_named(name):
    made = proof_of(name, "adamw")
    assert (made.outcome, made.reason) == ("passed", None)
    assert left_out(made)["decay and a large rate"] == "its constructor takes no weight_decay"
    assert "left out: decay and a large rate" in line(made)


def test_a_decay_that_no_group_holds_is_found_where_it_is_and_the_check_left_out_named():
    made = proof_of("KeepsADataclass", "adamw")
    assert (made.outcome, made.reason) == ("passed", None)
    assert "left out: groups that do not decay (its groups hold no weight_decay" in line(made)


def test_a_hyperparameter_by_another_name_is_found_by_what_fits_and_recorded():
    made = proof_of("OtherName", "sgd")
    assert (made.outcome, made.reason) == ("passed", None)
    assert [check.detail for check in made.checks if check.name == "other names"] == [
        "its wd is taken for weight_decay"
    ]
    assert proof_of("OtherNameWrong", "sgd").outcome == "wrong"


def test_what_decays_every_group_is_still_wrong_where_the_decay_is_passed_on():
    made = proof_of("DecaysAll", "adamw")
    assert (made.outcome, made.cause) == ("wrong", "groups that should not decay do")


def test_engines_hold_a_class_of_ones_own_to_the_settings_of_an_instance():
    spec = spec_of(f"{HERE}:TakesADataclass")
    found = held_to(OPTIMIZERS.get(spec.optimizer), spec, reference("x", "adamw"))
    assert (found.lr, found.options["weight_decay"], found.options["betas"]) == (2e-3, 0.05, (0.8, 0.99))


def test_settings_are_those_of_defaults_before_groups_before_attributes():
    live = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    live.momentum, live.rho, live.inner = 7, 3, {"scale": 2.0, "word": "x"}
    live.param_groups[0]["extra"] = (0.1, 0.2)
    found = held(live)
    assert (found["momentum"], found["rho"], found["scale"], found["extra"]) == (0, 3, 2.0, (0.1, 0.2))
    assert not {"word", "params"} & found.keys()


def test_a_rate_by_another_name_cannot_be_held_to_a_reference_and_is_told():
    made = proof_of("LearningRate", "sgd")
    assert made.outcome == "unsupported"
    assert "hold no number named lr" in made.reason
