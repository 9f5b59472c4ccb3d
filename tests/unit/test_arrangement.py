"""How parameters reach a class of the user's: matrices alone, flags in groups, names, a model."""

from __future__ import annotations

import pytest
import torch

from harness.errors import InvalidInputError, OptbenchError, UnsupportedError
from harness.interfaces import OptimizerTraits, ParamGroup, WorkloadTraits
from harness.machine import Constructor
from harness.optimizers.arrangement import arranged, stand_in
from harness.optimizers.custom import Custom
from harness.optimizers.torch_native import OPTIMIZERS as NATIVE
from harness.rates import set_lr
from harness.registry import OPTIMIZERS
from harness.spec import RunSpec, override, parse_assignment
from harness.verification.identity import plain_job
from harness.verification.prove import proved
from tests.unit.test_optimizers_and_reasons import machine

HERE = "tests.unit.odd_optimizers"
TRAITS = WorkloadTraits(summary="", source="", sizes={}, default_size="")


def model():
    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(5, 4),
            "body": torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Conv2d(2, 2, 1)),
        }
    )


def groups(module=None):
    named = dict((module or model()).named_parameters())
    roles = {"embedding.weight": "embedding", "body.0.weight": "matrix", "body.1.weight": "matrix"}
    return [
        ParamGroup((name,), (tensor,), roles.get(name, "vector"), decay=name in roles)
        for name, tensor in named.items()
    ]


def spec_of(name, *assignments, **fields):
    cell = {"workload": "tensors", "optimizer": name, **fields}
    for text in assignments:
        cell = override(cell, *parse_assignment(text))
    return RunSpec.model_validate(cell)


def built(name, *assignments, **fields):
    spec = spec_of(name if ":" in name else f"{HERE}:{name}", *assignments, **fields)
    return OPTIMIZERS.get(spec.optimizer).build(groups(), spec)


def shapes(optimizer):
    return [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("name", ["OnlyMatrices", "torch.optim:Muon"])
def test_a_class_that_refuses_all_but_matrices_gets_those_and_adamw_the_rest(name):
    optimizer = built(name)
    own, other = optimizer.parts
    assert shapes(own) == [(3, 4)]
    assert type(other) is torch.optim.AdamW
    assert other.param_groups[0]["fused"]
    assert sorted(shapes(other)) == sorted([(5, 4), (3,), (2, 2, 1, 1), (2,)])
    assert [group["weight_decay"] for group in other.param_groups] == [0.01, 0.0]


def test_what_takes_the_rest_is_declared_with_its_options_or_set_for_a_run():
    own, other = built("OnlyMatricesDeclared").parts
    assert (own.param_groups[0]["lr"], type(other), other.param_groups[0]["lr"]) == (0.02, torch.optim.SGD, 0.5)
    keys = ("rest=adam/foreach", "rest_options.lr=0.25", "rest_options.eps=1e-5", "matrices_only=true")
    own, other = built("Plain", *(f"optimizer.groups.{key}" for key in keys), "optimizer.lr=0.125").parts
    assert (shapes(own), type(other)) == ([(3, 4)], torch.optim.Adam)
    assert (own.param_groups[0]["lr"], other.param_groups[0]["lr"]) == (0.125, 0.25)
    assert other.param_groups[0]["eps"] == 1e-5
    assert built("OnlyMatrices", lr=0.75).parts[1].param_groups[0]["lr"] == 0.75


def test_a_schedule_reaches_the_class_and_the_rest():
    optimizer = built("OnlyMatricesDeclared")
    set_lr(optimizer, 0.5)
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == [0.01, 0.25]


@pytest.mark.parametrize(
    ("name", "assignments"),
    [("Flagged", ()), ("Unflagged", ("optimizer.groups.group_flags.use_muon=matrix",))],
)
def test_flags_in_groups_say_which_tensors_are_of_a_role(name, assignments):
    optimizer = built(name, *assignments)
    assert shapes(optimizer)[0] == (3, 4)
    assert [group["use_muon"] for group in optimizer.param_groups] == [True, False]
    assert len(shapes(optimizer)) == 5


def test_what_is_not_flagged_has_the_rate_and_the_decay_that_the_class_has_for_it():
    found = [
        (group["use_muon"], group["lr"], group["weight_decay"])
        for group in built("FlaggedWithDefaults", lr=0.5).param_groups
    ]
    assert found == [(True, 0.5, 0.1), (False, 3e-4, 0.01), (False, 3e-4, 0.0)]


def test_a_class_that_wants_flags_says_how_to_give_them():
    with pytest.raises(OptbenchError, match=r"--set optimizer\.groups\.group_flags\.NAME=matrix"):
        built("Unflagged")


def test_a_model_without_matrices_is_told_what_to_use():
    entry = Custom(f"{HERE}:OnlyMatricesDeclared")
    with pytest.raises(UnsupportedError, match="no 2-D weight inside it"):
        entry.build([each for each in groups() if each.role == "vector"], spec_of(entry.name))


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (("optimizer.groups.matrices=true",), "optimizer.groups.matrices is unknown; did you mean matrices_only"),
        (("optimizer.groups=3",), "is no table"),
        (("optimizer.groups.group_flags.use_muon=square",), "optimizer.groups.group_flags.use_muon"),
        (("optimizer.groups.matrices_only=true", "optimizer.groups.rest=adamv/fused"), "did you mean"),
        (("optimizer.groups.matrices_only=true", "optimizer.groups.rest=lbfgs/forloop"), "beside another"),
    ],
)
def test_words_about_groups_that_mean_nothing_are_refused_in_the_plan(assignments, words):
    entry = Custom(f"{HERE}:Plain")
    probed = machine(constructors={entry.target: Constructor(parameters={"lr": 0.1})})
    assert words in entry.unsupported(spec_of(entry.name, *assignments), TRAITS, probed)


