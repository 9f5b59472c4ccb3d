"""Runs as Markdown."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from harness.reports.markdown_runs import markdown
from harness.reports.table import render
from tests.golden.test_reports import RECORDS, record
from tests.unit.test_reports_comparison import TRICKY, structure


def test_a_group_is_a_table_and_a_failure_a_row_of_it():
    text = markdown(RECORDS)
    assert "| <code>adamw/fused</code> | 65.4 ms | 1.00x |" in text
    assert "| <code>my_package.optimizers&#58;SignMomentum</code> | **diverged** |" in text
    assert text.count("| :--") == 2


def test_reasons_are_folded_below_the_table():
    before, _, after = markdown(RECORDS).partition("<details>")
    assert "Apex is not installed" not in before
    assert "Apex is not installed" in after


def test_a_wrong_run_shows_no_number():
    text = markdown([record("adamw/fused", 1).model_copy(update={"outcome": "wrong", "reason": "step 3"})])
    assert "65.4" not in text
    assert "**wrong**" in text


def test_no_runs_are_said_to_be_none():
    assert markdown([]) == "No runs.\n"


@settings(deadline=None)
@given(TRICKY, TRICKY, st.sampled_from(["failed", "completed"]))
def test_no_name_or_reason_breaks_the_table(name, reason, outcome):
    plain = record("harmless", 1, outcome, "words").model_copy(update={"notes": ("words",)})
    tricky = record(name, 1, outcome, reason or "words", workload=f"{name}x")
    tricky = tricky.model_copy(update={"notes": (f"{reason}x",)})
    if reason.strip():
        assert structure(markdown([tricky])) == structure(markdown([plain]))


@settings(deadline=None)
@given(TRICKY)
def test_no_name_is_markup_of_the_terminals_table(name):
    file = io.StringIO()
    found = [record(f"[/b]{name}", 1), record(f"[red]{name}", 2, "failed", "words")]
    Console(width=80, file=file, color_system=None).print(render(found))
    assert "[/b]" in file.getvalue()
    assert "[red]" in file.getvalue()
    assert "\x1b" not in file.getvalue()
