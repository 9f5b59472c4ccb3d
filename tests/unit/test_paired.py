"""When a paired assertion launches, when it stops, and what it then says: by a clock of the test's own."""

import warnings
from types import SimpleNamespace

import pytest

from optbench import InconclusiveWarning, assert_not_slower, launches, paired


class Clock:
    """Time that passes only where something is called."""

    def __init__(self, resolution_s=0.0):
        self.now, self.resolution_s = 100.0, resolution_s

    def read(self):
        return self.now // self.resolution_s * self.resolution_s if self.resolution_s else self.now

    def call(self, *lengths_s):
        """Return a callable whose calls take these times, the last one for ever after, and count themselves."""

        def called():
            self.now += lengths_s[min(called.calls, len(lengths_s) - 1)]
            called.calls += 1

        called.calls = 0
        return called


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(launches, "time", SimpleNamespace(perf_counter=clock.read))
    monkeypatch.setattr(paired, "time", SimpleNamespace(monotonic=clock.read))
    monkeypatch.setattr(paired, "can_fork", lambda: False)
    return clock


def test_a_launch_of_slow_callables_calls_each_four_times(clock):
    baseline, candidate = clock.call(0.3), clock.call(0.6)
    rounds = launches._turns(baseline, candidate, 2.0)
    assert rounds == [(pytest.approx(0.3), pytest.approx(0.6))] * 3
    assert (baseline.calls, candidate.calls) == (4, 4)


def test_a_launch_of_fast_callables_takes_turns_of_many_calls_until_its_time_is_over(clock):
    baseline, candidate = clock.call(0.001), clock.call(0.001)
    assert len(launches._turns(baseline, candidate, 2.0)) == pytest.approx(2 / 0.042, abs=1)


def test_a_slow_first_call_makes_no_short_turns(clock):
    baseline, candidate = clock.call(0.5, 1e-4), clock.call(0.5, 1e-4)
    rounds = launches._turns(baseline, candidate, 2.0)
    assert baseline.calls > 100 * len(rounds)


def test_nanoseconds_work_under_a_coarse_clock(clock):
    clock.resolution_s = 0.015
    rounds = launches._turns(clock.call(5e-8), clock.call(5e-8), 0.1)
    assert 3 <= len(rounds) <= 200
    assert abs(launches._estimated(rounds)) < 0.7


@pytest.mark.parametrize("fast", [int, lambda: None])
def test_nanoseconds_work_under_the_real_clock(fast):
    rounds = launches._turns(fast, fast, 0.2)
    assert 3 <= len(rounds) <= 200
    assert all(0 < each < 1e-4 for pair in rounds for each in pair)


def test_twice_as_slow_is_proved_of_callables_that_take_long(clock):
    with pytest.raises(AssertionError, match=r"slower: 2\.000x .* 4 in-process launches in 14\.4 s"):
        assert_not_slower(clock.call(0.6), clock.call(0.3), budget_s=60)


def test_the_same_is_proved_of_callables_that_take_long(clock):
    found = assert_not_slower(clock.call(0.3), clock.call(0.3), budget_s=60)
    assert (found.verdict, found.launches) == ("not slower", 4)


@pytest.mark.parametrize("strict", [False, True])
def test_one_launch_is_enough_to_know_that_the_budget_reaches_no_look(clock, strict):
    asked = pytest.raises(AssertionError) if strict else pytest.warns(InconclusiveWarning)
    with asked as told:
        assert_not_slower(clock.call(6.0), clock.call(6.0), budget_s=60, strict=strict)
    text = str(told.value if strict else told[0].message)
    assert "1 in-process launches in 48.0 s" in text
    assert "a launch takes 48.0 s: budget_s=192 is enough for the look after 4 launches" in text
    assert "budget_s=576 is enough for the look after 12 launches" in text


def test_the_budget_that_is_told_is_enough(clock):
    with pytest.warns(InconclusiveWarning, match="budget_s=192 is enough"):
        assert_not_slower(clock.call(6.0), clock.call(6.0), budget_s=60)
    assert assert_not_slower(clock.call(6.0), clock.call(6.0), budget_s=192).verdict == "not slower"


def noisy(clock, length_s):
    """Return launches of so many seconds that find a faster and a slower candidate in turn."""
    ratios = iter([-0.3, 0.3] * 6)

    def launch(*_):
        clock.now += length_s
        return next(ratios)

    return launch


def test_after_a_look_nothing_is_launched_that_reaches_no_further_one(clock, monkeypatch):
    monkeypatch.setattr(launches, "in_process", noisy(clock, 12.0))
    with pytest.warns(InconclusiveWarning, match=r"budget_s=72 is enough for the look after 6 launches"):
        found = assert_not_slower(int, int, budget_s=59)
    assert found.launches == 4


def test_after_the_last_look_a_larger_budget_is_no_remedy(clock, monkeypatch):
    monkeypatch.setattr(launches, "in_process", noisy(clock, 2.0))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert_not_slower(int, int, budget_s=1000)
    text = str(told[0].message)
    assert (
        "all 12 launches are done: a quieter machine decides, or a larger margin (it is proved not to be" in text
    )
    assert "budget_s" not in text
