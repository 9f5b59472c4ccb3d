"""Convergence over paired seeds: equivalence, and runs that miss their target."""

from __future__ import annotations

import math
import tomllib

from hypothesis import given
from hypothesis import strategies as st

from harness.gating.converged import bounds, finest, judged, steps_to_target
from harness.gating.file import Convergence
from harness.plan import name_checks
from harness.record import Metric, RunRecord
from harness.spec import RunSpec, expand
from launch.elsewhere import written

SEEDS = range(9)
STEPS = st.integers(1, 10_000).map(float)
MISSED = math.inf


def verdict(before, after, margin=0.05):
    row, note = judged("a", dict(enumerate(before)), dict(enumerate(after)), margin)
    return row.verdict, row, note


@given(st.lists(STEPS, min_size=7, max_size=12))
def test_the_same_steps_pass(steps):
    found, row, note = verdict(steps, steps)
    assert (found, row.ratio, note) == ("passed", 1.0, None)


@given(st.lists(STEPS, min_size=7, max_size=12), st.floats(1.2, 5))
def test_slower_to_the_target_never_passes_and_faster_is_told(steps, factor):
    slower = [each * factor for each in steps]
    assert verdict(steps, slower)[0] == "regressed"
    found, _, note = verdict(slower, steps)
    assert found == "passed"
    assert "does not train the same" in note


@given(st.lists(STEPS, min_size=7, max_size=7), st.integers(0, 6))
def test_one_miss_among_the_fewest_seeds_never_passes(steps, missing):
    after = [MISSED if seed == missing else each for seed, each in enumerate(steps)]
    assert verdict(steps, after)[0] == "inconclusive"


def test_misses_on_every_seed_are_a_regression_and_on_both_sides_no_evidence():
    met = [100.0] * 8
    found, row, _ = verdict(met, [MISSED] * 8)
    assert (found, row.ratio) == ("regressed", math.inf)
    assert "missed on 8" in row.detail
    found, row, _ = verdict([MISSED] * 8, [MISSED] * 8)
    assert found == "inconclusive"
    assert row.remedy


def test_few_seeds_have_no_bound():
    assert bounds([0.0] * 6) is None
    assert bounds([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == (1.0, 4.0, 7.0)
    assert bounds([float(each) for each in range(1, 12)]) == (2.0, 6.0, 10.0)  # (1 + 11) / 2 ** 11 < 0.01


def record(**metrics):
    return RunRecord(run_id="r", spec={}, outcome="completed", metrics=metrics)


def metric(**fields):
    return Metric(name="m", unit="1", better="lower", **fields)


def test_the_workloads_own_target_or_the_gates_is_read_off_a_run():
    own, named = Convergence(), Convergence(metric="loss", target=0.5)
    series = metric(value=0.4, series=(0.9, None, 0.5, 0.4), series_steps=(10, 20, 30, 40))
    found = record(steps_to_target=metric(value=25), loss=series)
    assert steps_to_target(found, own) == 25
    assert steps_to_target(found, named) == 30
    assert steps_to_target(found, named.model_copy(update={"better": "higher"})) == 10
    assert steps_to_target(record(), own) == MISSED
    assert steps_to_target(record(), named) == MISSED
    assert steps_to_target(record(steps_to_target=metric(value=None)), own) == MISSED


JSON = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(min_size=1), JSON, max_size=3), st.integers(0, 2**63 - 1))
def test_any_spec_is_written_so_that_a_sweep_reads_it(options, seed):
    spec = RunSpec(workload="gpt", optimizer="adamw/foreach", optimizer_options=options, seed=seed, lr=0.1)
    (run,) = tomllib.loads(written([spec]))["runs"]
    assert expand([("run", run)], name_checks()) == (spec,)


@given(st.lists(STEPS, min_size=7, max_size=12), st.integers(2, 500))
def test_what_evaluations_cannot_tell_apart_does_not_pass(steps, interval):
    coarse = [math.ceil(each / interval) * interval for each in steps]
    row, _ = judged("a", dict(enumerate(coarse)), dict(enumerate(coarse)), 0.05, interval)
    known = math.log(max(coarse) / max(1, max(coarse) - interval + 1))
    if known > math.log1p(0.05):
        assert row.verdict == "inconclusive"
        assert "evaluate_every" in row.remedy
    exact, _ = judged("a", dict(enumerate(coarse)), dict(enumerate(coarse)), 0.05, 1)
    assert exact.verdict == "passed"


def test_evaluations_are_close_enough_for_the_margin():
    for steps in (100, 400, 3000):
        interval = finest(steps, 0.05)
        met = dict.fromkeys(range(7), float(interval * math.ceil(steps / 2 / interval)))
        assert judged("a", met, met, 0.05, interval)[0].verdict == "passed"
        later = {seed: each * 1.2 for seed, each in met.items()}
        assert judged("a", met, later, 0.05, interval)[0].verdict == "regressed"


def test_misses_on_more_seeds_are_found_though_the_median_is_the_same():
    met = [100.0] * 30
    found, row, _ = verdict(met, [MISSED] * 8 + met[8:])
    assert (found, "missed on 8, with the baseline's code on 0" in row.detail) == ("regressed", True)
    assert verdict(met, [MISSED] * 2 + met[2:])[0] == "inconclusive"
    assert verdict([MISSED] * 2 + met[2:], [MISSED] * 2 + met[2:])[0] == "passed"


def test_a_run_that_diverged_after_its_target_has_missed_it():
    series = metric(value=0.4, series=(0.9, 0.4), series_steps=(10, 20))
    found = record(loss=series, steps_to_target=metric(value=20))
    for asked in (Convergence(), Convergence(metric="loss", target=0.5)):
        assert steps_to_target(found, asked) == 20
        assert steps_to_target(found.model_copy(update={"outcome": "diverged"}), asked) == MISSED
