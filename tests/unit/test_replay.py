"""Replays of launches: false alarms, what is found, and the planted optimizer."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.comparison.model import Launch, Turn, WarmUp
from harness.comparison.replay import peers, replay, replays, upper_bound
from launch.planted import PlantedAdamW
from launch.selftest import peer_rows, rows_of

LOOKS = (4, 6, 8, 12)


def drawn(centre, spread, count=40):
    chance = random.Random(1)
    return [chance.gauss(centre, spread) for _ in range(count)]


def launches_of(ratios, count, drift):
    """Return launches of arms with these step times, each sitting slower or faster as a whole."""
    chance = random.Random(2)
    warm = tuple(WarmUp(step_time_s=(0.01,), steady_from=0, build_s=1) for _ in ratios)
    found = []
    for number in range(count):
        sitting = math.exp(chance.gauss(0, drift))
        turns = [
            Turn(
                arm=arm,
                round=each,
                position=arm,
                started_s=0,
                step_time_s=(0.01 * sitting * ratio * math.exp(chance.gauss(0, 0.01)),),
            )
            for each in range(20)
            for arm, ratio in enumerate(ratios)
        ]
        peaks = (None,) * len(ratios)
        found.append(
            Launch(
                number=number, kind="forked", warm_ups=warm, turns=tuple(turns), peak_memory_bytes=peaks, took_s=1
            )
        )
    return found


def test_the_same_code_twice_raises_few_alarms_and_its_gates_pass():
    found = replays(drawn(0, 0.004), LOOKS, 0.025, count=400, exchange=True)
    assert sum(each.slower or each.faster for each in found) <= 4
    assert all(each.gate == "passed" for each in found)


def test_a_planted_slowdown_is_found_and_its_interval_covers_it():
    pool = drawn(math.log(1.05), 0.004)
    found = replays(pool, LOOKS, 0.025, count=200)
    assert all(each.gate == "regressed" and each.slower for each in found)
    mean = sum(pool) / len(pool)
    assert sum(each.low <= mean <= each.high for each in found) >= 190


@given(st.lists(st.floats(-0.2, 0.2), min_size=12, max_size=12, unique=True), st.sampled_from([0.0, 0.025]))
def test_the_order_of_the_arms_only_turns_the_interval_round(ratios, margin):
    one, other = replay(ratios, LOOKS, margin), replay([-each for each in ratios], LOOKS, margin)
    assert (one.slower, one.faster) == (other.faster, other.slower)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


@pytest.mark.parametrize(("events", "trials", "bound"), [(0, 2000, 0.0014967), (20, 2000, 0.0145), (5, 5, 1.0)])
def test_the_upper_bound_is_clopper_and_pearsons(events, trials, bound):
    assert upper_bound(events, trials) == pytest.approx(bound, abs=2e-4)


def test_a_pool_becomes_rows_with_targets_and_peers_see_the_drift_between_sittings():
    launches = launches_of((1.0, 1.0, 1.03, 1.05, 1.10), count=24, drift=0.08)
    rows = rows_of("alone", launches, 300)
    assert all(row.met for row in rows if row.met is not None and "A/A, margin 0 %" not in row.what), rows
    assert peers(launches, (0, 1))["mean, 5 %"] > 0.1
    assert [row.met for row in peer_rows("alone", launches)] == [None] * 4


def test_arms_of_a_comparison_of_several_share_its_error():
    ratios = drawn(math.log(1.05), 0.01, count=12)
    two, four = (replay(ratios, LOOKS, 0.0, error) for error in (0.01, 0.01 / 3))
    assert four.launches >= two.launches
    assert replay(ratios, (12,), 0.0, 0.01 / 3).low < replay(ratios, (12,), 0.0).low


def test_a_setting_that_is_none_is_refused_with_those_there_are(optbench):
    done = optbench("selftest", "--setting", "elsewhere")
    assert done.code == 2
    assert "alone, neighbour, two-ranks" in done.err


def test_the_planted_optimizer_without_a_share_is_adamw():
    models = [torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)]
    models[1].load_state_dict(models[0].state_dict())
    made = [
        PlantedAdamW(models[0].parameters(), 0.1, slower=0.0),
        torch.optim.AdamW(models[1].parameters(), 0.1),
    ]
    for model, optimizer in zip(models, made, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
    assert torch.equal(models[0].weight, models[1].weight)
