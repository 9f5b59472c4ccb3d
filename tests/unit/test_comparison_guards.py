"""What marks a launch invalid: time stolen, others' load, clocks; never a step time."""

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
