"""The driver's side of the baton, as far as it needs no world."""

import math
import socket

from hypothesis import given
from hypothesis import strategies as st

from launch import baton
from launch.arms import _is_consequence, _received, as_one

TIMES = st.lists(st.floats(1e-4, 1.0), min_size=2, max_size=2)


def answer(times, **more):
    return {
        "step_time_s": times,
        "phase_s": {},
        "cpu_time_s": 0.5,
        "involuntary_switches": 2,
        "losses": [1.0] * len(times),
        **more,
    }


def test_a_delay_that_both_ranks_see_one_after_the_other_counts_once():
    late = answer([0.03, 0.01, 0.01])
    waited = answer([0.01, 0.03, 0.01])

    assert math.isclose(sum(as_one([late, waited])["step_time_s"]), 0.05)


@given(st.lists(TIMES, min_size=1, max_size=8))
def test_the_job_takes_as_long_as_its_slowest_rank(times):
    found = as_one([answer(each) for each in times])

    assert math.isclose(sum(found["step_time_s"]), max(map(sum, times)))
    assert found["cpu_time_s"] == 0.5 * len(times)
    assert found["involuntary_switches"] == 2 * len(times)


def test_phases_are_the_slowest_ranks_and_a_loss_that_one_rank_lacks_is_unknown():
    one = answer([0.1, 0.1], phase_s={"forward": 0.04, "backward": 0.06}, losses=[1.0, 2.0])
    other = answer([0.1, 0.1], phase_s={"forward": 0.05, "backward": 0.05}, losses=[3.0, None])
    found = as_one([one, other])

    assert found["phase_s"] == {"backward": 0.06, "forward": 0.05}
    assert found["losses"] == [2.0, None]


def test_of_several_failures_the_one_that_is_no_consequence_comes_first():
    failures = [
        (0, "RuntimeError: [gloo] Connection closed by peer [127.0.0.1]", 0),
        (1, "a rank died in its turn", 0),
        (1, "ValueError: the real one", 1),
    ]
    assert min(failures, key=_is_consequence)[1] == "ValueError: the real one"


def test_what_a_rank_says_last_has_a_reason():
    driver, rank = (baton.Line(each) for each in socket.socketpair())
    rank.send("refused", reason="ImportError: no such module")
    assert _received(driver, "now")["reason"] == "cannot run: ImportError: no such module"
    rank.connection.sendall(b"no JSON\n")
    assert "died now" in _received(driver, "now")["reason"]
    rank.close()
    assert _received(driver, "in its turn") == {"reason": "a rank died in its turn"}
    assert driver.gone(1.0)
    driver.close()
