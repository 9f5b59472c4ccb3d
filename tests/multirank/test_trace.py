"""The traced pass with real parts: what two ranks hold and send, against theory and against known faults."""

from __future__ import annotations

import pytest

MIB = 1 << 20
ENGINES = ("parameters", "gradients", "state")


def trained(optbench, *words: str, workload: str = "gpt", code: int = 0) -> dict:
    ran = optbench.run("--workload", workload, "--steps", "4", *words, "--json")
    assert ran.code == code, ran.err
    return optbench.show(ran.json["runs"][0]["run_id"])


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


@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp2", pytest.param("zero-redundancy", marks=pytest.mark.exhaustive)]
)
def test_ledger_and_payload_are_what_the_strategys_rule_says(optbench, strategy):
    record = trained(optbench, "--strategy", strategy, "--nproc", "2", "--optimizer", "adamw/foreach")
    adds_up(record)
    is_as_predicted(record, *ENGINES)
    assert record["notes"] == []
    assert value(record, "ledger_unattributed_bytes") < 0.1 * value(record, "ledger_peak_bytes")
    assert value(record, "ledger_activations_bytes") > value(record, "ledger_parameters_bytes")
    assert value(record, "ledger_rss_above_imports_bytes") > value(record, "ledger_peak_bytes")
    assert value(record, "communication_payload_bytes") > 0
    assert value(record, "communication_time_s") is None  # no kernels to see on CPUs
    if strategy == "ddp":
        assert value(record, "communication_all_reduce_float32_per_step") == 1
        assert value(record, "communication_wire_bytes") == value(record, "communication_payload_bytes")


def test_foreach_takes_a_copy_that_fused_does_not(optbench):
    words = ("--strategy", "single", "--nproc", "1", "--optimizer")
    foreach, fused = (trained(optbench, *words, f"adamw/{how}") for how in ("foreach", "fused"))
    copy = value(foreach, "ledger_parameters_bytes")
    assert value(foreach, "ledger_temporaries_bytes") == pytest.approx(copy, rel=0.1)
    assert value(fused, "ledger_temporaries_bytes") < 0.01 * copy


@pytest.mark.parametrize("strategy", ["Leaky", pytest.param("LeaksWhatItSends", marks=pytest.mark.exhaustive)])
def test_an_engine_that_keeps_10_mib_a_step_shows_them_and_its_all_reduce(optbench, strategy):
    record = trained(optbench, "--strategy", f"leaky:{strategy}", "--nproc", "2", "--optimizer", "sgd/foreach")
    adds_up(record)
    assert value(record, "ledger_unattributed_growth_bytes") == pytest.approx(10 * MIB, rel=0.01)
    assert value(record, "ledger_unattributed_bytes") == pytest.approx(6 * 10 * MIB, rel=0.02)  # 4 steps and 2
    expected = value(record, "communication_all_reduce_expected_bytes")
    extra = value(record, "communication_all_reduce_payload_bytes") - expected
    assert extra == (2 * MIB if strategy == "Leaky" else 10 * MIB)
    if strategy == "Leaky":
        assert value(record, "communication_all_reduce_float64_per_step") == 1
        assert value(record, "communication_all_reduce_float64_payload_bytes") == 2 * MIB
    shown = " ".join(optbench("show", record["run_id"], "--results", str(optbench.results)).out.split())
    assert "unattributed" in shown
    assert "% of the peak" in shown


def test_a_pass_that_fails_on_one_rank_is_a_note_and_spoils_no_run(optbench):
    record = trained(optbench, "--strategy", "leaky:BreaksLater", "--nproc", "2", "--optimizer", "sgd/foreach")
    assert record["outcome"] == "completed"
    assert any("the traced steps failed on rank 1: RuntimeError: not one step more" in n for n in record["notes"])
    assert value(record, "step_time_s") > 0
    assert record["metrics"]["ledger_peak_bytes"]["per_rank"] == [None, None]
    assert value(record, "communication_payload_bytes") is None


@pytest.mark.parametrize(
    ("workload", "optimizer", "strategy"),
    [("linear_regression", "lbfgs/forloop", "ddp"), ("parameters", "adamw/fused", "single")],
)
def test_steps_without_phases_of_their_own_are_traced_too(optbench, workload, optimizer, strategy):
    size = ["--size", "resnet-50"] if workload == "parameters" else []
    record = trained(optbench, "--strategy", strategy, "--optimizer", optimizer, *size, workload=workload)
    adds_up(record)
    assert record["notes"] == []
    assert value(record, "ledger_parameters_bytes") == value(record, "ledger_parameters_expected_bytes")
    assert value(record, "ledger_activations_bytes") is None
