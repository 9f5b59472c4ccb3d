"""The traced pass in this process, on one rank."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from torch._C._autograd import DeviceType

from harness.contract import checked
from harness.interfaces import DataShard, Phase, World
from harness.registry import OPTIMIZERS, WORKLOADS, strategy
from harness.spec import RunSpec
from harness.tracing import recording
from harness.tracing.expected import expected
from harness.tracing.ledger import balance
from harness.tracing.recording import COUNTED_STEP, STEPS, record

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"), backend=None)


class Trained:
    """An engine after some steps, and the pass over it."""

    def __init__(self, optimizer: str, workload: str = "gpt", **fields) -> None:
        self.spec = RunSpec(workload=workload, optimizer=optimizer, global_batch=4, device="cpu", **fields)
        self.workload = WORKLOADS.get(workload)(size=None, data=None)
        self.optimizer = OPTIMIZERS.get(optimizer)
        self.engine = strategy("single").start(self.workload, self.optimizer, self.spec, ALONE)
        shard = DataShard(0, 1, 4, self.spec.accumulation, 0)
        self.batches = checked(self.workload.batches(shard), shard)
        for _ in range(3):
            self.engine.train_step([next(self.batches) for _ in range(self.spec.accumulation)], lambda _: None)

    def trace(self):
        return record(
            self.engine, self.batches, self.spec.accumulation, ALONE, [self.workload, self.batches], lambda: 1
        )

    def ledger(self):
        found = self.trace()
        return balance(found.storages, found.marks, COUNTED_STEP, lambda device: device == "cpu")


def test_every_phase_of_every_step_is_marked_in_order():
    marks = Trained("sgd/foreach", accumulation=2).trace().marks
    halves = [Phase.FORWARD, Phase.BACKWARD] * 2
    assert [mark.phase for mark in marks] == [Phase.DATA, *halves, Phase.OPTIMIZER, Phase.END] * STEPS
    assert [mark.time_ns for mark in marks] == sorted(mark.time_ns for mark in marks)


def test_memory_is_claimed_by_the_live_objects_to_the_byte():
    trained = Trained("adamw/foreach")
    ledger = trained.ledger()
    theory = expected(strategy("single"), trained.workload, trained.optimizer.traits, trained.spec, ALONE)
    assert ledger.largest["parameters"] == theory.held_bytes["parameters"]
    assert ledger.largest["gradients"] == theory.held_bytes["gradients"]
    assert ledger.largest["state"] == pytest.approx(theory.held_bytes["state"], rel=1e-3)  # and the step counts
    assert sum(ledger.at_peak.values()) == ledger.peak_bytes
    assert ledger.unattributed_growth_bytes == 0


def test_tensors_that_python_holds_and_nobody_claims_are_unattributed_though_older_than_the_trace():
    trained = Trained("sgd/foreach")
    gc.collect()  # what earlier tests left in cycles would go in between
    before = trained.ledger().largest["unattributed"]
    kept = torch.ones(1 << 20)
    gc.freeze()  # as the worker does; the pass must see it all the same
    assert trained.ledger().largest["unattributed"] - before == kept.untyped_storage().nbytes()


def test_memory_that_torch_did_not_allocate_is_left_to_the_resident_size():
    trained = Trained("sgd/foreach")
    before = trained.ledger().peak_bytes
    other = torch.frombuffer(bytearray(4 << 20), dtype=torch.float32)
    assert trained.ledger().peak_bytes == before
    assert other.numel() == 1 << 20


def test_gradients_left_from_the_step_before_are_not_counted_beside_the_new_ones():
    trained = Trained("sgd/foreach")
    parameters = sum(tensor.nbytes for category, tensor in trained.engine.tensors() if category == "parameters")
    assert trained.ledger().largest["gradients"] == parameters


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_the_pass_compiles_nothing_again():
    from torch._dynamo.utils import counters

    trained = Trained("adamw/compiled")
    before = dict(counters["stats"])
    assert before["unique_graphs"] > 0
    trained.trace()
    assert dict(counters["stats"]) == before


def test_an_engine_or_workload_that_raises_is_passed_on():
    trained = Trained("sgd/foreach")
    trained.batches = iter(())
    with pytest.raises(StopIteration):
        trained.trace()


class DeviceEvent:
    """What the profiler tells of something on the device's timeline, as kineto has it."""

    def __init__(self, name, start, duration, *, annotation=False):
        self.told = {"name": name, "start_ns": start, "duration_ns": duration, "is_user_annotation": annotation}

    def device_type(self):
        return DeviceType.CUDA

    def __getattr__(self, name):
        return lambda: self.told[name]


def test_ranges_on_the_devices_timeline_are_no_kernels():
    """They lie over the collectives that they launched, and would hide them whole."""
    events = [
        DeviceEvent("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 100, 50),
        DeviceEvent("nccl:all_reduce", 90, 70, annotation=True),
        DeviceEvent("Optimizer.step#AdamW.step", 0, 400, annotation=True),
        DeviceEvent("FSDP::post_backward", 80, 100, annotation=True),
        DeviceEvent("gemm", 120, 10),
        DeviceEvent("Memcpy HtoD", 100, 10),
    ]
    collective, other = recording._kernels(SimpleNamespace(events=lambda: events), [(0, 1000)])
    assert collective == ((100, 150),)
    assert other == ((120, 130),)
