"""Drift: what grows from step to step is found, what grows at first or by chance is not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.counts.drift import enough, findings
from harness.counts.model import RankDrift, Sample
from harness.counts.slopes import theil_sen

STEPS = 240


def drift(
    objects=lambda step: 5,
    rss=lambda step: 10**8,
    blocks=lambda step: 1000,
    time=lambda step: 0.01,
    cpu=None,
    fixed=lambda step: 1e-4,
):
    samples = tuple(
        Sample(step=step, rss_bytes=rss(step), blocks=blocks(step), tensors={}, objects={"dict": objects(step)})
        for step in range(0, STEPS + 1, 20)
    )
    wall, used, work = (tuple(map(each, range(STEPS))) for each in (time, cpu or time, fixed))
    return RankDrift(samples=samples, step_time_s=wall, cpu_time_s=used, fixed_work_s=work)


def kinds(*ranks):
    return [each.kind for each in findings(ranks)]


def test_steady_numbers_are_no_finding():
    assert kinds(drift()) == []


def test_one_object_in_each_look_is_found_with_its_growth_and_rank():
    (found,) = findings([drift(), drift(objects=lambda step: 5 + step // 20)])
    assert (found.kind, found.name, found.ranks) == ("objects", "dict", (1,))
    assert found.per_step == pytest.approx(1 / 20)
    assert str(found) == "objects of type dict: +0.05 a step (rank 1)"


@given(st.integers(0, STEPS // 3), st.integers(1, 10**6))
def test_what_grows_in_the_first_third_only_is_none(until, amount):
    grown = drift(
        objects=lambda step: 5 + amount * min(step, until), rss=lambda step: 10**8 + 4096 * min(step, until)
    )
    assert kinds(grown) == []


@given(st.integers(0, 2**32))
def test_noise_is_none(seed):
    chance = random.Random(seed)
    noisy = drift(
        blocks=lambda step: 1000 + chance.randrange(20),
        rss=lambda step: 10**8 + 4096 * chance.randrange(50),
        time=lambda step: 0.01 * chance.uniform(0.9, 1.5),
    )
    assert kinds(noisy) == []


def test_a_number_kept_each_step_is_found_and_what_fades_is_not():
    assert kinds(drift(blocks=lambda step: 1000 + step)) == ["blocks"]
    assert kinds(drift(blocks=lambda step: 1000 + round(40 * step**0.5))) == []


def test_memory_that_only_the_system_sees_is_found():
    assert kinds(drift(rss=lambda step: 10**8 + 20_000 * step)) == ["resident memory"]


def test_a_slower_clock_without_more_work_is_a_neighbours():
    grows = lambda step: 0.01 * (1 + step / STEPS)  # noqa: E731
    assert kinds(drift(time=grows)) == ["step time"]
    assert kinds(drift(time=grows, cpu=lambda step: 0.01)) == []


def test_a_core_that_slows_down_slows_other_work_as_well():
    grows = lambda step: 1 + step / STEPS  # noqa: E731
    slower = drift(time=lambda step: 0.01 * grows(step), fixed=lambda step: 1e-4 * grows(step))
    assert kinds(slower) == []
    both = drift(time=lambda step: 0.01 * grows(step) ** 2, fixed=lambda step: 1e-4 * grows(step))
    assert kinds(both) == ["step time"]


def test_too_few_looks_tell_nothing():
    short = RankDrift(samples=drift().samples[-3:], step_time_s=(0.1,), cpu_time_s=(0.1,), fixed_work_s=(0.1,))
    assert not enough([short])
    assert not enough([])
    assert findings([short]) == []


@given(st.floats(-5, 5), st.floats(-100, 100), st.integers(4, 30))
def test_the_slope_of_a_line_is_its_own(slope, start, count):
    found = theil_sen(range(count), [start + slope * x for x in range(count)])
    assert found is not None
    for each in found:
        assert each == pytest.approx(slope, abs=1e-6)


def test_an_outlier_moves_the_slope_little_and_three_points_give_none():
    y = [2.0 * x for x in range(20)]
    y[7] = 1e6
    found = theil_sen(range(20), y)
    assert found is not None
    assert found.low <= 2.0 <= found.high
    assert found.value == pytest.approx(2.0)
    assert theil_sen([0, 1, 2], [0, 1, 2]) is None
