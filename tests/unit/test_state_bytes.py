"""What counts as an optimizer's state, wherever it keeps it; what is kept where nobody finds it."""

from __future__ import annotations

import gc

import holders
import pytest
import torch

from harness.checks.fingerprint import forget
from harness.collectors.memory import Memory, occupied
from harness.interfaces import DataShard, World
from harness.registry import OPTIMIZERS, WORKLOADS, strategy
from harness.spec import RunSpec
from harness.tracing.reading import Traced
from harness.tracing.recording import record

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"), backend=None)
LINE = 2 * 4
"""Bytes of a line's weight and bias, and of what holds one number for each."""


class Trained:
    """A line after three steps."""

    def __init__(self, optimizer: str) -> None:
        spec = RunSpec(workload="linear_regression", optimizer=optimizer, global_batch=4, device="cpu")
        self.workload = WORKLOADS.get("linear_regression")()
        self.engine = strategy("single").start(self.workload, OPTIMIZERS.get(optimizer), spec, ALONE)
        self.batches = iter(self.workload.batches(DataShard(0, 1, 4, 1, 0)))
        for _ in range(3):
            self.engine.train_step([next(self.batches)], lambda _: None)

    def held(self) -> int:
        return occupied(self.engine.tensors())["state"]

    def unclaimed(self) -> int:
        gc.collect()
        forget()
        trace = record(self.engine, self.batches, 1, ALONE, [self.workload, self.batches], lambda: 1)
        (reading,) = Memory().traced(Traced(trace, None, ALONE, 0))
        return reading.value


@pytest.mark.parametrize("kind", holders.REACHED, ids=lambda kind: kind.__name__)
def test_state_counts_wherever_it_can_be_reached_and_nothing_counts_twice(kind):
    trained = Trained(f"holders:{kind.__name__}")
    held = occupied(trained.engine.tensors())
    assert held == {
        "parameters": LINE, "gradients": LINE, "master": 0, "state": LINE, "buffers": 0, "communication": 0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def others() -> int:
    """What other tests of this process keep in globals."""
    return Trained("sgd/forloop").unclaimed()


@pytest.mark.parametrize("kind", [holders.Deque, holders.Array, holders.Generator], ids=lambda kind: kind.__name__)
def test_of_state_that_is_reached_nothing_is_unclaimed(kind, others):
    assert Trained(f"holders:{kind.__name__}").unclaimed() - others == 0


@pytest.mark.parametrize("kind", holders.HIDDEN, ids=lambda kind: kind.__name__)
def test_state_that_cannot_be_reached_is_seen_in_the_traced_steps(kind, others):
    trained = Trained(f"holders:{kind.__name__}")
    assert trained.held() == 0
    assert trained.unclaimed() - others == LINE


def test_state_that_no_traced_step_touches_is_seen_too(others):
    assert Trained("holders:Snapshots").unclaimed() - others >= 4 << 16


def test_an_optimizer_inside_of_another_one_counts_with_its_wrapper():
    assert Trained("holders:SlowWeights").held() == LINE + 2 * LINE + 2 * 4  # slow; two moments; two step counts
