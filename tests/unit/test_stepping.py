"""One driver of the step: what an optimizer meets, in a run as in a proof."""

from __future__ import annotations

import pytest
import torch

from harness.checks.gradients import GradientWatch, stale
from harness.errors import UndeclaredError, UnsupportedError
from harness.interfaces import DataShard, OptimizerTraits, World
from harness.loop import steps
from harness.rates import unscheduled
from harness.registry import OPTIMIZERS, strategy
from harness.spec import RunSpec
from harness.stepping import Driver
from harness.verbs.verifying import line
from harness.verification.entering import on_entry, require
from harness.verification.identity import plain_job
from harness.verification.playing import Player
from harness.verification.proofs import barred, of_run
from harness.verification.prove import proved
from harness.verification.scenarios import unreferenced
from harness.worker import _cause
from tests.unit import odd_optimizers as odd
from workloads.linear_regression import LinearRegression

HERE = "tests.unit.odd_optimizers"


def spec_of(name, **fields):
    known = {"workload": "linear_regression", "optimizer": name, "strategy": "single", "size": "small"}
    return RunSpec.model_validate(
        known | {"steps": 4, "global_batch": 8, "world_size": 1, "device": "cpu"} | fields
    )


def engine_of(name, **fields):
    spec = spec_of(f"{HERE}:{name}", **fields)
    entry = OPTIMIZERS.get(spec.optimizer)
    engine = strategy("single").start(LinearRegression(), entry, spec, World(0, 1, 0, torch.device("cpu"), None))
    batches = LinearRegression().batches(DataShard(0, 1, 8, spec.accumulation, 0))
    return engine, steps(engine, batches, spec, torch.device("cpu"), [])


def proof_of(name, like=None, **fields):
    return proved(plain_job(spec_of(f"{HERE}:{name}", **fields), like))


# What is found on entry.


@pytest.mark.parametrize("precision", ["fp32", "bf16-master"])
def test_a_closure_of_a_run_finds_no_gradients_on_entry_in_any_step(precision):
    engine, stream = engine_of("Sharp", precision=precision)
    for _ in range(3):
        next(stream)
    assert engine._optimizer.found == [{}, {}, {}]


def test_declared_gradients_on_entry_are_those_of_the_steps_own_batch():
    engine, stream = engine_of("SharpDeclared", accumulation=2)
    for number in range(3):
        batches = LinearRegression().batches(DataShard(0, 1, 8, 2, 0))
        mine = [next(batches) for _ in range(2 * number + 2)][-2:]
        model = engine._module
        loss = sum(LinearRegression().loss(model, each) for each in mine) / 2
        parameters = list(model.parameters())
        expected = torch.autograd.grad(loss, parameters)
        next(stream)
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(engine._optimizer.found[-1][id(parameter)], gradient)


@pytest.mark.parametrize(("name", "there"), [("Sharp", False), ("SharpDeclared", True)])
def test_a_proof_gives_on_entry_what_a_run_gives(name, there):
    entry = OPTIMIZERS.get(f"{HERE}:{name}")
    player = Player(entry, spec_of(entry.name), unreferenced(entry.traits))
    for number in (1, 2):
        player.step(number)
        found = player.live.found[-1]
        given = {id(player.parameters[key]): g for key, g in player.gradients(number).items()} if there else {}
        assert found.keys() == given.keys()
        assert all(torch.equal(found[key], gradient) for key, gradient in given.items())


@pytest.mark.parametrize("like", [None, "sgd"])
@pytest.mark.parametrize("name", ["Sharp", "SharpRestoring"])
def test_undeclared_use_of_gradients_on_entry_is_unsupported_and_starts_no_run(name, like):
    made = proof_of(name, like)
    assert (made.outcome, made.undeclared) == ("unsupported", True)
    assert "declare gradients_on_entry=True in its traits" in made.reason
    assert barred(of_run("", made)) == ("unsupported", made.reason)


