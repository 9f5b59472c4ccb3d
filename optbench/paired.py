"""``assert_not_slower``: two callables in turns of one sitting, with an error that is bounded."""

from __future__ import annotations

import importlib
import math
import os
import threading
import time
import warnings
from typing import TYPE_CHECKING, Literal, NamedTuple

from optbench import launches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOOKS = (4, 6, 8, 12)
"""Launches after which the data are looked at: fixed, so that the error can be shared by the looks."""

ALPHA = 0.01
"""Error of each one-sided bound, over all looks together."""

LEAST_LAUNCHES = 3
"""That a last look takes; `harness.comparison.spending` says why."""

LONGEST_LAUNCH_S = 2.0


class InconclusiveWarning(UserWarning):
    """The budget ended before it was known whether the candidate is slower; with ``-W error`` the test fails."""


class NotSlower(NamedTuple):
    """What a paired assertion found.

    Attributes:
        ratio: candidate to baseline, mean over the launches; 1.03 is 3 % slower.
        low: one-sided 99 % bound.
        high: likewise.
        verdict: of the candidate.
        launches: of both, together.
        kind: ``forked``: each launch is a process of its own; ``in-process``: it could not be, and a bias
            that more launches don't remove may stay (about 1 %).
        spent_s: wall-clock time, in seconds.
    """

    ratio: float
    low: float
    high: float
    verdict: Literal["not slower", "slower", "inconclusive"]
    launches: int
    kind: Literal["forked", "in-process"]
    spent_s: float

    def __str__(self) -> str:
        """Return it in one line."""
        return (
            f"{self.verdict}: {self.ratio:.3f}x the baseline's time, "
            f"99 % bounds {self.low:.3f} to {self.high:.3f}, "
            f"{self.launches} {self.kind} launches in {self.spent_s:.1f} s"
        )


def assert_not_slower(  # one keyword an option
    candidate: Callable[[], object],
    baseline: Callable[[], object],
    *,
    margin: float | str = 0.05,
    budget_s: float = 60.0,
    timeout_s: float = 60.0,
    strict: bool = False,
) -> NotSlower:
    """Fail where a call of ``candidate`` is proved to take longer than ``baseline`` by more than ``margin``.

    Both are called in short turns, in random order, so that what the machine does meanwhile meets both.
    Launches are forked processes with memory laid out anew. Within a launch counts the Hodges-Lehmann estimate
    of the log ratios, across launches a one-sided t bound; looks are fixed in advance.

    Args:
        candidate: without arguments; called often.
        baseline: likewise.
        margin: relative difference that does not matter: ``0.05`` or ``"5 %"``.
        budget_s: wall-clock time within which the last launch begins.
        timeout_s: of one launch.
        strict: fail where the budget ends before it is known.

    Returns:
        What was found.

    Raises:
        AssertionError: the candidate is slower; or, if ``strict``, it is not known.
        TypeError: a callable returns before its work is done: it is a coroutine function or a generator function,
            or returns an awaitable, an iterator or a future.
        ValueError: the margin or a time makes no sense.
        TimeoutError: a launch did not end in time.
        RuntimeError: a callable raised in a launch; the text holds its traceback.
    """
    __tracebackhide__ = True
    allowed = _checked(candidate, baseline, margin, budget_s, timeout_s)
    length_s = min(LONGEST_LAUNCH_S, budget_s / LOOKS[-1])
    found = _measured(candidate, baseline, allowed, budget_s, length_s, timeout_s)
    told = f"{found} (margin {100 * allowed:g} %)"
    if found.verdict == "slower":
        raise AssertionError(told)
    if found.verdict == "inconclusive":
        told = f"{told}; {_remedy(found, length_s)}"
        if strict:
            raise AssertionError(told)
        warnings.warn(told, InconclusiveWarning, stacklevel=2)
    return found


def _checked(
    candidate: Callable[[], object],
    baseline: Callable[[], object],
    margin: float | str,
    budget_s: float,
    timeout_s: float,
) -> float:
    """Return the margin as a fraction.

    Raises:
        TypeError: a callable is no call of its work.
        ValueError: the margin or a time makes no sense.
    """
    from harness.gating.file import fraction
    from optbench.laziness import lazy_callable

    for call, side in ((baseline, launches.SIDES[0]), (candidate, launches.SIDES[1])):
        if (why := lazy_callable(call, side)) is not None:
            raise TypeError(why)
    if not (budget_s > 0 and timeout_s > 0):
        raise ValueError(f"budget_s={budget_s!r}, timeout_s={timeout_s!r}: expected times above 0")
    try:
        return fraction(margin)
    except ValueError as error:
        raise ValueError(f"margin={margin!r}: {error}") from None


