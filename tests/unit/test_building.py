"""Kernels are built before what needs them is proved or trained; the compiler and the ranks are doubles."""

from __future__ import annotations

import pytest

from harness import kernels
from harness.errors import OptbenchError
from harness.machine import Machine
from harness.plan import Cell, Plan
from harness.spec import RunSpec
from harness.store import Store
from harness.verbs import comparing, training, verifying
from harness.verification import shelf
from harness.verification.certificate import Certificate
from harness.verification.identity import key, plain_job
from launch import local, proving
from launch.building import Kernels

MACHINE = Machine(
    hostname="here", system="Linux", cpu="a processor", cores=2, memory_bytes=2**34, python="3.12", torch="2.13.0"
)
NO_COMPILER = "the compiler ended with code 1; its output: /cache/fused_adam.log"


def spec(optimizer, **fields):
    fields = {"workload": "linear_regression", "strategy": "single", "device": "cpu", "world_size": 1, **fields}
    return RunSpec(optimizer=optimizer, **fields)


def cell(index, optimizer, kernels=(), **fields):
    return Cell(index=index, spec=spec(optimizer, **fields), kernels=kernels)


@pytest.fixture
def events(monkeypatch):
    """What was built, proved and trained, in order; ``broken`` names kernels that cannot be built."""

    class Events(list):
        broken = frozenset()

    seen = Events()

    def ensure(names, announce, device):
        seen.append(("build", *names, device))
        announce(f"Compiling {', '.join(names)}")
        return {name: NO_COMPILER if name in seen.broken else None for name in names}

    def prove(jobs, done, quiet_s, machine):
        assert machine is MACHINE, "else a rank would look, and its peers wait"
        seen.extend(("prove", job.spec.optimizer) for job in jobs)
        for job in jobs:
            done(job, Certificate(**told(job.spec), outcome="passed", subject={"sources": {}}))

    def run(spec, folder, steps, master_port):
        seen.append(("train", spec.optimizer))
        return local.Ended("completed", None)

    monkeypatch.setattr(kernels, "ensure", ensure)
    monkeypatch.setattr(kernels, "default_device", lambda: "cuda")
    monkeypatch.setattr(proving, "prove", prove)
    monkeypatch.setattr(local, "run", run)
    return seen


def told(spec):
    return {"optimizer": spec.optimizer, "strategy": spec.strategy, "precision": spec.precision, "reference": None}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def train(store, *cells, proving=MACHINE):
    plan = Plan(cells=cells)
    log = store.new_sweep("night", [each.spec for each in cells])
    training.run(plan, store, log, None, proving=proving, as_json=True)
    return [store.read(each) for each in store.read_sweep(log.sweep_id).run_ids]


def test_rows_without_kernels_come_first_and_the_others_are_built_before_they_are_proved(events, store, capsys):
    sweep = (
        cell(0, "adamw/deepspeed", ("fused_adam",)),
        cell(1, "adamw/foreach"),
        cell(2, "adamw/deepspeed-cpu", ("cpu_adam",)),
    )
    records = train(store, *sweep)
    assert events == [
        *[("prove", "adamw/foreach"), ("train", "adamw/foreach")],
        ("build", "fused_adam", "cpu_adam", "cpu"),
        *[("prove", "adamw/deepspeed"), ("prove", "adamw/deepspeed-cpu")],
        *[("train", "adamw/deepspeed"), ("train", "adamw/deepspeed-cpu")],
    ]
    assert [record.verification["outcome"] for record in records] == ["passed"] * 3
    assert "Compiling fused_adam, cpu_adam" in capsys.readouterr().err


def test_a_kernel_that_cannot_be_built_gives_its_reason_in_row_and_proof_and_is_tried_again(events, store):
    events.broken = {"fused_adam"}
    sweep = (cell(0, "adamw/deepspeed", ("fused_adam",)), cell(1, "adamw/deepspeed-cpu", ("cpu_adam",)))
    broken, sound = train(store, *sweep)
    assert (broken.outcome, broken.reason) == ("failed", NO_COMPILER)
    assert broken.verification["outcome"] == "failed"
    assert (broken.verification["certificate"], broken.verification["reason"]) == (None, NO_COMPILER)
    assert sound.verification["outcome"] == "passed"
    assert events == [
        ("build", "fused_adam", "cpu_adam", "cpu"),
        *[("prove", "adamw/deepspeed-cpu"), ("train", "adamw/deepspeed-cpu")],
    ]
    events.clear()
    events.broken = frozenset()
    mended, _ = train(store, *sweep)
    assert mended.verification["outcome"] == "passed"
    assert ("prove", "adamw/deepspeed") in events
    assert ("prove", "adamw/deepspeed-cpu") not in events  # it is stored


