"""What people see of a comparison against stored text; `UPDATE_GOLDEN=1 pytest tests/golden` writes it anew."""

from __future__ import annotations

from pathlib import Path

from harness import invocation
from harness.compare import compare_runs
from harness.reports import stored
from harness.reports.comparison import render
from harness.reports.markdown import markdown
from harness.reports.model import report
from harness.reports.svg import svg
from tests.golden.test_reports import matches, text_of, width_of
from tests.golden.test_reports import record as table_record
from tests.unit.comparison_examples import PLAIN, TROUBLED


def test_a_comparison_of_two_arms_fits_80_columns():
    text = text_of(render(*PLAIN))
    assert max(len(line) for line in text.splitlines()) <= 80
    matches("comparison.txt", text)


def test_a_comparison_with_all_there_is_to_warn_of_fits_80_columns():
    text = text_of(render(*TROUBLED))
    assert max(len(line) for line in text.splitlines()) <= 80
    matches("comparison-troubled.txt", text)


def test_a_pull_request_reads_the_verdict_first():
    matches("comparison.md", markdown(*PLAIN))


def test_the_forest_plot_of_a_pair():
    matches("forest.svg", svg(report(*PLAIN).sections[0].forest))


def test_stored_runs_side_by_side_fit_80_columns(monkeypatch):
    monkeypatch.setattr(invocation, "program", lambda: ["optbench"])
    one, other = table_record("adamw/foreach", 1), table_record("adamw/fused", 2, step=0.0654, global_batch=32)
    wrong = table_record("adamw/fused", 3, "wrong", "step 3: parameter lm_head.weight did not move")
    alone = table_record("lion/foreach", 4)
    same_batch = table_record("adamw/fused", 5, step=0.0654)
    found = compare_runs([(one, other), (one, same_batch), (one, wrong), (alone, None)])
    text = text_of(stored.render(found, Path("my results")))
    assert width_of(text) <= 80
    matches("stored-comparison.txt", text)
