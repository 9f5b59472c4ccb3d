"""The parts of the checks inside a run, on made-up ranks."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from harness.checks import bandwidth, batches, clock, curves, gradients, work
from harness.checks.findings import Findings
from harness.checks.fingerprint import BLOCK_WORDS, combined, every_nth, fingerprint, row_fingerprints
from harness.checks.gradients import Entered, GradientWatch
from harness.checks.spans import Span, are_replicated, differing, uncovered
from harness.comparison.model import Arm
from harness.errors import WrongAnswerError
from harness.index import row_of
from harness.interfaces import DataShard, OptimizerTraits
from harness.record import Metric, RunRecord
from harness.registry import OPTIMIZERS
from harness.reports.standing import results_of
from harness.reports.table import render
from harness.spec import RunSpec
from harness.verbs.console import exit_code
from harness.worker import _cause
from launch import baton
from launch.arms import Built
from launch.sitting import Sitting
from workloads.linear_regression import LinearRegression


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool])
@pytest.mark.parametrize("elements", [1, 3, 8, 1001, BLOCK_WORDS * 8 + 5])
def test_one_changed_element_gives_another_fingerprint(dtype, elements):
    tensor = torch.ones(elements, dtype=dtype)
    before = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == before
    for index in {0, elements // 2, elements - 1}:
        changed = tensor.clone()
        changed[index] = 0
        assert fingerprint(changed) != before


def test_order_and_sign_of_zero_count_and_views_do_not():
    tensor = torch.arange(64.0)
    assert fingerprint(tensor) != fingerprint(tensor.flip(0))
    assert fingerprint(torch.zeros(4)) != fingerprint(-torch.zeros(4))
    assert fingerprint(tensor[1:]) == fingerprint(tensor[1:].clone())
    assert fingerprint(tensor.view(8, 8).t()) == fingerprint(tensor.view(8, 8).t().contiguous())
    assert fingerprint(torch.empty(0)) == 0


def test_of_large_tensors_blocks_are_sampled_and_an_update_of_all_elements_is_seen():
    assert every_nth([1 << 20]) == 1
    assert every_nth([1 << 30]) == 64
    tensor = torch.zeros(BLOCK_WORDS * 8)
    assert fingerprint(tensor, every=3) != fingerprint(tensor + 1, every=3)
    assert combined([tensor, tensor]) != combined([tensor])


def test_rows_have_the_same_fingerprint_in_any_micro_batch():
    batch = {"x": torch.randn(6, 3), "label": torch.arange(6), "flag": torch.tensor([True, False] * 3)}
    whole = row_fingerprints(batch)
    halves = [row_fingerprints({k: t[part] for k, t in batch.items()}) for part in (slice(3), slice(3, 6))]
    assert list(itertools.chain(*halves)) == whole
    assert len(set(whole)) == 6


def whole(name: str, bits: int, total: int = 4) -> Span:
    return Span(name, 0, total, total, bits)


def test_replicas_must_be_the_same_and_shards_must_cover_the_whole_exactly_once():
    same = [[whole("a", 1), whole("b", 2)]] * 2
    assert uncovered(same) is None
    assert differing(same) is None
    assert are_replicated(same)
    assert differing([*same, [whole("a", 1), whole("b", 3)]]) == ("b", 0, 2)
    shards = [[Span("a", 0, 2, 4, 1)], [Span("a", 2, 2, 4, 9)], [Span("a", 4, 0, 4, 0)]]
    assert uncovered(shards) is None
    assert differing(shards) is None
    assert not are_replicated(shards)
    assert "elements 2 to 2 of a are held by no rank" in (
        uncovered([[Span("a", 0, 2, 4, 1)], [Span("a", 3, 1, 4, 1)]]) or ""
    )
    assert "ranks with different shards" in (uncovered([[Span("a", 0, 3, 4, 1)], [Span("a", 2, 2, 4, 1)]]) or "")
    assert "has 4 elements, of which the ranks hold 2" in (uncovered([[Span("a", 0, 2, 4, 1)]]) or "")
    hybrid = [shards[0], shards[1], shards[0], [Span("a", 2, 2, 4, 8)]]
    assert differing(hybrid) == ("a", 1, 3)


SPEC = RunSpec.model_validate(
    {"workload": "linear_regression", "optimizer": "sgd/forloop", "strategy": "ddp", "world_size": 2}
    | {"steps": 10, "global_batch": 16, "size": "small", "accumulation": 2}
)


def read_by(rank: int) -> list[list[int]]:
    shard = DataShard(rank, 2, 16, 2, SPEC.seed)
    stream = LinearRegression().batches(shard)
    return [[n for _ in range(2) for n in row_fingerprints(next(stream))] for _ in range(2)]


def test_the_global_batch_is_read_once_or_told():
    expected = [row_fingerprints(batch) for batch in batches.whole_batches(LinearRegression(), SPEC, 2)]
    assert batches.misread([read_by(0), read_by(1)], expected) is None
    assert batches.misread([read_by(1), read_by(0)], expected) is None
    told = batches.misread([read_by(0), read_by(0)], expected)
    assert told is not None
    assert "in step 1 8 of the 16 samples" in told
    assert "8 were read more than once and 0 are of no global batch" in told
    assert batches.is_repeatable(LinearRegression(), SPEC, 2)


def test_making_the_global_batch_disturbs_no_generator():
    class Drawing:
        def batches(self, shard):
            while True:
                yield {"x": torch.randn(shard.micro_batch)}

    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    assert not batches.is_repeatable(_Shaken(Drawing()), SPEC, 2)
    assert torch.equal(torch.randn(2), expected)


class _Shaken:
    """Draws from a generator that is not reset in between."""

    def __init__(self, workload):
        self.own = torch.Generator().manual_seed(1)

    def batches(self, shard):
        while True:
            yield {"x": torch.randn(shard.micro_batch, generator=self.own)}


def test_gradients_are_seen_on_their_way_into_any_optimizer_and_not_counted_afterwards():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    watch = GradientWatch()
    try:
        for value in (1.0, 2.0):
            watch.next_step()
            parameter.grad = torch.full((3,), value)
            optimizer.step()
            parameter.grad.zero_()  # consumed: its right
    finally:
        watch.close()
    optimizer.step()
    first, second = watch.steps
    assert (first.tensors, second.tensors) == (1, 1)
    assert not first.zero
    assert first.bits != second.bits
    assert gradients.stale([watch.steps]) is None
    assert "step 2 are those of step 1" in (gradients.stale([[first, first]]) or "")


def test_a_share_of_zeros_is_sound_and_zeros_everywhere_are_not():
    some, zero = Entered(1, 5, zero=False), Entered(1, 7, zero=True)
    assert gradients.stale([[some, replace(some, bits=6)], [zero, zero]]) is None
    assert "was zero" in (gradients.stale([[zero, zero], [zero, zero]]) or "")
    assert gradients.stale([[Entered()], [Entered()]]) is None


def change(*, parameters=False, state=False, elements=10**6, narrow=False) -> work.Change:
    return work.Change(parameters, state, elements, narrow)


def test_standing_still_is_wrong_unless_there_is_a_reason():
    assert work.idle([change(), change(parameters=True)], "", lenient=False) is None
    assert work.idle([change()], "in the last 5 steps", lenient=True) is not None
    assert work.idle([change(state=True)], "", lenient=False) is not None
    assert work.idle([change(state=True)], "", lenient=True) is None
    assert work.idle([change(state=True, narrow=True)], "", lenient=False) is None
    assert work.idle([change(state=True, elements=2)], "", lenient=False) is None


def test_the_clock_must_account_for_the_turn_but_for_the_loops_own_time():
    turn = clock.TimedTurn(10, told_s=0.99, elapsed_s=1.0)
    assert clock.disagreement([turn] * 3) is None
    assert clock.disagreement([turn, turn, clock.TimedTurn(10, 0.5, 1.0)]) is None  # lost its core once
    assert "0.7" in (clock.disagreement([clock.TimedTurn(10, 0.7, 1.0)]) or "")
    assert clock.disagreement([clock.TimedTurn(10, 1.2, 1.0)]) is not None
    assert clock.disagreement([clock.TimedTurn(10, 0.0005, 0.0015)]) is None  # too short to tell
    assert clock.disagreement([]) is None
    short = clock.TimedTurn(1, 0.0008, 0.0009)
    assert clock.disagreement([short] * 4 + [clock.TimedTurn(1, 0.0009, 0.0149)]) is None  # lost its core once


def test_a_step_faster_than_memory_is_told():
    mib = 1 << 20
    assert bandwidth.too_fast(0.1, 1000 * mib, 10e9, 32 * mib) is None
    told = bandwidth.too_fast(0.001, 1000 * mib, 10e9, 32 * mib)
    assert told is not None
    assert "1000 MiB" in told
    assert bandwidth.copy_bytes_per_s(torch.device("cpu"), 1 << 20) > 1e7


def test_a_wrong_answer_ends_with_its_name_finding_and_remedy():
    findings = Findings()
    findings.passed("replicas", "the same")
    findings.wrong("work", "nothing changed", "update something")
    findings.passed("work", "it changed after all")
    with pytest.raises(WrongAnswerError, match="check of work: nothing changed; update something") as caught:
        findings.settle()
    assert _cause(caught.value)[0] == "wrong"
    assert findings.facts()["work"] == {"verdict": "wrong", "detail": "nothing changed"}
    assert exit_code(["completed", "wrong", "failed"]) == 4


def record(
    optimizer: str, losses, outcome="completed", arguments=None, traits: OptimizerTraits | None = None, **spec
) -> RunRecord:
    metric = Metric(name="train_loss", unit="1", better="lower", value=losses[-1], series=tuple(losses))
    step = Metric(name="step_time_s", unit="s", better="lower", value=0.1)
    fields = {"workload": "gpt", "strategy": "single", "precision": "fp32", "seed": 0, "optimizer": optimizer}
    return RunRecord(
        run_id="r",
        spec={**fields, **spec},
        outcome=outcome,
        facts={
            "optimizer": {"arguments": arguments or {}},
            **({"optimizer_traits": traits.model_dump(mode="json")} if traits else {}),
        },
        metrics={"train_loss": metric, "step_time_s": step},
    )


def test_curves_of_one_algorithm_part_in_the_step_that_is_named():
    good = [5.0 * 0.95**step for step in range(30)]
    rounded = [loss * (1 + 1e-6) for loss in good]
    other = [loss * (1.2 if step >= 9 else 1.0) for step, loss in enumerate(good)]
    assert curves.parted([record("adamw/a", good), record("adamw/b", rounded)]) == []
    (note,) = curves.parted([record("adamw/a", good), record("adamw/b", rounded), record("adamw/c", other)])
    assert "part in step 10: adamw/a, adamw/b 3.15" in note
    assert "adamw/c 3.78" in note
    assert "optbench verify --optimizer adamw/a --optimizer adamw/b --optimizer adamw/c" in note


def test_chaos_grows_from_rounding_and_is_no_fault_while_a_worse_mean_is():
    good = [5.0 * 0.95**step for step in range(40)]
    chaos = [loss * (1 + min(0.1, 1e-7 * 8.0**step) * (-1) ** step) for step, loss in enumerate(good)]
    worse = [loss * (1 + min(1.0, 1e-7 * 8.0**step)) for step, loss in enumerate(good)]
    assert curves.parted([record("adagrad/a", good), record("adagrad/b", chaos)]) == []
    (note,) = curves.parted([record("adagrad/a", good), record("adagrad/b", worse)])
    assert "part in step 4" in note


def test_a_small_systematic_difference_shows_in_the_first_steps():
    good = [5.0 * 0.95**step for step in range(40)]
    beta = [loss * (1 + 6e-5 * (step > 1)) for step, loss in enumerate(good)]
    (note,) = curves.parted([record("adamw/a", good), record("adamw/b", beta)])
    assert "part in step 3" in note


CODES = OptimizerTraits(algorithm="adamw", granularity="element", state_dtypes=("uint8",))
PLAIN = OptimizerTraits(algorithm="adamw", granularity="element")


def test_state_in_codes_widens_the_band_by_the_traits_whatever_the_names_are():
    good = [5.0 * 0.95**step for step in range(40)]
    beta = [loss * (1 + 6e-5 * (step > 1)) for step, loss in enumerate(good)]
    coded = [record("mine:Compact", each, traits=CODES) for each in (good, beta)]
    assert curves.parted(coded) == []
    assert curves.parted([record("adamw/foreach", good, traits=PLAIN), coded[1]]) == []
    for name in ("adamw/torchao-cpu-offload", "adamw/bitsandbytes-8bit", "mine:Adam4bit"):
        assert curves.parted([record(name, each, traits=PLAIN) for each in (good, beta)])
    jump = [loss * (1.5 if step >= 9 else 1.0) for step, loss in enumerate(good)]
    for precision in curves.ROUNDING:  # nor is it so wide anywhere that nothing shows
        assert curves.parted([record("a:B", each, traits=CODES, precision=precision) for each in (good, jump)])


def test_offloaded_state_is_declared_as_it_is():
    declared = OPTIMIZERS.get("adamw/torchao-cpu-offload").traits.state_dtypes
    assert curves.band(["fp32"], declared) == curves.band(["fp32"], ["float32"]) == 1e-5
    assert curves.band(["fp32"], OPTIMIZERS.get("adamw/torchao-8bit").traits.state_dtypes) > 1e-3


def test_runs_and_arms_are_held_to_one_band():
    for name in ("adamw/foreach", "adamw/torchao-8bit", "adamw/torchao-cpu-offload", "adamw/bitsandbytes-8bit"):
        arm = Arm(name=name, spec=RunSpec(workload="gpt", optimizer=name))
        states = OPTIMIZERS.get(name).traits.state_dtypes
        sitting = Sitting([arm, arm], None, None, 0.0, unlike=False, fresh=False, resident=True)
        sitting._built = dict.fromkeys((0, 1), Built(1.0, **baton._declared(arm.spec)))
        assert sitting._band(1) == curves.band(["fp32"], [*states, *states])


def test_a_class_from_elsewhere_is_held_to_the_algorithm_that_it_declares():
    good, other = [5.0, 4.0, 3.0], [5.0, 4.5, 4.0]
    one = record("adamw/foreach", good, arguments={"lr": 0.001}, traits=PLAIN)
    assert curves.parted([one, record("mine:Adam", other, arguments={"lr": 0.001}, traits=PLAIN)])
    assert curves.parted([one, record("mine:Adam", other, arguments={"lr": 0.001})]) == []
    fixed = record("mine:Adam", other, arguments={"lr": 0.001, "rho": 0.5}, traits=PLAIN)
    assert curves.parted([one, fixed]) == []


def test_curves_of_other_algorithms_seeds_strategies_or_numbers_are_not_compared():
    good, other = [5.0, 4.0, 3.0], [5.0, 4.5, 4.0]
    one = record("adamw/a", good, arguments={"lr": 0.001})
    for another in (
        record("sgd/a", other),
        record("adamw/b", other, seed=1),
        record("adamw/b", other, strategy="ddp"),
        record("adamw/b", other, arguments={"lr": 0.002}),
        record("adamw/b", other, outcome="failed"),
    ):
        assert curves.parted([one, another]) == []
    assert curves.parted([one, record("adamw/b", other, arguments={"lr": 0.001, "foreach": True})])


def test_curves_of_an_algorithm_that_amplifies_rounding_may_part_and_its_rows_say_so():
    good = [5.0 * 0.95**step for step in range(30)]
    apart = [loss * (1 + (0.02 if step > 1 else 0.0)) for step, loss in enumerate(good)]
    one, other = record("soap/a", good), record("soap/b", apart)
    assert len(curves.parted([one, other])) == 1
    proof = {"outcome": "passed", "amplification": 0.58}
    proved = [each.model_copy(update={"verification": proof}) for each in (one, other)]
    assert curves.parted(proved) == []
    console = Console(width=400, file=io.StringIO())
    console.print(render(proved))
    assert console.file.getvalue().count("changes an update by 58.0% of its size") == 2
    assert curves.amplifies(one) is None
    assert curves.amplifies(one.model_copy(update={"verification": {**proof, "amplification": 3e-6}})) is None
    worse = record("soap/c", [loss * 2 for loss in good]).model_copy(update={"verification": proof})
    assert len(curves.parted([proved[0], worse])) == 1


def test_the_speed_of_a_wrong_run_is_no_result():
    wrong = record("adamw/a", [5.0], outcome="wrong")
    shown = results_of(wrong)
    assert shown.metrics == {}
    assert "not shown: the answer is wrong" in shown.notes[-1]
    assert results_of(record("adamw/a", [5.0])).metrics
    assert row_of("r", wrong.model_dump()).step_time_s is None
    assert row_of("r", record("adamw/a", [5.0]).model_dump()).step_time_s == 0.1


@pytest.mark.parametrize(
    ("parameter", "gradient", "seen"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 3), "contiguous"),
        (torch.zeros(3, 4).t(), torch.zeros(3, 4).t(), "alike"),
        (torch.zeros(4, 3), torch.zeros(3, 4).t(), "any"),
        (torch.zeros(4, 3), torch.zeros(1, 3).expand(4, 3), "any"),
        (torch.zeros(4, 6)[:, ::2], torch.zeros(4, 6)[:, ::2], "any"),
        (torch.zeros(1, 5), torch.zeros(5, 1).t(), "contiguous"),
    ],
)
def test_how_parameters_and_gradients_lie_is_seen_and_held_to_what_is_declared(parameter, gradient, seen):
    parameter = torch.nn.Parameter(parameter)
    optimizer = torch.optim.SGD([parameter], lr=0.1, foreach=False)
    watch = gradients.GradientWatch()
    watch.next_step()
    parameter.grad = gradient
    optimizer.step()
    watch.close()
    assert watch.steps[0].lying == seen
    assert gradients.misread([watch.steps], "any") is None
    assert (gradients.misread([watch.steps], "alike") is not None) == (seen == "any")
    assert (gradients.misread([watch.steps], "contiguous") is not None) == (seen != "contiguous")