@pytest.mark.parametrize("name", ["Sharp", "SharpRestoring"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_was_not_proved_refuses_it_as_well(name, precision):
    spec = spec_of(f"{HERE}:{name}", precision=precision)
    with pytest.raises(UndeclaredError, match="declare gradients_on_entry=True in its traits") as caught:
        require(OPTIMIZERS.get(spec.optimizer), spec)
    assert _cause(caught.value) == ("unsupported", str(caught.value))


@pytest.mark.parametrize(
    "name", ["SharpDeclared", "KeywordClosure", "ClearsFirst", "EvaluatesIfThereAreNone", "Searching"]
)
def test_what_declares_gradients_on_entry_or_needs_none_is_no_finding(name):
    spec = spec_of(f"{HERE}:{name}")
    checks = on_entry(OPTIMIZERS.get(spec.optimizer), spec)
    assert [check.verdict for check in checks] == ([] if name == "SharpDeclared" else ["passed"])


def test_torchs_own_closure_optimizer_is_no_finding():
    spec = spec_of("lbfgs/forloop")
    assert [check.verdict for check in on_entry(OPTIMIZERS.get(spec.optimizer), spec)] == ["passed"]


def test_a_declaration_that_no_gradients_on_entry_are_needed_is_believed_and_recorded():
    made = proof_of("SharpWithout")
    assert (made.outcome, made.reason) == ("passed", None)
    recorded = next(check for check in made.checks if check.name == "gradients on entry")
    assert (recorded.verdict, recorded.remedy) == ("recorded", None)
    assert "it needs none" in recorded.detail


def test_the_loss_reaches_a_step_that_declares_it():
    engine, stream = engine_of("PolyakDeclared")
    losses = [float(next(stream).loss) for _ in range(3)]
    assert engine._optimizer.losses == pytest.approx(losses)


# What the signature allows.


@pytest.mark.parametrize(
    "step",
    [
        lambda closure: closure(),
        lambda closure, /: closure(),
        lambda *, closure: closure(),
        lambda closure=None: closure(),
        lambda scale=1, closure=None: closure() * scale,
        lambda scale=1, *, closure: closure() * scale,
        lambda *arguments: arguments[0](),
        lambda **named: named["closure"](),
        lambda *arguments, **named: named["closure"](),
        lambda closure_fn: closure_fn(),
        lambda forward=None: forward(),
    ],
)
def test_a_closure_goes_where_the_signature_takes_it(step):
    optimizer = odd.Plain([torch.nn.Parameter(torch.ones(2))])
    optimizer.step = step
    traits = OptimizerTraits(algorithm="x", granularity="element", closure=True)
    called = []
    driver = Driver(optimizer, "a:B", traits)
    for _ in range(2):
        driver.evaluate(lambda: called.append(1) or torch.zeros(()))
    assert called == [1, 1]


@pytest.mark.parametrize(
    ("step", "declared", "words"),
    [
        (lambda closure: None, {}, "needs closure; declare closure=True"),
        (lambda *, loss: None, {}, "needs loss; declare loss=True"),
        (lambda temperature: None, {}, "needs temperature, which no training loop knows"),
        (lambda closure, epoch: None, {"closure": True}, "needs epoch, which no training loop knows"),
        (lambda: None, {"closure": True}, "takes no closure"),
        (lambda closure=None: None, {"loss": True}, "takes no loss"),
    ],
)
def test_a_call_that_cannot_be_made_is_refused_before_the_first_step(step, declared, words):
    optimizer = odd.Plain([torch.nn.Parameter(torch.ones(2))])
    optimizer.step = step
    with pytest.raises(UnsupportedError, match=words):
        Driver(optimizer, "a:B", OptimizerTraits(algorithm="x", granularity="element", **declared))


@pytest.mark.parametrize(
    "name", ["KeywordClosure", "StepOfTheInstance", "NeedsModel", "NeedsNames", "KeywordParameters"]
)
def test_unusual_signatures_run_and_are_proved(name):
    made = proof_of(name)
    assert (made.outcome, made.reason) == ("passed", None)
    engine, stream = engine_of(name)
    before = [p.detach().clone() for p in engine._module.parameters()]
    next(stream)
    assert not all(map(torch.equal, before, engine._module.parameters()))


@pytest.mark.parametrize(
    ("name", "declaration"),
    [
        ("SharpOptional", "declare closure=True, gradients_on_entry=True in its traits"),
        ("ClosureOptional", "declare closure=True in its traits"),
        ("Polyak", "declare loss=True in its traits"),
    ],
)
def test_what_a_step_needs_and_does_not_declare_is_found_by_trying_and_named(name, declaration):
    made = proof_of(name, "sgd" if name == "Polyak" else None)
    assert made.outcome == "unsupported"
    assert declaration in made.reason


def test_a_run_whose_first_step_raises_says_what_may_be_undeclared():
    _, stream = engine_of("SharpOptional")
    with pytest.raises(AssertionError) as caught:
        next(stream)
    outcome, reason = _cause(caught.value)
    assert outcome == "failed"
    assert "SAM needs a closure" in reason
    assert "declare closure=True or closure=True, gradients_on_entry=True in its traits" in reason


def test_a_closure_that_is_never_called_is_told():
    _, stream = engine_of("NeverEvaluates")
    with pytest.raises(UnsupportedError, match="never calls its closure"):
        next(stream)


# The gradients of a run's first steps.


class Accumulating(odd.Plain):
    """Evaluates the loss; its closure may keep what was there."""

    @torch.no_grad()
    def step(self, closure):
        loss = torch.enable_grad()(closure)()
        self.descend()
        return loss


def watched(closures, *, forget):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = Accumulating([parameter])
    watch = GradientWatch()
    try:
        for gradient in closures:
            watch.next_step()
            if forget:
                parameter.grad = None

            def closure(gradient=gradient):
                parameter.grad = gradient.clone()
                return torch.zeros(())

            optimizer.step(closure)
    finally:
        watch.close()
    return [watch.steps]


def test_the_gradients_that_a_closure_makes_are_looked_at():
    one, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])
    fresh = watched([one, other], forget=True)
    assert stale(fresh) is None
    assert [step.tensors for step in fresh[0]] == [1, 1]
    assert "step 2 are those of step 1" in stale(watched([one, one], forget=True))
    assert "was zero" in stale(watched([one * 0, one * 0], forget=True))


