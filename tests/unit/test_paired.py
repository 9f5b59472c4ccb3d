"""When a paired assertion launches, when it stops, and what it then says: by a clock of the test's own."""

import concurrent.futures
import functools
import io
import math
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from optbench import InconclusiveWarning, assert_not_slower, launches, laziness, paired


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


def test_nothing_is_launched_after_the_budget_and_a_larger_one_is_told(clock, monkeypatch):
    monkeypatch.setattr(launches, "in_process", noisy(clock, 12.0))
    with pytest.warns(InconclusiveWarning, match=r"budget_s=72 is enough for the look after 6 launches"):
        found = assert_not_slower(int, int, budget_s=59)
    assert found.launches == 5


def test_three_launches_within_the_budget_are_looked_at_with_all_of_the_error(clock, monkeypatch):
    ratios = iter([0.70, 0.71, 0.72])

    def launch(*_):
        clock.now += 20.0
        return next(ratios)

    monkeypatch.setattr(launches, "in_process", launch)
    with pytest.raises(AssertionError, match=r"slower: 2\.034x .* 3 in-process launches in 60\.0 s"):
        assert_not_slower(int, int, budget_s=60)


def _generates():
    yield 1


async def _awaits():
    return 1


class _AwaitsWhenCalled:
    async def __call__(self):
        return 1

    async def method(self):
        return 1


def _ready():
    future = concurrent.futures.Future()
    future.set_result(1)
    return future


@pytest.mark.parametrize(
    ("lazy", "told"),
    [
        (_awaits, r"candidate is a coroutine function: .*pass lambda: asyncio\.run\(_awaits\(\)\)"),
        (functools.partial(functools.partial(_awaits)), "candidate is a coroutine function"),
        (_AwaitsWhenCalled(), "candidate is a coroutine function"),
        (_AwaitsWhenCalled().method, "candidate is a coroutine function"),
        (_generates, r"candidate is a generator function: .*pass lambda: list\(_generates\(\)\)"),
        (lambda *_: _awaits(), r"candidate returns an awaitable \(coroutine\): the call alone does not"),
        (lambda: [1, _awaits()], r"an awaitable \(coroutine\) in a list"),
        (lambda *_: _generates(), "candidate returns a generator"),
        (lambda: map(int, "12"), r"candidate returns an iterator \(map\), which works when it is read"),
        (lambda: {"a": _ready()}, "candidate returns a future in a dict"),
        (lambda: threading.Thread(target=int), "candidate returns a thread or process that is under way"),
        ("no function", "candidate cannot be called: found 'no function'"),
    ],
)
@pytest.mark.parametrize("forks", [True, False])
def test_a_callable_that_returns_before_its_work_is_done_is_refused(monkeypatch, lazy, told, forks):
    monkeypatch.setattr(paired, "can_fork", lambda: forks)
    with pytest.raises(TypeError, match=told):
        assert_not_slower(lazy, int, budget_s=5)


@pytest.mark.parametrize("value", [None, 3, [1.0], "text", {"loss": 1.0}, io.StringIO("a\nb"), range(3), int])
def test_what_is_done_is_not_called_lazy(value):
    assert laziness.lazy_result(value, "candidate") is None


@pytest.mark.parametrize("margin", [5, "5", 1, "100 %", -0.1, math.nan, "some", True])
def test_a_margin_that_is_no_share_is_refused_with_the_remedy(margin):
    with pytest.raises(ValueError, match=r'margin=.* expected a fraction below 1: 0\.025 or "2\.5 %"') as refused:
        assert_not_slower(int, int, margin=margin)
    assert margin != 5 or str(refused.value).endswith('; 5 % is written "5 %"')


@pytest.mark.parametrize("margin", [0.05, "5 %", "5%", "0.05", np.float32(0.05)])
def test_a_margin_is_a_share_or_percents(clock, margin):
    slower = clock.call(0.312)
    assert assert_not_slower(slower, clock.call(0.3), margin=margin).verdict == "not slower"
    with pytest.raises(AssertionError, match=r"\(margin 5 %\)"):
        assert_not_slower(clock.call(0.33), clock.call(0.3), margin=margin)


def test_a_call_is_over_when_its_device_is(clock, monkeypatch):
    """The device's own clock: calls return at once, and what they have queued takes its time afterwards."""
    queued = []

    def wait():
        clock.now += sum(queued)
        queued.clear()

    monkeypatch.setattr(launches, "_waits", lambda: wait)
    rounds = launches._turns(lambda: queued.append(0.3), lambda: queued.append(0.6), 2.0)
    assert rounds == [(pytest.approx(0.3), pytest.approx(0.6))] * 3


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
