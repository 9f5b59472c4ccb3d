"""The driver's side of the baton, as far as it needs no world."""

import math

from hypothesis import given
from hypothesis import strategies as st

from launch.arms import as_one

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
