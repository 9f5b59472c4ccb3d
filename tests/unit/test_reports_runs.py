"""Runs as a table for terminals."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from rich.console import Console

from harness.index import row_of
from harness.plan import Cell, Plan
from harness.reports.table import evaluation_of, render
from harness.spec import RunSpec
from harness.verbs import contents, planning, showing, verifying
from harness.verification.certificate import Certificate
from tests.golden.test_reports import metric, record, text_of
from tests.unit.test_reports_comparison import TRICKY


def one_line(text: str) -> str:
    return " ".join(text.split())


@settings(deadline=None)
@given(TRICKY)
def test_no_name_is_markup_of_the_terminals_table(name):
    file = io.StringIO()
    found = [record(f"[/b]{name}", 1), record(f"[red]{name}", 2, "failed", "words")]
    Console(width=80, file=file, color_system=None).print(render(found))
    assert "[/b]" in file.getvalue()
    assert "[red]" in file.getvalue()
    assert "\x1b" not in file.getvalue()


# What is shown of a metric, and of what tells runs apart


def sampled(name, unit="B", value=342_364_160, **more):
    """What a collector samples at the end of every turn."""
    base = {"over_steps": "max", "series": (3e8, value), "series_steps": (10, 20)}
    return metric(name, value, unit, **{**base, **more})


def with_metrics(found, *metrics, without=()):
    kept = {name: each for name, each in found.metrics.items() if name not in without}
    return found.model_copy(update={"metrics": {**kept, **{each.name: each for each in metrics}}})


def test_a_workload_that_evaluates_nothing_has_no_column_of_evaluations():
    found = with_metrics(record("sgd/fused", 1), sampled("rss_bytes"), without=("validation_loss",))
    text = text_of(render([found]))
    assert "rss" not in text
    assert "342" not in text
    assert [line.split() for line in text.splitlines() if "opt " in line] == [
        ["optimizer", "step", "rel", "opt", "state", "peak", "loss"]
    ]


def test_an_evaluation_of_any_name_has_its_whole_name_and_its_unit():
    latency = sampled("decode_latency_s", "s", value=0.0123, over_steps="last")
    found = with_metrics(record("sgd/fused", 1), sampled("rss_bytes"), latency, without=("validation_loss",))
    words = text_of(render([found])).split()
    assert "12.3" in words
    assert {"decode", "latency", "s"} <= set(words)


def test_a_curve_shows_its_ends_and_its_best_and_a_sample_its_percentiles():
    loss = metric(
        "train_loss", None, "1", series=(4.0, 1.5, float("nan"), 2.0), over_steps="last",
        quantiles={"p10": 7.77, "p50": 7.77, "p90": 7.77, "p99": 7.77},
    )  # fmt: skip
    accuracy = metric("accuracy", 0.5, "1", series=(0.75, 0.5), series_steps=(20, 40), over_steps="last")
    accuracy = accuracy.model_copy(update={"better": "higher"})
    norm = metric("grad_norm", 3.0, "1", series=(9.0, 3.0), over_steps="last")
    norm = norm.model_copy(update={"better": "neither"})
    memory = sampled("rss_bytes", quantiles={"p10": 1.0, "p50": 1.0, "p90": 1.0, "p99": 1.0})
    lines = text_of(showing.run(with_metrics(record("sgd/fused", 1), loss, accuracy, norm, memory))).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["curve"] == ["first", "last", "best", "at", "step"]
    assert rows["train_loss"] == ["4", "2", "1.5", "2"]
    assert rows["accuracy"] == ["0.75", "0.5", "0.75", "20"]
    assert rows["grad_norm"] == ["9", "3"]
    assert rows["rss_bytes"] == ["327", "MiB"]
    assert rows["step_time_s"] == ["69.1", "ms", "62.2", "ms", "76.0", "ms", "138", "ms"]
    assert "7.77" not in "".join(lines)


VARIED = (
    {"seed": 1},
    {"lr": 0.01},
    {"optimizer_options": {"weight_decay": 0.1}},
    {"optimizer_options": {"betas": [0.9, 0.95]}},
    {"strategy_options": {"bucket_cap_mb": 1}},
    {"workload_options": {"depth": 3}},
    {"turn_steps": 5},
    {"schedule": "warmup-cosine"},
    {"accumulation": 2},
)
WORDS = (
    *("seed=1", "lr=0.01", "optimizer.weight_decay=0.1", "optimizer.betas=[0.9,0.95]", "strategy.bucket_cap_mb=1"),
    *("workload.depth=3", "turn_steps=5", "schedule=warmup-cosine", "accumulation=2"),
)


@pytest.mark.parametrize(("more", "words"), list(zip(VARIED, WORDS, strict=True)), ids=WORDS)
def test_whatever_varies_between_runs_is_in_rows_notes_plans_and_lists(more, words):
    one, other = record("sgd/fused", 1), record("sgd/fused", 2, "failed", "why", **more)
    assert f"sgd/fused {words}" in one_line(text_of(render([one, other]), width=200))
    assert f"sgd/fused {words} failed: why" in one_line(text_of(render([one, other]), width=200))
    rows = [row_of(each.run_id, each.model_dump(mode="json")) for each in (one, other)]
    assert words in one_line(text_of(contents.runs(rows, Path("results")), width=200))
    specs = [RunSpec(workload="gpt", optimizer="sgd/fused", **each) for each in ({}, more)]
    cells = [Cell(index=index, spec=spec) for index, spec in enumerate(specs)]
    assert f"sgd/fused {words}" in one_line(text_of(planning.table(Plan(cells=cells)), width=200))


def test_what_all_runs_share_is_in_no_row():
    shown = text_of(render([record("sgd/fused", 1), record("sgd/foreach", 2)]))
    assert "seed" not in shown
    assert "=" not in shown.partition("Times")[0]


def test_precision_is_told_in_a_plan_where_it_varies():
    cells = [
        Cell(index=index, spec=RunSpec(workload="gpt", optimizer="sgd/fused", precision=precision))
        for index, precision in enumerate(("fp32", "bf16"))
    ]
    assert "sgd/fused precision=bf16" in one_line(text_of(planning.table(Plan(cells=cells)), width=200))


def test_an_evaluation_that_is_better_one_way_goes_before_one_that_is_neither():
    slope = sampled("slope", "1", value=0.7, over_steps="last").model_copy(update={"better": "neither"})
    error = sampled("wer", "1", value=0.25, over_steps="last")
    assert (
        evaluation_of([with_metrics(record("sgd/fused", 1), slope, error, without=("validation_loss",))]) == "wer"
    )
    assert evaluation_of([with_metrics(record("sgd/fused", 1), slope, without=("validation_loss",))]) == "slope"


def test_a_proof_is_named_with_the_options_that_it_was_made_with():
    made = Certificate(
        optimizer="adamw/fused", strategy="single", precision="fp32", reference=None, outcome="wrong",
        reason="step 3", options={"weight_decay": 0.1, "betas": [0.9, 0.95]},
    )  # fmt: skip
    assert verifying.line(made).startswith("adamw/fused weight_decay=0.1 betas=[0.9,0.95]: WRONG")
    assert "adamw/fused weight_decay=0.1 betas" in one_line(text_of(verifying.table([("", made)]), width=200))