def test_keys_of_groups_are_options_of_every_class_and_change_its_traits_only():
    entry = Custom(f"{HERE}:Plain")
    assert "groups" in entry.options(machine(constructors={entry.target: Constructor(parameters={"lr": 0.1})}))
    found = arranged(entry.traits, spec_of(entry.name, "optimizer.groups.rest=sgd/forloop"))
    assert found == entry.traits.model_copy(update={"rest": "sgd/forloop"})


@pytest.mark.parametrize("name", ["NeedsModel", "NeedsNames", "NeedsBoth", "KeywordParameters"])
def test_constructors_of_names_or_a_model_get_every_parameter_under_its_name(name):
    optimizer = built(name)
    assert sorted(shapes(optimizer)) == sorted([(5, 4), (3, 4), (3,), (2, 2, 1, 1), (2,)])
    if name != "KeywordParameters":
        assert list(optimizer.names) == [each for each, _ in model().named_parameters()]


def test_a_stand_in_has_the_models_tree_and_the_parameters_themselves():
    module = model()
    other = stand_in([(name, tensor) for name, tensor in module.named_parameters()])
    assert {name for name, _ in module.named_modules()} == {name for name, _ in other.named_modules()}
    assert [id(p) for p in module.parameters()] == [id(p) for p in other.parameters()]


def test_required_parameters_that_a_run_fills_are_not_asked_for():
    entry = Custom(f"{HERE}:NeedsBoth")
    probed = machine(constructors={entry.target: Constructor(parameters={"lr": 0.1}, required=("model",))})
    assert entry.unsupported(spec_of(entry.name), TRAITS, probed) is None


@pytest.mark.parametrize("name", ["OnlyMatrices", "Flagged", "torch.optim:Muon"])
def test_arranged_classes_are_proved(name):
    name = name if ":" in name else f"{HERE}:{name}"
    like = "muon" if name == "torch.optim:Muon" else None
    made = proved(plain_job(spec_of(name), like))
    assert (made.outcome, made.reason) == ("passed", None)


def test_an_unknown_optimizer_of_the_rest_is_an_error_where_it_is_built():
    with pytest.raises(InvalidInputError, match="unknown name"):
        built("OnlyMatrices", "optimizer.groups.matrices_only=true", "optimizer.groups.rest=adamv/fused")


def test_the_rest_of_a_class_is_the_registrys_own_entry():
    entry = NATIVE[OptimizerTraits(algorithm="x", granularity="matrix").rest]
    assert entry.name == "adamw/fused"
