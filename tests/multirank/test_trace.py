"""The traced pass with real parts: what two ranks hold and send, against theory and against known faults."""

from __future__ import annotations

import pytest
from conftest import Optbench

MIB = 1 << 20
ENGINES = ("parameters", "gradients", "state")


def cell(optimizer: str, strategy: str, workload: str = "gpt", **more) -> dict:
    ranks = 1 if strategy == "single" else 2
    return {
        "workload": workload,
        "optimizer": optimizer,
        "strategy": strategy,
        "world_size": ranks,
        "steps": 4,
        "global_batch": 8,
        **more,
    }


CELLS = {
    "ddp": cell("adamw/foreach", "ddp"),  # the first: what a process holds is told from nothing before
    "fsdp2": cell("adamw/foreach", "fsdp2"),
    "foreach": cell("adamw/foreach", "single"),
    "fused": cell("adamw/fused", "single"),
    "lbfgs": cell("lbfgs/forloop", "ddp", "linear_regression"),
    "no model": cell("adamw/fused", "single", "parameters", size="resnet-50"),
    "BreaksLater": cell("sgd/foreach", "leaky:BreaksLater", "cnn"),
    "Leaky": cell("sgd/foreach", "leaky:Leaky", "cnn"),
}


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    return Optbench(tmp_path_factory.mktemp("traces") / "results")


@pytest.fixture(scope="module")
def records(user):
    return dict(zip(CELLS, user.together(*CELLS.values()), strict=True))


def value(record: dict, name: str):
    return record["metrics"][name]["value"]


def adds_up(record: dict) -> None:
    """Check every rank: the categories at the peak are the peak, and no category is larger there than ever."""
    metrics = record["metrics"]
    at_peak = {name for name in metrics if name.startswith("ledger_") and name.endswith("_at_peak_bytes")}
    for rank, peak in enumerate(metrics["ledger_peak_bytes"]["per_rank"]):
        assert sum(metrics[name]["per_rank"][rank] for name in at_peak) == peak
        for name in at_peak:
            largest = metrics[name.replace("_at_peak", "")]["per_rank"][rank]
            assert largest is None or largest >= metrics[name]["per_rank"][rank]


def is_as_predicted(record: dict, *categories: str) -> None:
    metrics = record["metrics"]
    for category in categories:
        measured, expected = (metrics[f"ledger_{category}{kind}_bytes"]["per_rank"] for kind in ("", "_expected"))
        assert measured == pytest.approx(expected, rel=0.1, abs=4096), category
    for name in metrics:
        if name.startswith("communication_") and name.endswith("_expected_bytes"):
            counted = metrics[name.replace("_expected_", "_payload_")]["per_rank"]
            assert counted == pytest.approx(metrics[name]["per_rank"], rel=0.1, abs=4096), name


def follows_its_rule(record: dict) -> None:
    assert record["outcome"] == "completed", record["reason"]
    adds_up(record)
    is_as_predicted(record, *ENGINES)
    assert record["notes"] == []
    assert value(record, "ledger_unattributed_bytes") < 0.1 * value(record, "ledger_peak_bytes")
    assert value(record, "ledger_activations_bytes") > value(record, "ledger_parameters_bytes")
    assert value(record, "communication_payload_bytes") > 0
    assert value(record, "communication_time_s") is None  # no kernels to see on CPUs


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ledger_and_payload_are_what_the_strategys_rule_says(records, strategy):
    record = records[strategy]
    follows_its_rule(record)
    if strategy == "ddp":
        assert value(record, "ledger_rss_above_imports_bytes") > value(record, "ledger_peak_bytes")
        assert value(record, "communication_all_reduce_float32_per_step") == 1
        assert value(record, "communication_wire_bytes") == value(record, "communication_payload_bytes")


@pytest.mark.exhaustive
def test_ledger_and_payload_of_zero_redundancy_are_what_its_rule_says(optbench):
    (record,) = optbench.together(cell("adamw/foreach", "zero-redundancy"))
    follows_its_rule(record)


def test_foreach_takes_a_copy_that_fused_does_not(records):
    foreach, fused = records["foreach"], records["fused"]
    copy = value(foreach, "ledger_parameters_bytes")
    assert value(foreach, "ledger_temporaries_bytes") == pytest.approx(copy, rel=0.1)
    assert value(fused, "ledger_temporaries_bytes") < 0.01 * copy


def keeps_10_mib_a_step(record: dict) -> int:
    """Check the growth; return the bytes that were sent beyond what was expected."""
    adds_up(record)
    assert value(record, "ledger_unattributed_growth_bytes") == pytest.approx(10 * MIB, rel=0.01)
    assert value(record, "ledger_unattributed_bytes") == pytest.approx(6 * 10 * MIB, rel=0.02)  # 4 steps and 2
    expected = value(record, "communication_all_reduce_expected_bytes")
    return value(record, "communication_all_reduce_payload_bytes") - expected


def test_an_engine_that_keeps_10_mib_a_step_shows_them_and_its_all_reduce(records):
    record = records["Leaky"]
    assert keeps_10_mib_a_step(record) == 2 * MIB
    assert value(record, "communication_all_reduce_float64_per_step") == 1
    assert value(record, "communication_all_reduce_float64_payload_bytes") == 2 * MIB


@pytest.mark.exhaustive
def test_what_went_through_a_collective_and_is_kept_is_no_buffer_of_it(optbench):
    (record,) = optbench.together(cell("sgd/foreach", "leaky:LeaksWhatItSends"))
    assert keeps_10_mib_a_step(record) == 10 * MIB


def test_a_leak_is_shown_as_unattributed(user, records):
    ran = user("show", records["Leaky"]["run_id"], "--results", str(user.results))
    shown = " ".join(ran.out.split())
    assert "unattributed" in shown
    assert "% of the peak" in shown


def test_a_pass_that_fails_on_one_rank_is_a_note_and_spoils_no_run(records):
    record = records["BreaksLater"]
    assert record["outcome"] == "completed"
    assert any("the traced steps failed on rank 1: RuntimeError: not one step more" in n for n in record["notes"])
    assert value(record, "step_time_s") > 0
    assert record["metrics"]["ledger_peak_bytes"]["per_rank"] == [None, None]
    assert value(record, "communication_payload_bytes") is None


@pytest.mark.parametrize("name", ["lbfgs", "no model"])
def test_steps_without_phases_of_their_own_are_traced_too(records, name):
    record = records[name]
    adds_up(record)
    assert record["notes"] == []
    assert value(record, "ledger_parameters_bytes") == value(record, "ledger_parameters_expected_bytes")
    assert value(record, "ledger_activations_bytes") is None
    if name == "no model":
        assert "train_loss" not in record["metrics"]
        assert value(record, "optimizer_time_s") > 0
    else:
        losses = record["metrics"]["train_loss"]["series"]
        assert len(set(losses)) == 4
        assert all(0 < loss < 20 for loss in losses)
        assert value(record, "forward_time_s") is None