def test_gradients_that_a_closure_step_finds_from_the_step_before_are_told():
    one, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])
    assert "found in step 2 the gradients that step 1 had left" in stale(watched([one, other], forget=False))


# Rates.


def test_tensor_rates_are_shared_by_no_group_no_instance_and_no_class():
    entry = OPTIMIZERS.get(f"{HERE}:TensorRate")
    default = odd.TensorRate.__init__.__defaults__[0]
    players = [Player(entry, spec_of(entry.name), unreferenced(entry.traits)) for _ in range(2)]
    rates = [group["lr"] for player in players for group in player.live.param_groups]
    rates += [player.live.defaults["lr"] for player in players]
    assert len({id(rate) for rate in [*rates, default]}) == len(rates) + 1
    players[0].set_lr(0.25)
    assert [float(group["lr"]) for group in players[0].live.param_groups] == pytest.approx([0.0025, 0.00125])
    assert float(default) == pytest.approx(0.01)
    assert [float(g["lr"]) for g in players[1].live.param_groups] == pytest.approx([0.01, 0.005])


def test_a_class_that_shares_a_tensor_between_its_groups_by_itself_is_parted():
    shared = torch.tensor(0.1)
    from harness.optimizers.construct import construct

    listed = [{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(2)]
    optimizer = construct(odd.Plain, listed, lr=shared)
    one, other = (group["lr"] for group in optimizer.param_groups)
    assert one is shared
    assert other is not shared
    assert optimizer.defaults["lr"] is not shared


def test_a_rate_in_a_tensor_computes_what_a_number_does():
    made = proof_of("TensorRate", "sgd")
    assert (made.outcome, made.reason) == ("passed", None)


@pytest.mark.parametrize("name", ["RelativeStep", "WordsForRates"])
def test_a_rate_that_is_no_number_is_left_alone_and_the_check_left_out_is_named(name):
    made = proof_of(name)
    assert (made.outcome, made.reason) == ("passed", None)
    assert "left out: the learning rate is used (no group has a number as its rate)" in line(made)
    engine, stream = engine_of(name, schedule="warmup-cosine", steps=10)
    for _ in range(3):
        next(stream)
    assert {group["lr"] for group in engine._optimizer.param_groups} == {
        None if name == "RelativeStep" else "auto"
    }


def test_what_finds_its_own_rate_is_held_to_a_reference_once_it_has_one():
    assert "give --lr" in proof_of("RelativeStep", "sgd").reason
    assert proof_of("RelativeStep", "sgd", lr=0.05).outcome == "passed"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LearningRate", "they hold learning_rate, weight_decay); name the rate lr in the groups"),
        ("RelativeStep", "lr is None: it may find its own rate); give --lr"),
        ("WordsForRates", "lr is 'auto'"),
    ],
)
def test_a_run_says_that_its_schedule_does_nothing(name, words):
    (told,) = engine_of(name, schedule="warmup-cosine")[0].remarks()
    assert told.startswith(
        "the schedule warmup-cosine does nothing to every parameter group, where lr is no number"
    )
    assert words in told
    assert [*engine_of(name)[0].remarks()] == []
    assert [*engine_of("TensorRate", schedule="warmup-cosine")[0].remarks()] == []


def test_groups_that_a_schedule_leaves_alone_are_counted():
    live = odd.Plain([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in (0.1, "auto", 0.2)])
    told = unscheduled(live, "warmup-cosine")
    assert told.startswith("the schedule warmup-cosine does nothing to 1 of 3 parameter groups")
    assert "(lr is 'auto'" in told
