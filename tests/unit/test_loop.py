from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.collectors.convergence import Convergence
from harness.collectors.peaks import named_peak
from harness.collectors.timing import Timing
from harness.interfaces import DataShard, Observed, Phase, StepResult, Target, WorkloadSize, WorkloadTraits, World
from harness.loop import on_device, steps, turn_ends, turns
from harness.parameter_groups import parameter_groups
from harness.schedule import factor
from harness.spec import RunSpec

TRAITS = WorkloadTraits(
    summary="",
    source="",
    sizes={
        "s": WorkloadSize(
            parameters=1,
            global_batch=8,
            tokens_per_sample=4,
            target=Target(metric="validation_loss", value=0.5, better="lower"),
        )
    },
    default_size="s",
    metrics={"validation_loss": "lower"},
    embeddings=("embed.*",),
    heads=("head.*",),
    sparse_parameters=("table*",),
)


def spec(**fields) -> RunSpec:
    return RunSpec(**{"workload": "w", "optimizer": "o", "global_batch": 8, **fields})


def observed(run: RunSpec, engine=None, flops=None) -> Observed:
    return Observed(run, TRAITS, engine, World(0, 1, 0, torch.device("cpu"), None), time.time() - 5.0, flops)


class Sleeper:
    """An engine whose phases take known times."""

    def __init__(self, *, separable: bool = True) -> None:
        self.factors, self.separable = [], separable

    def set_lr(self, factor):
        self.factors.append(factor)

    def train_step(self, micro_batches, mark):
        if not self.separable:
            mark(Phase.WORK)
            return StepResult(None)
        for _ in micro_batches:
            mark(Phase.FORWARD)
            time.sleep(0.002)
            mark(Phase.BACKWARD)
        mark(Phase.OPTIMIZER)
        return StepResult(torch.tensor(float(len(self.factors))), torch.tensor(2.0))


def batches():
    while True:
        yield {"x": torch.zeros(4)}


def readings(found) -> dict:
    return {reading.info.name: reading for reading in found}


def test_the_loop_marks_phases_adds_up_micro_batches_and_keeps_every_sample():
    run, engine = spec(steps=4, warmup_steps=1, accumulation=2), Sleeper()
    timing, convergence = Timing(), Convergence()
    for collector in (timing, convergence):
        collector.start(observed(run, engine, flops=1000))
    results = list(steps(engine, batches(), run, torch.device("cpu"), [timing, convergence]))
    assert len(results) == 4
    found = readings([*timing.turn(), *convergence.turn(), *timing.stop(), *convergence.stop()])
    assert found["train_loss"].series == [1.0, 2.0, 3.0, 4.0]
    assert found["grad_norm"].series == [2.0] * 4
    for name in ("step_time_s", "forward_time_s", "backward_time_s", "optimizer_time_s", "data_time_s"):
        assert len(found[name].series) == 4
    for step, forward in zip(found["step_time_s"].series, found["forward_time_s"].series, strict=True):
        assert step > forward > 0.0039
    step = found["step_time_s"].series[0]
    assert found["samples_per_s"].series[0] == pytest.approx(8 / step)
    assert found["tokens_per_s"].series[0] == pytest.approx(32 / step)
    assert found["model_flops_per_s"].series[0] == pytest.approx(1000 / step)
    assert "mfu" not in found  # no data sheet for CPUs
    assert 5.0 < found["startup_time_s"].value < 60.0
    assert not [r for r in timing.turn() if r.series]  # nothing is reported twice


def test_a_phase_that_cannot_be_separated_is_unknown_not_zero():
    run, timing = spec(steps=2, warmup_steps=0), Timing()
    timing.start(observed(run))
    list(steps(Sleeper(separable=False), batches(), run, torch.device("cpu"), [timing]))
    found = readings(timing.turn())
    assert found["forward_time_s"].series == [None, None]
    assert all(value > 0 for value in found["step_time_s"].series)


def test_target_and_evaluations_are_noted_at_the_first_step_that_meets_it():
    convergence = Convergence()
    convergence.start(observed(spec()))
    for step, value in ((10, 0.9), (20, math.nan), (30, 0.4), (40, 0.3)):
        convergence.evaluated(step, step / 10, {"validation_loss": value})
    series = [r for r in convergence.turn() if r.info.name == "validation_loss"]
    assert [r.steps for r in series] == [[10], [20], [30], [40]]
    found = readings(convergence.stop())
    assert (found["steps_to_target"].value, found["time_to_target_s"].value) == (30, 3.0)


