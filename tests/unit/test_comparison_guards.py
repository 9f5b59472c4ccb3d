"""What marks a launch invalid: time stolen, others' load, clocks; never a step time."""

import os
import re

import pytest

from harness.comparison.guards import invalid
from harness.comparison.model import Launch, Turn, WarmUp
from launch.watching import Machine

ROUNDS = 20


def launch(**by_turn):
    """Return a launch of two arms; each keyword is a function of arm and round that gives a turn's field."""
    turns = [
        Turn(
            arm=arm,
            round=number,
            position=arm,
            started_s=0.1 * number,
            step_time_s=(0.01,),
            took_s=0.05,
            **{name: value(arm, number) for name, value in by_turn.items()},
        )
        for number in range(ROUNDS)
        for arm in (0, 1)
    ]
    warm = WarmUp(step_time_s=(0.01,), steady_from=0, build_s=0.1)
    return Launch(
        number=0, kind="forked", warm_ups=(warm, warm), turns=turns, peak_memory_bytes=(None, None), took_s=5.0
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, None),
        ({"steal_s": lambda _arm, _number: 0.02}, "hypervisor took 40 %"),
        ({"steal_s": lambda arm, _number: 0.01 * arm}, "of one arm's turns"),
        ({"other_load": lambda _arm, _number: 3.0}, None),
        ({"other_load": lambda arm, _number: 1.4 * arm}, "1.4 cores busy in one arm's turns, 0.0 in another's"),
        ({"other_load": lambda arm, number: float(number == 3 and arm)}, None),
        ({"held_down": lambda _arm, number: ("hw_thermal",) if number < 4 else ()}, r"\(hw_thermal\).* 20 %"),
        ({"held_down": lambda arm, number: ("hw_thermal",) if number + arm == 0 else ()}, None),
        ({"clock_hz": lambda _arm, number: 3e9 - 5e7 * number}, "clock fell from 2.90 to 2.15 GHz"),
        ({"clock_hz": lambda arm, _number: 3e9 - 1e9 * arm}, None),
    ],
)
def test_a_launch_is_invalid_for_what_the_machine_did(fields, words):
    found = invalid(launch(**fields))
    if words is None:
        assert found is None
    else:
        assert re.search(words, str(found))


def test_the_fastest_cores_clock_is_read_where_there_is_one(tmp_path):
    with Machine(root=tmp_path) as machine:
        assert machine.clock_hz() is None
        assert machine.held_down() == ()
        folder = tmp_path / "cpu0/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text("2400000\n")
        assert machine.clock_hz() == 2.4e9
        (folder / "scaling_cur_freq").write_text("<unknown>\n")
        assert machine.clock_hz() is None


def test_limits_grow_with_the_cores_that_are_watched():
    """2 % of each of 16 cores is a third of one core, and harmless."""
    busy = launch(steal_s=lambda _arm, _number: 0.02)
    assert invalid(busy, cores=2) is not None
    assert invalid(busy, cores=16) is None


def test_load_that_scatters_as_much_as_it_differs_marks_nothing():
    uneven = launch(other_load=lambda arm, number: 40.0 if (number + arm) % 5 == 0 else 1.0 + arm)
    assert invalid(uneven) is None
    assert "cores busy" in str(invalid(launch(other_load=lambda arm, number: 1.0 + arm + 0.1 * (number % 3))))


def test_only_the_cores_that_may_be_used_are_counted(tmp_path):
    mine = min(os.sched_getaffinity(0))
    text = f"cpu  9 9 9 9 9 9 9 9\ncpu{mine} 100 0 50 7 7 0 0 300 0 0\ncpu99999 900 0 0 0 0 0 0 900 0 0\nintr 5\n"
    (tmp_path / "stat").write_text(text, encoding="ascii")
    with Machine(stat=tmp_path / "stat") as machine:
        tick_s = 1 / os.sysconf("SC_CLK_TCK")
        assert machine.now() == pytest.approx((150 * tick_s, 300 * tick_s))
        assert machine.cores == len(os.sched_getaffinity(0))
    with Machine(stat=tmp_path / "none") as machine:
        assert machine.now() == (0, 0)
