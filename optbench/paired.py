"""``assert_not_slower``: two callables in turns of one sitting, with an error that is bounded."""

from __future__ import annotations

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
    margin: float = 0.05,
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
        margin: relative difference that does not matter.
        budget_s: wall-clock time of all launches.
        timeout_s: of one launch.
        strict: fail where the budget ends before it is known.

    Returns:
        What was found.

    Raises:
        AssertionError: the candidate is slower; or, if ``strict``, it is not known.
        ValueError: the margin or a time makes no sense.
        TimeoutError: a launch did not end in time.
        RuntimeError: a callable raised in a launch; the text holds its traceback.
    """
    __tracebackhide__ = True
    if not (margin >= 0 and math.isfinite(margin) and budget_s > 0 and timeout_s > 0):
        raise ValueError(
            f"margin={margin!r}, budget_s={budget_s!r}, timeout_s={timeout_s!r}: not negative, times above 0"
        )
    began = time.monotonic()
    forks = can_fork()
    ratios: list[float] = []
    found = _judged(ratios, margin, forks=forks, spent_s=0.0)
    while len(ratios) < LOOKS[-1] and time.monotonic() - began < budget_s:
        length_s = min(LONGEST_LAUNCH_S, budget_s / LOOKS[-1])
        turn = launches.forked if forks else launches.in_process
        ratios.append(turn(baseline, candidate, length_s, timeout_s))
        found = _judged(ratios, margin, forks=forks, spent_s=time.monotonic() - began)
        if found.verdict != "inconclusive":
            break
    told = f"{found} (margin {100 * margin:g} %)"
    if found.verdict == "slower" or (strict and found.verdict == "inconclusive"):
        raise AssertionError(told)
    if found.verdict == "inconclusive":
        warnings.warn(f"{told}; a larger budget_s or margin decides", InconclusiveWarning, stacklevel=2)
    return found


def _judged(ratios: Sequence[float], margin: float, *, forks: bool, spent_s: float) -> NotSlower:
    """Return the verdict; between looks it is inconclusive."""
    from harness.comparison.estimate import interval, p_above, p_below

    verdict: Literal["not slower", "slower", "inconclusive"] = "inconclusive"
    low, centre, high = 0.0, 0.0, math.inf
    if ratios:
        bounds = interval(ratios, 2 * ALPHA / len(LOOKS))
        centre = bounds.centre
        low, high = (math.exp(bounds.low), math.exp(bounds.high)) if len(ratios) > 1 else (0.0, math.inf)
    if len(ratios) in LOOKS:
        allowed = math.log1p(margin)
        if len(LOOKS) * p_above(ratios, allowed) <= ALPHA:
            verdict = "slower"
        elif len(LOOKS) * p_below(ratios, allowed) <= ALPHA:
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