def test_without_proofs_kernels_are_built_all_the_same(events, store):
    train(store, cell(0, "adamw/deepspeed", ("fused_adam",)), proving=None)
    assert events == [("build", "fused_adam", "cpu"), ("train", "adamw/deepspeed")]


@pytest.mark.parametrize("strategy", ["single", "zero1"])
def test_what_is_asked_of_verify_is_built_first(events, store, strategy):
    cells = (cell(0, "adamw/deepspeed", ("fused_adam",), strategy=strategy),)
    jobs, _ = verifying.jobs(Plan(cells=cells), None)
    ((_, made),) = verifying.certified(jobs, MACHINE, store, lambda _: None)
    assert made.outcome == "passed"
    assert [each[:2] for each in events] == [("build", "fused_adam"), ("prove", "adamw/deepspeed")]


def test_a_comparison_does_not_start_without_its_kernels(events):
    events.broken = {"fused_adam"}
    cells = [cell(0, "adamw/deepspeed", ("fused_adam",)), cell(1, "adamw/foreach")]
    with pytest.raises(OptbenchError, match="its output: /cache/fused_adam"):
        comparing.build_kernels(cells, Kernels(lambda _: None))


def test_kernels_of_a_cell_planned_in_another_place_are_built_where_the_optimizer_is_unknown(events):
    elsewhere = cell(0, "adamw/deepspeed", ("fused_adam",))
    unknown = elsewhere.spec.model_copy(update={"optimizer": "another_place:Adam", "strategy": "another_place:S"})
    comparing.build_kernels([elsewhere.model_copy(update={"spec": unknown})], Kernels(lambda _: None))
    assert events == [("build", "fused_adam", "cpu")]


def test_kernels_are_kept_apart_by_device_and_none_is_tried_twice(events):
    events.broken = {"fused_adam"}
    built = Kernels(lambda _: None)
    here, there = spec("adamw/deepspeed"), spec("adamw/deepspeed", device="accelerator")
    assert built.build([here, there, spec("adamw/foreach")]) == [NO_COMPILER, NO_COMPILER, None]
    assert built.build([there, spec("adamw/deepspeed-cpu"), here]) == [NO_COMPILER, None, NO_COMPILER]
    assert events == [
        ("build", "fused_adam", "cpu"),
        ("build", "fused_adam", "cuda"),
        ("build", "cpu_adam", "cpu"),
    ]


@pytest.mark.parametrize("outcome", ["unsupported", "failed"])
def test_a_stored_proof_that_could_not_be_made_is_not_believed(events, store, outcome):
    """An optbench that stored such certificates has left them in people's results."""
    job = plain_job(spec("adamw/deepspeed"))
    known = {**told(job.spec), "key": key(job, MACHINE), "subject": {"sources": {}}}
    shelf.save(store, Certificate(**known, outcome=outcome, reason="kernel fused_adam is not compiled yet"))
    ((_, made),) = verifying.certified([job], MACHINE, store, lambda _: None)
    assert made.outcome == "passed"


@pytest.mark.parametrize("outcome", ["unsupported", "failed"])
def test_a_proof_that_cannot_be_made_is_not_stored(events, store, monkeypatch, outcome):
    job = plain_job(spec("adamw/foreach"))

    def prove(jobs, done, quiet_s, **_):
        done(job, Certificate(**told(job.spec), outcome=outcome, reason="no", subject={"sources": {}}))

    monkeypatch.setattr(proving, "prove", prove)
    ((name, made),) = verifying.certified([job], MACHINE, store, lambda _: None)
    assert (name, made.outcome) == ("", outcome)
    assert not list(store.root.glob("certificate-*"))


def test_what_takes_its_gradients_from_backward_is_trained_without_a_proof_that_has_none(events, store):
    offloaded = cell(0, "adamw/torchao-cpu-offload", device="accelerator")
    able, refused = verifying.jobs(Plan(cells=(offloaded,)), None)
    assert able == []
    assert "takes gradients by hooks while backward runs" in refused[0].reason
    (record,) = train(store, offloaded)
    assert record.verification == {"outcome": "not verified", "reason": refused[0].reason}
    assert events == [("train", "adamw/torchao-cpu-offload")]
