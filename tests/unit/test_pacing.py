"""What is left of a budget and of the error: launches by the clock, looks added, a last look at the end."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_comparison_statistics import made, plan

from harness.comparison.analysis import analyse, last_share
from harness.comparison.designing import LOOKS, TooShortError, design
from harness.comparison.estimate import interval
from harness.comparison.model import STEP_TIME, Design
from harness.comparison.pacing import FEWEST_ROUNDS, OVERRUN, Cost, is_over, launch_s
from harness.comparison.slowed import Recording, plays
from harness.comparison.spending import further, looks_of, shares
from launch import late
from launch.arms import Built
from launch.comparing import _control, _Run
from launch.sitting import WARM_SHARE, Sitting

RECORDED = Path(__file__).parents[1] / "data" / "late-neighbour.json"


def planned(budget_s, cost, start_s=10.0, arms=2):
    """Return the plan of a comparison whose rounds take so long, in which turns have one step."""
    asked = Design(looks=(), margin=0.025, rounds=0, turn_steps=0, budget_s=budget_s, seed=0)
    step_s = cost.round_s / arms / 2
    return design(
        asked, arms=arms, ranks=1, start_s=start_s, launch_start_s=cost.start_s, step_time_s=max(step_s, 0.04),
        mean_step_time_s=step_s,
    )  # fmt: skip


def run(budget_s, cost, factor, since=0.0, start_s=10.0):
    """Return the rounds of each launch and the time spent where all takes ``factor`` as long from a moment on."""
    plan, spent_s, rounds, seen = planned(budget_s, cost, start_s), start_s, [], cost
    while (seconds := launch_s(plan, spent_s, seen, rounds)) is not None:
        now = [spent_s]

        def passes(took_s, now=now):
            now[0] += took_s * (factor if now[0] >= since else 1.0)

        passes(cost.start_s)
        first_s, count = now[0], 0
        while not is_over(count, now[0], first_s, spent_s + seconds):
            passes(cost.round_s)
            count += 1
        seen = Cost(first_s - spent_s, (now[0] - first_s) / count)
        spent_s = now[0]
        rounds.append(count)
        if len(rounds) >= plan.looks[-1]:
            plan = further(plan)
    return rounds, spent_s


def test_steps_that_become_slower_after_the_plan_leave_as_many_launches_as_an_interval_takes():
    """The sighting: steps of 132 ms when it was planned, of 308 ms afterwards; three launches of six fitted."""
    cost = Cost(3.2, 4 * 0.132)
    assert planned(120, cost).looks == (4, 6)
    rounds, spent_s = run(120, cost, 308 / 132)
    assert len(rounds) >= 5
    assert min(rounds) >= FEWEST_ROUNDS
    assert spent_s <= 120


@given(
    st.floats(1.0, 3.0),
    st.floats(0, 200),
    st.floats(0.05, 2.0),
    st.floats(0.5, 6.0),
    st.sampled_from([60, 120, 600]),
)
def test_whenever_a_machine_becomes_slower_three_launches_fit_into_the_budget(
    factor, since, round_s, start_s, budget
):
    try:
        rounds, spent_s = run(budget, Cost(start_s, round_s), factor, since)
    except TooShortError:
        return
    assert len(rounds) >= 3
    assert spent_s <= max(OVERRUN * budget, 10 + 3 * factor * (start_s + (FEWEST_ROUNDS + 1) * round_s))


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_a_budget_is_used_up_even_where_the_machine_becomes_faster(factor):
    """Four arms and four minutes that stopped after 91 s: more launches, and looks at them, are added."""
    rounds, spent_s = run(240, Cost(2.0, 0.17), factor)
    assert 0.9 * 240 < spent_s <= 240
    assert len(rounds) >= 24


def test_launches_are_longer_where_their_start_is_dearer_and_alike_while_nothing_changes():
    cheap, dear = (run(240, Cost(start_s, 0.1), 1.0)[0] for start_s in (0.5, 6.0))
    assert len(cheap) > 2 * len(dear)
    assert min(dear) > max(cheap)
    assert all(abs(each - cheap[0]) <= 2 for each in cheap)


def test_looks_spend_a_quarter_of_what_is_left_and_the_last_one_the_rest():
    assert shares(3) == pytest.approx((0.25, 0.1875, 0.140625))
    spent = looks_of((4, 8, 14), shares(3), 9)
    assert [each.launches for each in spent] == [4, 8, 9]
    assert sum(each.share for each in spent) == pytest.approx(1)
    assert [each.launches for each in looks_of((4, 8), shares(2), 8)] == [4, 8]
    assert looks_of((4, 8), shares(2), 8)[-1].share == 0.75
    assert looks_of((4, 8), shares(2), 2) == []
    assert looks_of((4, 8), (), None)[1].share == 0.5  # stored by version 1
    assert further(plan()).looks == (4, 6, 8, 12, 18)


@pytest.mark.parametrize("looks", LOOKS)
def test_the_error_holds_over_all_looks_wherever_the_budget_ends(looks):
    """Ratios of launches drawn directly; where the budget ends is drawn too, as no ratio decides it."""
    chance = np.random.default_rng(1)
    ratios = chance.normal(0, 0.005, (4000, looks[-1] + 8))
    ends = chance.integers(3, looks[-1] + 8, 4000)
    missed = np.zeros(4000, dtype=bool)
    for last in range(3, looks[-1] + 8):
        some = ends == last
        for count, share in looks_of(looks, shares(len(looks)), last):
            seen = ratios[some, :count]
            unit = interval([-1.0, 1.0, *[0.0] * (count - 2)], 0.01 * share).half / math.sqrt(
                2 / (count - 1) / count
            )
            missed[some] |= abs(seen.mean(axis=1)) > unit * seen.std(axis=1, ddof=1) / math.sqrt(count)
    assert missed.mean() < 0.013


def test_three_launches_at_the_end_of_a_budget_have_an_interval_and_two_have_none():
    three = made(1.25, launches=3)
    (unfinished,) = analyse(three).pairs
    (ended,) = analyse(three.model_copy(update={"last_look": 3})).pairs
    assert unfinished.metrics[STEP_TIME].low is None
    assert (ended.verdict, ended.decided_at) == ("slower", 3)
    assert ended.metrics[STEP_TIME].low < 1.25 < ended.metrics[STEP_TIME].high
    two = made(1.25, launches=2).model_copy(update={"last_look": 2})
    assert analyse(two).pairs[0].metrics[STEP_TIME].low is None
    assert (last_share(two), last_share(three), last_share(three.model_copy(update={"last_look": 3}))) == (0, 0, 1)


def test_too_few_launches_for_an_interval_are_told_with_the_budget_that_is_enough():
    class Ended:
        launches, cost = (1, 2), Cost(5.0, 1.0)

    def told(valid):
        run = _Run(made(1.0, launches=1).arms, plan(), print, print, None, [])
        run._sitting, run._last_look, run._start_s = Ended(), valid, 10.0
        return run.too_few()

    found = "an interval takes 3 valid launches, and there were 2 within 60 s"
    assert told(2) == f"{found}: at this pace a budget of 143 s is enough"
    assert "1 of 2: guards left the others out" in told(1)
    assert told(3) is None


def test_the_control_of_a_comparison_has_a_name_that_says_what_it_is():
    arms = made(1.0, launches=1).arms
    assert _control(arms) == "a (A/A control)"
    taken = arms[1].model_copy(update={"name": "a (A/A control)"})
    assert _control([arms[0], taken]) == "a (A/A control 2)"


@pytest.mark.parametrize(("seconds", "steps"), [(1e9, 96), (100.0, 48), (40.0, 24), (1.0, 12)])
def test_a_warm_up_that_never_looks_steady_leaves_the_rounds_their_time(seconds, steps):
    class Worlds:
        def launch(self, indices):
            return dict.fromkeys(indices, Built(0.0, compiled=False, state_dtypes=()))

        def turn(self, index, lead, steps):
            self.made[index] = self.made.get(index, 0) + steps
            made = range(self.made[index] - steps, self.made[index])
            return {"step_time_s": [0.3 * 1.02**each for each in made], "losses": [1.0] * steps}

        def __init__(self):
            self.made = {}

    arms = made(1.0, launches=1).arms
    sitting = Sitting(arms, Worlds(), None, 0.0, unlike=False, fresh=False, resident=True)
    sitting._further_s = WARM_SHARE * seconds / len(arms)
    begun = sitting._warm(range(len(arms)))
    assert [len(each.step_time_s) for each in begun.warm.values()] == [steps, steps]


@pytest.fixture(scope="module")
def recording():
    return Recording.model_validate_json(RECORDED.read_text(encoding="utf-8"))


def test_beside_a_neighbour_that_begins_after_the_plan_a_slowdown_is_found_and_the_same_code_is_not(recording):
    """Recorded turns and slow-down; `optbench selftest --setting late-neighbour` replays some thousand more."""
    chance = random.Random(0)
    found = [plays(recording, (0, 2), 120.0, margin=0.025, chance=chance) for _ in range(200)]
    same = [plays(recording, (0, 1), 120.0, margin=0.025, chance=chance, exchange=True) for _ in range(200)]
    assert sum(each.verdict == "slower" for each in found) >= 195  # fewer where 99 in 100 are found: p < 0.02
    assert (
        sum(each.verdict in {"slower", "faster"} for each in same) <= 6
    )  # more than 2 in 100 by chance: p < 0.01
    assert min(each.launches for each in [*found, *same]) >= 3
    assert max(each.spent_s for each in [*found, *same]) <= 120 * OVERRUN


@pytest.mark.exhaustive
def test_thousands_of_replays_beside_a_late_neighbour_meet_every_target(recording):
    assert [row for row in late.rows_of(recording, 2000) if row.met is False] == []
