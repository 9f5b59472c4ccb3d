"""Speed and memory: bounds against margins, error over many metrics, self-checks."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.comparison.model import Analysis, Estimate, Pair
from harness.gating.timed import Compared, judged, margins_of

MARGINS = {"step_time_s": 0.025, "peak_memory_bytes": 0.01}


def estimate(ratios, verdict="inconclusive"):
    centre = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
    return Estimate(
        ratio=centre, low=None, high=None, verdict=verdict, smallest_effect=0.03, launches=tuple(ratios)
    )


def compared(step, memory=(1.0, 1.0, 1.0, 1.0), *, cell="a", share=1.0, self_check=None, margins=MARGINS):
    metrics = {"step_time_s": estimate(step), "peak_memory_bytes": estimate(memory)}
    pairs = [Pair(arms=("base", "now"), verdict="inconclusive", metrics=metrics, launches=len(step))]
    if self_check:
        pairs.append(Pair(arms=("base", "again"), verdict=self_check, metrics={}, launches=4, is_self_check=True))
    return Compared(cell, Analysis(pairs=tuple(pairs), spent_s=1.0), share, margins)


def verdicts(*found):
    return {(row.cell, row.what): row.verdict for row in judged(found)}


def noisy(ratio, launches=8, spread=0.004, seed=1):
    chance = random.Random(seed)
    return [ratio * math.exp(chance.gauss(0, spread)) for _ in range(launches)]


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(1.0, "passed"), (0.9, "passed"), (1.05, "regressed"), (1.024, "inconclusive")],
)
def test_a_ratio_is_held_against_the_margin(ratio, verdict):
    assert verdicts(compared(noisy(ratio)))["a", "step_time_s"] == verdict


def test_memory_that_never_varies_is_decided_exactly():
    for ratio, verdict in ((1.0, "passed"), (1.02, "regressed")):
        assert verdicts(compared(noisy(1.0), [ratio] * 4))["a", "peak_memory_bytes"] == verdict


def test_bounds_and_margin_stand_in_the_row():
    row = judged([compared(noisy(1.05))])[0]
    assert row.low is not None
    assert row.high is not None
    assert row.ratio is not None
    assert 1.025 < row.low < row.ratio < row.high
    assert row.margin == 0.025


def test_one_launch_or_none_is_never_enough():
    for ratios in ([], [1.0], [2.0]):
        assert verdicts(compared(ratios))["a", "step_time_s"] == "inconclusive"


def test_more_looks_and_more_metrics_ask_for_more_evidence_of_a_regression():
    step = noisy(1.036, launches=4, spread=0.0025)
    alone = compared(step, margins={"step_time_s": 0.025})
    assert verdicts(alone)["a", "step_time_s"] == "regressed"
    assert verdicts(alone._replace(share=1 / 20))["a", "step_time_s"] == "inconclusive"
    beside = [compared(noisy(1.0, seed=n), cell=f"c{n}") for n in range(20)]
    assert verdicts(alone, *beside)["a", "step_time_s"] == "inconclusive"


@given(st.integers(0, 10**6))
def test_with_no_difference_nothing_is_called_worse(seed):
    cells = [compared(noisy(1.0, seed=seed + n), cell=str(n)) for n in range(3)]
    assert "regressed" not in verdicts(*cells).values()


def test_a_self_check_that_alarms_is_invalid():
    fine = verdicts(compared(noisy(1.0), self_check="equivalent"))
    assert fine["a", "the same code twice"] == "passed"
    for alarm in ("faster", "slower"):
        found = verdicts(compared(noisy(1.0), self_check=alarm))
        assert found["a", "the same code twice"] == "invalid"


def test_a_metric_that_was_not_measured_does_not_pass():
    assert verdicts(compared(noisy(1.0), margins={**MARGINS, "cpu_time_s": 0.1}))["a", "cpu_time_s"] == "invalid"


def test_margins_are_asked_for_the_usual_metrics_and_those_of_the_file():
    assert list(margins_of(["cpu_time_s"], lambda _: 0.1)) == ["step_time_s", "peak_memory_bytes", "cpu_time_s"]


def test_launches_that_guards_have_all_marked_are_no_evidence_yet_rather_than_wrong_evidence():
    pair = Pair(
        arms=("base", "now"), verdict="inconclusive", metrics={"step_time_s": estimate([])}, launches=0,
        invalid_launches=12,
    )  # fmt: skip
    rows = judged([Compared("a", Analysis(pairs=(pair,), spent_s=1.0), 4, MARGINS)])
    assert {row.verdict for row in rows} == {"inconclusive"}
    assert any("undisturbed" in row.detail and row.remedy for row in rows)
