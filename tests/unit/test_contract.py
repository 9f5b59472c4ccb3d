"""What a workload must hand over: a breach is one clear message, never a wrong number."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace

import pytest
import torch

from harness import contract
from harness.errors import OptbenchError
from harness.interfaces import DataShard
from harness.loop import turn_ends
from harness.spec import RunSpec
from harness.worker import MAX_REASON, _cause, shown

SHARD = DataShard(rank=0, world_size=2, global_batch=8, accumulation=1, seed=0)


def spec(**fields) -> RunSpec:
    return RunSpec(**{"workload": "mine:Workload", "optimizer": "sgd/forloop", **fields})


def whole(**more):
    members = {name: (lambda *_: None) for name in contract.METHODS}
    return SimpleNamespace(**{"traits": SimpleNamespace(optimizer_only=False), **members, **more})


def test_a_constructor_that_raises_is_named_with_its_arguments():
    def broken(size, data):
        raise KeyError("x")

    with pytest.raises(OptbenchError, match=r"mine:Workload\(size='s', data=None\) raised KeyError: 'x'"):
        contract.construct(broken, spec(size="s"))


@pytest.mark.parametrize("method", contract.METHODS)
def test_a_missing_method_is_named_before_anything_is_trained(method):
    with pytest.raises(OptbenchError, match=f"mine:Workload has no method {method}"):
        contract.construct(lambda **_: whole(**{method: None}), spec())


def test_a_workload_without_backward_needs_gradients():
    traits = SimpleNamespace(optimizer_only=True)
    with pytest.raises(OptbenchError, match="no method gradients"):
        contract.construct(lambda **_: whole(traits=traits), spec())
    assert contract.construct(lambda **_: whole(traits=traits, gradients=print), spec()).gradients is print


def test_micro_batches_of_the_right_size_pass_from_any_iterable():
    batch = {"x": torch.zeros(4, 2), "y": torch.zeros(4)}
    assert next(contract.checked([batch], SHARD)) is batch
    assert len(list(itertools.islice(contract.checked(itertools.repeat(batch), SHARD), 5))) == 5


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"x": torch.zeros(8, 2)}, r"shard.micro_batch = 4 samples.*'x' of shape \(8, 2\) in micro-batch 0"),
        ({"x": torch.zeros(4), "y": torch.zeros(3)}, r"'y' of shape \(3,\)"),
        ({"x": torch.tensor(1.0)}, r"'x' of shape \(\)"),
        ({"x": 3}, "mapping of 'x' to int"),
        ((torch.zeros(4), torch.zeros(4)), "found tuple"),
    ],
)
def test_a_micro_batch_of_another_kind_or_size_is_refused(batch, words):
    with pytest.raises(OptbenchError, match=words):
        next(contract.checked([batch], SHARD))


def test_batches_that_end_say_so():
    with pytest.raises(OptbenchError, match=r"batches\(\) ended"):
        list(contract.checked([{"x": torch.zeros(4)}], SHARD))


def test_a_loss_must_be_one_number_on_the_graph():
    good = torch.ones((), requires_grad=True)
    assert contract.scalar_loss(good) is good
    for bad, words in (
        (1.0, "found float"),
        ((good, 2), "found tuple"),
        (torch.ones(3, requires_grad=True), r"a tensor of shape \(3,\)"),
        (good.detach(), "no trainable parameter"),
    ):
        with pytest.raises(OptbenchError, match=words):
            contract.scalar_loss(bad)


def test_an_evaluation_becomes_plain_numbers():
    found = contract.evaluation({"a": torch.tensor(0.25), "b": 3, "c": torch.ones(1)})
    assert found == {"a": 0.25, "b": 3.0, "c": 1.0}
    assert all(type(value) is float for value in found.values())
    assert contract.evaluation({}) == {}


@pytest.mark.parametrize("bad", [None, 3.0, {"v": "good"}, {3: 1.0}, {"v": torch.ones(3)}, {"v": None}])
def test_an_evaluation_of_anything_else_is_refused(bad):
    with pytest.raises(OptbenchError, match=r"evaluate\(\) must return a mapping of names to numbers, found"):
        contract.evaluation(bad)


def test_a_run_of_a_billion_steps_has_its_first_turns_at_once():
    run = spec(steps=10**9, turn_steps=1, evaluate_every=3)
    assert list(itertools.islice(turn_ends(run), 4)) == [1, 2, 3, 4]


def test_reasons_are_one_printable_line_with_the_place():
    text = shown("red \x1b[31m nul \x00\nnext " + "z" * 5000)
    assert text.startswith("red ?[31m nul ? next zzz")
    assert len(text) < MAX_REASON + 40
    with pytest.raises(SystemExit) as caught:
        sys.exit(0)
    outcome, reason = _cause(caught.value)
    assert outcome == "failed"
    assert "SystemExit: 0 (in test_reasons_are_one_printable_line_with_the_place, test_contract.py:" in reason
