"""What a gate's reports say, whatever strangers called their cells."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from harness.gating.model import RANKING, Gate, Row
from harness.reports import gate as report

TEXT = st.text(max_size=30)
NUMBER = st.none() | st.floats()
ROWS = st.builds(
    Row,
    axis=st.sampled_from(["counts", "speed", "memory", "drift", "correctness", "convergence"]),
    cell=TEXT,
    what=TEXT,
    verdict=st.sampled_from(RANKING),
    detail=TEXT,
    remedy=st.none() | TEXT,
    ratio=NUMBER,
    low=NUMBER,
    high=NUMBER,
    margin=NUMBER,
    smallest_effect=NUMBER,
)
GATES = st.builds(
    Gate,
    name=TEXT,
    rows=st.lists(ROWS, max_size=4).map(tuple),
    notes=st.lists(TEXT).map(tuple),
    spent_s=st.floats(0, 1e6),
)


def shown(gate: Gate, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=100, color_system=None)
    console.print(report.render(gate))
    console.file.flush()
    return raw.getvalue().decode(encoding)


@settings(deadline=None)
@given(GATES, st.sampled_from(["utf-8", "ascii"]))
def test_any_gate_is_shown_as_text_markdown_and_json(gate, encoding):
    assert gate.verdict in shown(gate, encoding)
    first = report.markdown(gate).splitlines()[0]
    assert first.startswith("### ")
    assert first.endswith(gate.verdict)
    assert json.loads(json.dumps(report.document(gate), allow_nan=False))["verdict"] == gate.verdict


@pytest.fixture
def mixed():
    rows = (
        Row(
            axis="counts",
            cell="small",
            what="aten::mul.Tensor 12 -> 13 a step",
            verdict="regressed",
            remedy="update",
        ),
        Row(
            axis="speed",
            cell="small",
            what="step_time_s",
            verdict="passed",
            ratio=1.001,
            low=0.99,
            high=1.01,
            margin=0.025,
        ),
        Row(
            axis="speed",
            cell="<b>large|",
            what="step_time_s",
            verdict="inconclusive",
            ratio=1.02,
            smallest_effect=0.05,
        ),
    )
    return Gate(name="pull", rows=rows, notes=("a note",), spent_s=61.0)


def test_markdown_has_the_verdict_first_and_folds_what_passed(mixed):
    lines = report.markdown(mixed).splitlines()
    assert lines[0] == "### 🔴 optbench gate <code>pull</code>: regressed"
    text = "\n".join(lines)
    assert text.index("12 &#45;&#62; 13 a step") < text.index("<details><summary>1 passed</summary>")
    assert "<b>" not in text
    assert "large&#124;" in text


def test_the_terminal_shows_what_did_not_pass_by_cell_and_counts_the_rest(mixed):
    text = shown(mixed)
    assert text.index("regressed: counts: aten::mul.Tensor 12 -> 13 a step") < text.index("inconclusive: speed")
    assert "could have seen 5" in text
    assert "passed: speed 1" in text
    assert "note: a note" in text