def test_a_target_that_is_not_met_is_unknown():
    convergence = Convergence()
    convergence.start(observed(spec()))
    convergence.evaluated(10, 1.0, {"validation_loss": 0.9})
    assert readings(convergence.stop())["steps_to_target"].value is None


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 100), st.data())
def test_turns_cover_all_steps_and_end_at_warm_up_and_evaluations(count, turn, every, data):
    warmup = data.draw(st.integers(0, count - 1))
    run = spec(steps=count, turn_steps=turn, evaluate_every=every, warmup_steps=warmup)
    ends = list(turn_ends(run))
    assert ends == sorted(set(ends))
    assert ends[-1] == count
    assert {e for e in range(1, count + 1) if e % every == 0} <= set(ends)
    assert warmup == 0 or warmup in ends
    synchronised = []
    found = list(turns(iter([StepResult(None)] * count), run, lambda: synchronised.append(1)))
    assert [t.end for t in found] == ends
    assert len(synchronised) == len(ends)


@given(st.integers(1, 500))
def test_warm_up_then_cosine_rises_to_one_and_falls_towards_zero(count):
    factors = [factor("warmup-cosine", step, count) for step in range(count)]
    rise = max(1, count // 10)
    assert factors[rise - 1] == 1.0
    assert all(0.0 < f <= 1.0 for f in factors)
    assert factors[:rise] == sorted(factors[:rise])
    assert factors[rise:] == sorted(factors[rise:], reverse=True)
    assert [factor("constant", s, count) for s in range(count)] == [1.0] * count


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_shards_cover_each_global_batch_exactly_once(ranks, accumulation, micro):
    batch = ranks * accumulation * micro
    found = sorted(
        position
        for rank in range(ranks)
        for number in range(accumulation)
        for position in DataShard(rank, ranks, batch, accumulation, 0).positions(number)
    )
    assert found == list(range(batch))


def test_roles_come_from_patterns_and_vectors_do_not_decay():
    shapes = {"embed.weight": (4, 2), "a.weight": (2, 2), "a.bias": (2,), "head.weight": (4, 2), "table0": (9, 2)}
    frozen = torch.zeros(2, 2)
    named = [(name, torch.zeros(shape, requires_grad=True)) for name, shape in shapes.items()]
    groups = parameter_groups([*named, ("frozen", frozen)], TRAITS)
    assert {g.role: (g.names, g.decay) for g in groups} == {
        "embedding": (("embed.weight",), True),
        "matrix": (("a.weight",), True),
        "vector": (("a.bias",), False),
        "head": (("head.weight",), True),
        "sparse": (("table0",), True),
    }


def test_peaks_are_told_by_name_and_precision_and_unknown_ones_are_none():
    assert named_peak("NVIDIA H100 80GB HBM3", "bf16") == 989.4e12
    assert named_peak("NVIDIA H100 PCIe", "bf16") == 756e12
    assert named_peak("Tesla V100-SXM2-16GB", "bf16") is None
    assert named_peak("Some GPU", "fp32") is None


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA A10G", "NVIDIA A1000", "NVIDIA RTX A100X", "NVIDIA H2001"])
def test_a_device_does_not_get_the_peak_of_one_whose_name_is_part_of_its_own(name):
    assert named_peak(name, "bf16") is None


def test_the_peak_of_the_longest_name_is_taken():
    assert named_peak("NVIDIA L40S", "fp32") == 91.6e12
    assert named_peak("NVIDIA L4", "fp32") == 30.3e12
    assert named_peak("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert named_peak("NVIDIA GH200 480GB", "fp32") == named_peak("NVIDIA H200", "fp32") == 67e12


@pytest.fixture
def pinned(monkeypatch):
    """Pinning, which the CPU build cannot do, noted: the shapes that were pinned."""
    found = []

    def pin(tensor):
        found.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.shape[0] == 7)
    return found


def test_batches_go_to_a_cuda_device_from_pinned_memory(pinned):
    with FakeTensorMode():
        batch = {"x": torch.empty(4, 3), "already": torch.empty(7), "there": torch.empty(5, device="cuda:0")}
        moved = on_device(batch, torch.device("cuda", 0))
    assert pinned == [(4, 3)]
    assert {str(tensor.device) for tensor in moved.values()} == {"cuda:0"}


def test_batches_on_the_host_are_not_copied(pinned):
    batch = {"x": torch.ones(4, 3)}
    assert on_device(batch, torch.device("cpu"))["x"] is batch["x"]
    assert pinned == []
