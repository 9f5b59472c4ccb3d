"""Estimates, looks, verdicts and warm-ups on made-up launches whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.comparison import designing
from harness.comparison.analysis import _amdahl, analyse, next_step
from harness.comparison.designing import SPREAD, design, out_of_reach, spread
from harness.comparison.estimate import hodges_lehmann, holm, interval, p_above, p_below
from harness.comparison.guards import invalid
from harness.comparison.model import STEP_TIME, Arm, Comparison, Design, Estimate, Launch, Turn, WarmUp
from harness.comparison.steady import steady
from harness.errors import InvalidInputError
from harness.spec import RunSpec
from launch.arms import Built
from launch.sitting import Begun, Sitting, UnlikeArmsError

LOOKS = (4, 6, 8, 12)


def plan(margin=0.025, *, self_check=False):
    return Design(looks=LOOKS, margin=margin, rounds=20, turn_steps=2, budget_s=60, seed=0, self_check=self_check)


def made(
    ratio, *, launches=12, margin=0.025, spread=0.003, seed=0, scale=0.01, steal=(0.0, 0.0), self_check=False
):
    """Return a comparison of two arms: heavy-tailed turns, drift, launches that differ by ``spread``."""
    random = np.random.default_rng(seed)
    spec = RunSpec(workload="gpt", optimizer="adamw/foreach")
    found = []
    for number in range(launches):
        own = math.exp(random.normal(0, spread))
        turns = []
        for each in range(20):
            drift = 1 + 0.3 * math.sin(each / 5)
            for position, arm in enumerate(random.permutation(2)):
                step = scale * drift * (ratio * own if arm else 1) * (1 + 0.02 * random.standard_t(3))
                turns.append(
                    Turn(
                        arm=int(arm),
                        round=each,
                        position=position,
                        started_s=0,
                        step_time_s=(abs(step), abs(step)),
                        phase_s={"optimizer": abs(step) / 4},
                        took_s=2 * abs(step),
                        steal_s=steal[arm] * 2 * abs(step),
                    )
                )
        warm = WarmUp(step_time_s=(scale,) * 10, steady_from=0, build_s=1)
        found.append(
            Launch(
                number=number,
                kind="forked",
                warm_ups=(warm, warm),
                turns=tuple(turns),
                peak_memory_bytes=(100, 110),
                took_s=1,
            )
        )
    return Comparison(
        arms=(Arm(name="a", spec=spec), Arm(name="b", spec=spec)),
        design=plan(margin, self_check=self_check),
        launches=tuple(found),
        started_unix_s=0,
        spent_s=1,
    )


def swapped(comparison):
    launches = [
        each.model_copy(update={"turns": tuple(t.model_copy(update={"arm": 1 - t.arm}) for t in each.turns)})
        for each in comparison.launches
    ]
    return comparison.model_copy(update={"launches": tuple(launches)})


def test_the_hodges_lehmann_estimate_is_the_median_of_pairwise_means():
    assert hodges_lehmann([1, 2, 9]) == 3.5
    with pytest.raises(ValueError, match="no values"):
        hodges_lehmann([])


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(-5, 5))
def test_the_estimate_moves_with_its_values(values, shift):
    moved = hodges_lehmann([each + shift for each in values])
    assert moved == pytest.approx(hodges_lehmann(values) + shift, abs=1e-9)


def test_a_slowdown_a_speed_up_and_no_difference_get_their_verdicts():
    for ratio, expected in ((1.1, "slower"), (0.9, "faster"), (1.0, "equivalent")):
        (pair,) = analyse(made(ratio)).pairs
        assert pair.verdict == expected, ratio
        step = pair.metrics[STEP_TIME]
        assert step.low < ratio < step.high
        assert pair.decided_at in LOOKS
        # No sentence claims what the verdict does not.
        assert pair.amdahl is None if expected == "equivalent" else "the step is 1.1" in pair.amdahl


@pytest.mark.parametrize(
    ("optimizer", "step", "told"),
    [
        (
            (0.6, "faster"),
            (0.95, "inconclusive"),
            "the optimizer is 1.67x faster; whether the step differs is not known",
        ),
        ((0.6, "faster"), (0.8, "faster"), "the optimizer is 1.67x faster, the step is 1.25x faster"),
        (
            (1.5, "slower"),
            (1.0, "equivalent"),
            "the optimizer is 1.50x slower, the step does not differ beyond the margin",
        ),
        (
            (1.1, "inconclusive"),
            (1.1, "slower"),
            "whether the optimizer differs is not known; the step is 1.10x slower",
        ),
        ((1.0, "equivalent"), (1.0, "inconclusive"), None),
    ],
)
def test_what_is_known_of_the_optimizer_and_of_the_step_are_two_statements(optimizer, step, told):
    metrics = {
        name: Estimate(ratio=ratio, low=None, high=None, verdict=verdict, smallest_effect=None)
        for name, (ratio, verdict) in (("optimizer", optimizer), (STEP_TIME, step))
    }
    assert _amdahl(metrics) == told


def test_the_order_of_the_arms_does_not_matter():
    comparison = made(1.05, seed=3)
    (pair,), (turned,) = analyse(comparison).pairs, analyse(swapped(comparison)).pairs
    there, back = pair.metrics[STEP_TIME], turned.metrics[STEP_TIME]
    assert (pair.verdict, turned.verdict) == ("slower", "faster")
    assert (1 / back.ratio, 1 / back.high, 1 / back.low) == pytest.approx((there.ratio, there.low, there.high))


def test_the_unit_of_time_does_not_matter():
    assert analyse(made(1.05, scale=10)).pairs[0].metrics[STEP_TIME].ratio == pytest.approx(
        analyse(made(1.05)).pairs[0].metrics[STEP_TIME].ratio
    )


def test_too_few_launches_are_inconclusive_and_have_no_interval():
    (pair,) = analyse(made(2.0, launches=3)).pairs
    step = pair.metrics[STEP_TIME]
    assert (pair.verdict, step.low, step.high, step.smallest_effect) == ("inconclusive", None, None, None)
    assert next_step(made(2.0, launches=3)) == "go on"
    assert next_step(made(2.0, launches=4)) == "decided"
    assert next_step(made(1.025, launches=12, spread=0.06)) == "spent"


def test_launches_after_the_decisive_look_change_nothing():
    few, many = analyse(made(1.2, launches=4)), analyse(made(1.2, launches=12))
    assert few.pairs == many.pairs


@pytest.mark.parametrize("looks", designing.LOOKS)
def test_intervals_cover_and_false_alarms_are_rare_over_all_looks_together(looks):
    """At 99 % over all looks; ratios of launches drawn directly, as the estimate within each would give them."""
    ratios = np.random.default_rng(1).normal(0, 0.005, (4000, looks[-1]))
    missed = np.zeros(4000, dtype=bool)
    for count in looks:
        seen = ratios[:, :count]
        errors = seen.std(axis=1, ddof=1) / math.sqrt(count)
        half = interval(seen[0], 0.01 / len(looks)).half / errors[0] * errors
        missed |= abs(seen.mean(axis=1)) > half
    assert missed.mean() < 0.013


def test_an_alarm_of_the_same_code_twice_spoils_the_evidence():
    comparison = made(1.2, self_check=True)
    found = analyse(comparison)
    assert found.pairs[0].is_self_check
    assert "not fit for comparisons" in found.notes[0]


def test_holm_adjusts_the_smallest_by_all_and_keeps_their_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(-0.1, 0.1), min_size=3, max_size=12), st.floats(-0.1, 0.1))
def test_the_two_one_sided_p_values_add_up_to_one(values, bound):
    if np.std(values) > 1e-6:
        assert p_above(values, bound) + p_below(values, bound) == pytest.approx(1)


def test_a_guard_asks_the_hypervisor_and_not_the_times():
    robbed = made(1.0, launches=1, steal=(0.4, 0.4)).launches[0]
    unlike = made(1.0, launches=1, steal=(0.0, 0.15)).launches[0]
    shared = made(1.5, launches=1, steal=(0.1, 0.1)).launches[0]
    assert "40 %" in invalid(robbed)
    assert "15 % of one arm" in invalid(unlike)
    assert invalid(shared) is None


def test_a_warm_up_ends_where_the_level_stops_changing():
    random = np.random.default_rng(0)
    times = [*(0.05 + 0.01 * random.random(6)), *(0.01 + 0.0005 * random.random(30))]
    assert 5 <= steady(times) <= 12
    assert steady([0.01 + 0.0005 * each for each in random.random(30)]) == 0
    stalled = [0.01 + 0.0005 * each for each in random.random(30)]
    stalled[17] = 1.0
    assert steady(stalled) == 0
    assert steady([0.01 * 1.2**step for step in range(20)]) is None
    assert steady([0.01] * 5) is None


def test_a_budget_is_spread_over_launches_or_refused_with_the_one_that_would_do():
    def planned(budget_s, ranks=1, launch_start_s=3.0, mean_s=0.01):
        asked = Design(looks=(), margin=0.025, rounds=0, turn_steps=0, budget_s=budget_s, seed=7)
        times = {"launch_start_s": launch_start_s, "step_time_s": 0.01, "mean_step_time_s": mean_s}
        return design(asked, arms=2, ranks=ranks, start_s=12, **times)

    long = planned(240)
    assert (long.looks, long.turn_steps, long.seed) == (LOOKS, 4, 7)
    assert planned(240, launch_start_s=1.0).looks == (4, 8, 14, 24)  # little of each launch is its start
    assert planned(240, ranks=2).turn_steps == 12
    assert long.rounds >= 20
    interrupted = planned(240, mean_s=0.02)  # by others: fewer rounds, turns as long as before
    assert (interrupted.turn_steps, interrupted.rounds) == (long.turn_steps, long.rounds // 2)
    short = planned(45)
    assert short.looks[-1] < 12
    with pytest.raises(InvalidInputError, match=r"--budget 4\ds"):
        planned(20)
    assert out_of_reach(long, 0.005) is None
    assert "inconclusive" in out_of_reach(long, 0.03)


def test_a_plan_sees_through_the_time_slices_of_others():
    """Every third step waits 4 ms for its turn on the core."""
    foreach = WarmUp(step_time_s=(*[0.02] * 5, *[0.001, 0.005, 0.001] * 10), steady_from=5, build_s=1.0)
    forloop = WarmUp(step_time_s=(0.003, 0.007, 0.003) * 10, steady_from=0, build_s=1.0)
    begun = Begun(warm={0: foreach, 1: forloop}, losses={}, started_s=0.0, took_s=1.0)
    assert begun.step_s == 0.003
    assert begun.mean_step_s == pytest.approx((0.007 + 0.013) / 3 / 2)


def test_arms_that_train_differently_are_refused_or_told_of_in_every_launch():
    arms = [Arm(name=name, spec=RunSpec(workload="gpt", optimizer="adamw/foreach")) for name in "ab"]

    def differences(**options):
        sitting = Sitting(arms, None, None, 0.0, fresh=False, resident=True, **options)
        sitting._curves = {0: [3.0, 2.0, 1.0], 1: [3.0, 2.0, 1.5]}
        sitting._built = dict.fromkeys((0, 1), Built(1.0, compiled=False, state_dtypes=("float32",)))
        return sitting._differences()

    assert differences(unlike=True) == ["a and b train differently: their losses part in step 3"]
    with pytest.raises(UnlikeArmsError, match=r"part in step 3, 1 and 1\.5; --allow-different-training"):
        differences(unlike=False)


def test_the_band_of_arms_is_that_of_the_states_that_their_own_code_declares():
    arms = [Arm(name=name, spec=RunSpec(workload="gpt", optimizer="no_code_of_the_driver:C")) for name in "ab"]
    sitting = Sitting(arms, None, None, 0.0, unlike=False, fresh=False, resident=True)
    losses = {0: (3.0, 2.0), 1: (3.0, 2.004)}
    sitting._curves = {index: list(each) for index, each in losses.items()}
    states = [Built(1.0, compiled=False, state_dtypes=(each,)) for each in ("float32", "bfloat16")]

    sitting._built = {0: states[0], 1: states[1]}
    sitting._alike(losses)
    assert sitting._differences() == []
    sitting._built = {0: states[0], 1: states[0]}
    with pytest.raises(UnlikeArmsError, match="in step 2"):
        sitting._alike(losses)
    with pytest.raises(UnlikeArmsError, match="part in step 2"):
        sitting._differences()


def test_what_is_out_of_reach_is_told_from_the_noise_of_the_warm_up():
    quiet, noisy = (spread(plan(), noise) for noise in (0.0, 0.3))
    assert quiet == SPREAD
    assert 0.05 < noisy < 0.1  # 0.3 * sqrt(2 / 20 rounds), a little less for two steps a turn
    assert out_of_reach(plan(), quiet) is None
    assert "a larger budget helps" in str(out_of_reach(plan(), noisy))
