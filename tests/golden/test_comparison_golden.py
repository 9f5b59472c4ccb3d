"""What people see of a comparison against stored text; `UPDATE_GOLDEN=1 pytest tests/golden` writes it anew."""

from __future__ import annotations

from harness.reports.comparison import render
from harness.reports.markdown import markdown
from harness.reports.model import report
from harness.reports.svg import svg
from tests.golden.test_reports import matches, text_of
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
