"""Forked launches beside fresh ones: what the analysis of sittings finds and what it does not invent."""

import math
import random

import pytest

from harness.comparison.model import Turn
from launch.independence import rows_of, shared_row
from tests.unit import comparison_examples as examples


def sitting(chance, kind="forked", launches=12, shift=0.0, spread=0.005):
    made = []
    for number in range(launches):
        ratio = math.exp(shift + chance.gauss(0, spread))
        turns = [
            Turn(arm=arm, round=each, position=arm, started_s=0.0, step_time_s=(ratio**arm * 0.01,))
            for each in range(4)
            for arm in range(2)
        ]
        made.append(examples.launch(number, kind=kind, turns=turns))
    return examples.comparison(launches=tuple(made))


def met(rows):
    return {row.what: row.met for row in rows if row.met is not None}


def test_launches_that_differ_by_sitting_no_more_than_by_chance_meet_the_target():
    chance = random.Random(1)
    rows = rows_of([*(sitting(chance) for _ in range(6)), *(sitting(chance, "fresh") for _ in range(2))])
    assert list(met(rows).values()) == [True, True]
    assert "72 in 6" in rows[0].found
    assert float(rows[0].found.split()[-2]) == pytest.approx(0.5, abs=0.1)


def test_what_a_whole_sitting_shares_is_found():
    chance = random.Random(2)
    rows = rows_of([sitting(chance, shift=chance.gauss(0, 0.01)) for _ in range(6)])
    assert met(rows) == {"sittings differ: p": False}
    assert int(rows[2].found.split()[0]) > 50


def test_fresh_launches_that_spread_more_are_found():
    chance = random.Random(3)
    rows = rows_of(
        [*(sitting(chance) for _ in range(6)), *(sitting(chance, "fresh", spread=0.02) for _ in range(2))]
    )
    assert met(rows)["fresh and forked launches spread differently: p"] is False


def test_invalid_launches_do_not_count():
    chance = random.Random(4)
    sittings = [sitting(chance) for _ in range(3)]
    spoilt = sittings[0].launches[0].model_copy(update={"invalid": "stolen"})
    changed = sittings[0].model_copy(update={"launches": (spoilt, *sittings[0].launches[1:])})
    assert "35 in 3" in rows_of([changed, *sittings[1:]])[0].found


def test_what_the_sittings_of_a_pool_do_not_share_is_found_and_chance_is_not():
    chance = random.Random(5)
    alike = shared_row("two-ranks", [sitting(chance, launches=6) for _ in range(4)])
    assert (alike.setting, alike.met) == ("two-ranks", True)
    apart = shared_row("two-ranks", [sitting(chance, launches=6, shift=shift) for shift in (0, 0.02, 0, 0.01)])
    assert apart.met is False
    assert "means of the log ratios, %: " in apart.found