def _measured(
    candidate: Callable[[], object],
    baseline: Callable[[], object],
    margin: float,
    budget_s: float,
    length_s: float,
    timeout_s: float,
) -> NotSlower:
    """Launch both until a look decides, or no further launch begins within the budget; then look a last time."""
    __tracebackhide__ = True
    forks = can_fork()
    # Now, so that it takes no launch's time; not before: it starts threads, of OpenBLAS, which end at a fork.
    importlib.import_module("scipy.stats")
    launch = launches.forked if forks else launches.in_process
    ratios: list[float] = []
    began = time.monotonic()
    found = _judged(ratios, margin, forks=forks, spent_s=0.0)
    while found.verdict == "inconclusive" and _goes_on(found, budget_s):
        ratios.append(launch(baseline, candidate, length_s, timeout_s))
        found = _judged(ratios, margin, forks=forks, spent_s=time.monotonic() - began)
    if found.verdict == "inconclusive":
        found = _judged(ratios, margin, forks=forks, spent_s=found.spent_s, last=True)
    return found


def _goes_on(found: NotSlower, budget_s: float) -> bool:
    """Return whether another launch begins within the budget, and those that a look takes do, too."""
    needed = max(found.launches, LEAST_LAUNCHES - 1)
    return found.launches < LOOKS[-1] and needed * _launch_s(found) < budget_s


def _launch_s(found: NotSlower) -> float:
    """Return the seconds of a launch, 0 before the first."""
    return found.spent_s / max(1, found.launches)


def _remedy(found: NotSlower, length_s: float) -> str:
    """Say what would decide where the verdict is inconclusive."""
    looks = [look for look in LOOKS if look > found.launches]
    if not looks:
        return (
            f"all {found.launches} launches are done: a quieter machine decides, or a larger margin "
            f"(it is proved not to be slower by more than {100 * (found.high - 1):.1f} %)"
        )
    longer_s = _launch_s(found) - length_s + LONGEST_LAUNCH_S  # a larger budget lengthens launches
    enough = " and ".join(
        f"budget_s={math.ceil(look * longer_s)} is enough for the look after {look} launches"
        for look in dict.fromkeys((looks[0], looks[-1]))
    )
    return f"a launch takes {_launch_s(found):.1f} s: {enough}; a larger margin needs fewer of them"


def _judged(
    ratios: Sequence[float], margin: float, *, forks: bool, spent_s: float, last: bool = False
) -> NotSlower:
    """Return the verdict; between looks it is inconclusive. The last look spends what is left of the error."""
    from harness.comparison.estimate import interval, p_above, p_below
    from harness.comparison.spending import looks_of, shares

    looks = looks_of(LOOKS, shares(len(LOOKS)), len(ratios) if last else None)
    due = next((look.share for look in looks if look.launches == len(ratios)), None)
    share = due or shares(1)[0]
    verdict: Literal["not slower", "slower", "inconclusive"] = "inconclusive"
    low, centre, high = 0.0, 0.0, math.inf
    if ratios:
        bounds = interval(ratios, 2 * ALPHA * share)
        centre = bounds.centre
        low, high = (math.exp(bounds.low), math.exp(bounds.high)) if len(ratios) > 1 else (0.0, math.inf)
    if due is not None:
        allowed = math.log1p(margin)
        if p_above(ratios, allowed) <= ALPHA * due:
            verdict = "slower"
        elif p_below(ratios, allowed) <= ALPHA * due:
            verdict = "not slower"
    kind: Literal["forked", "in-process"] = "forked" if forks else "in-process"
    return NotSlower(math.exp(centre), low, high, verdict, len(ratios), kind, spent_s)


def can_fork() -> bool:
    """Return whether a forked child can go on where this process is: no other threads, no device in use."""
    import sys

    torch = sys.modules.get("torch")
    if not hasattr(os, "fork") or threading.active_count() > 1:
        return False
    if torch is not None and getattr(torch, "cuda", None) is not None and torch.cuda.is_initialized():
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208  # names are all that is needed
    except OSError:
        return False
