"""What a plan says that a rank will hold, and what would make it fit."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from harness import memory, model_measuring
from harness.interfaces import WorkloadSize, WorkloadTraits, World
from harness.memory import PROCESS_BYTES, rank_bytes
from harness.model_facts import ModelFacts, model_key
from harness.model_measuring import measured
from harness.plan import plan, resolve, workload_traits
from harness.registry import OPTIMIZERS, WORKLOADS, strategy
from harness.spec import RunSpec
from harness.tracing.ledger import balance
from harness.tracing.recording import COUNTED_STEP, record
from tests.unit.test_plan import GIB, machine, only, spec

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"), backend=None)


def held(**fields) -> int:
    """Return the estimate above what a process holds anyway."""
    return only(spec(**{"world_size": 2, **fields})).estimated_bytes - PROCESS_BYTES


def test_the_estimate_follows_the_precision():
    large = {"size": "small", "global_batch": 8}
    assert held(precision="bf16", **large) < 0.9 * held(**large)
    assert held(precision="bf16-pure", **large) < held(precision="bf16", **large)
    state = {"size": "small", "global_batch": 2, "workload_options": {"activation_checkpointing": True}}
    assert held(precision="bf16-pure", **state) < held(precision="bf16-master", **state)


def test_recomputed_activations_are_not_held():
    options = {"activation_checkpointing": True}
    assert held(global_batch=64, workload_options=options) < 0.5 * held(global_batch=64)
    assert held(workload_options={"activation_checkpointing": False}) == held()


def test_a_rank_of_a_sharded_model_holds_less_the_more_ranks_there_are():
    of = {ranks: held(strategy="fsdp2", size="medium", world_size=ranks, global_batch=16) for ranks in (2, 4, 16)}
    assert of[2] > 1.5 * of[4] > 3 * of[16]
    kept = {ranks: held(strategy="ddp", size="medium", world_size=ranks, global_batch=ranks) for ranks in (2, 16)}
    assert kept[2] == kept[16]


def refusal(chosen: str, **fields) -> str:
    few = machine(accelerators=4)
    small = tuple(each.model_copy(update={"memory_bytes": 2 * GIB}) for each in few.accelerators)
    asked = spec(strategy=chosen, size="medium", world_size=4, **{"global_batch": 4, **fields})
    return only(asked, machine=few.model_copy(update={"accelerators": small})).unsupported


def test_the_remedy_points_the_right_way():
    sharded = refusal("fsdp2")
    assert "GiB a rank, 2.0 GiB on each accelerator available" in sharded
    assert "more ranks" in sharded
    assert "fewer ranks" not in sharded
    assert "a strategy that shards" not in sharded
    checkpointing, options = "activation_checkpointing=true", {"activation_checkpointing": True}
    assert checkpointing in refusal("ddp", global_batch=64)
    assert checkpointing not in refusal("ddp", global_batch=64, workload_options=options)
    assert checkpointing not in refusal("ddp")  # the update needs more than backward does
    assert "a strategy that shards parameters" in refusal("ddp")
    on_host = only(spec(size="medium", world_size=8, global_batch=8), available_bytes=4 * GIB).unsupported
    assert "fewer ranks" in on_host
    assert "more ranks" not in on_host
    assert "(8 ranks of" in on_host


def test_every_remedy_makes_the_estimate_smaller():
    doubled = held(strategy="fsdp2", size="medium", world_size=8, global_batch=4 * 2)
    assert doubled < held(strategy="fsdp2", size="medium", world_size=4, global_batch=8)


class Lying:
    """Declares nothing of what its model is."""

    traits = WorkloadTraits(
        summary="s", source="s", sizes={"s": WorkloadSize(parameters=0, global_batch=16)}, default_size="s"
    )

    def __init__(self, size=None, data=None) -> None:
        self._inner = WORKLOADS.get("gpt")(size="nano")

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_measured_parameters_count_and_declared_ones_that_differ_are_told():
    asked = RunSpec(workload="lies:Lying", optimizer="adamw/foreach", strategy="ddp", world_size=2, device="cpu")
    here = machine().model_copy(update={"workloads": {"lies:Lying": Lying.traits.model_dump(mode="json")}})
    believed = plan([asked], here).cells[0]
    facts = measured(Lying(), believed.spec, 8)
    assert facts.parameters == 1_032_576
    known = here.model_copy(update={"models": {model_key(believed.spec): facts}})
    told = plan([asked], known).cells[0]
    declared = only(spec(size="nano", world_size=2, global_batch=16))
    assert told.estimated_bytes == pytest.approx(declared.estimated_bytes, rel=0.05)
    assert told.notes == (
        "lies:Lying declares 0 parameters and its model has 1,032,576; correct the sizes in its traits",
    )
    failed = here.model_copy(update={"models": {model_key(believed.spec): ModelFacts(error="it raised")}})
    assert plan([asked], failed).cells[0].estimated_bytes == believed.estimated_bytes


@pytest.mark.parametrize(
    ("precision", "options"),
    [("fp32", {}), ("bf16", {}), ("bf16-master", {}), ("fp32", {"activation_checkpointing": True})],
)
def test_the_estimate_is_near_what_a_traced_step_holds(precision, options):
    optimizer, chosen, traits = OPTIMIZERS.get("adamw/foreach"), strategy("single"), workload_traits("gpt")
    asked = RunSpec(
        workload="gpt", optimizer="adamw/foreach", precision=precision, workload_options=options, global_batch=8
    )
    full = resolve(asked, traits, optimizer, chosen, machine())
    workload = WORKLOADS.get("gpt")(**options)
    engine = chosen.start(workload, optimizer, full, ALONE)
    from harness.interfaces import DataShard

    batches = iter(workload.batches(DataShard(0, 1, 8, 1, 0)))
    for _ in range(2):
        engine.train_step([next(batches)], lambda _: None)
    trace = record(engine, batches, 1, ALONE, [workload, batches], lambda: 1)
    claimed = balance(trace.storages, trace.marks, COUNTED_STEP, lambda device: device == "cpu")
    peak = claimed.peak_bytes - claimed.at_peak["unattributed"]
    estimate = rank_bytes(full, traits, optimizer.traits, chosen) - PROCESS_BYTES
    assert estimate == pytest.approx(peak, rel=0.25)


class Waiting(Lying):
    """Waits for data that never come."""

    def batches(self, shard):
        time.sleep(60)
        yield from self._inner.batches(shard)


def test_a_workload_that_waits_is_measured_without_its_step(monkeypatch):
    monkeypatch.setattr(model_measuring, "STEP_LIMIT_S", 0.2)
    facts = measured(Waiting(), only(spec(strategy="single")).spec, 8)
    assert (facts.parameters, facts.activation_bytes, facts.peak_bytes) == (1_032_576, None, None)


def test_a_rule_of_ours_that_fails_is_a_fault_and_a_plug_ins_is_no_rule(monkeypatch):
    def failing(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(type(strategy("ddp")), "predict", failing)
    with pytest.raises(ZeroDivisionError):
        held()
    monkeypatch.setattr(memory, "STRATEGIES", SimpleNamespace(own=dict))  # then ddp is somebody else's
    assert held() > 0
