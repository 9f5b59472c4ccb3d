"""What came of a comparison, from its raw turns alone: the same answer whenever it is asked."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.comparison.estimate import (
    hodges_lehmann,
    interval,
    log_ratios,
    mean_step,
    p99,
    stalls,
)
from harness.comparison.model import STEP_TIME, Analysis, Estimate, Pair
from harness.comparison.spending import looks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from harness.comparison.model import Comparison, Design, Launch, Turn, Verdict
    from harness.comparison.spending import Look

CPU_TIME, MEMORY = "cpu_time_s", "peak_memory_bytes"


@dataclass(frozen=True)
class _Look:
    """One look at the data of a pair.

    Attributes:
        launches: valid ones; 0: there was no look.
        alpha: error that it may spend.
        decided: whether there is a verdict.
    """

    launches: int
    alpha: float
    decided: bool


def analyse(comparison: Comparison, *, comparison_id: str | None = None, whole: bool = False) -> Analysis:
    """Return every arm beside the first.

    Args:
        comparison: raw turns; those of launches that a guard has marked are not used.
        comparison_id: of the store.
        whole: go by the last look there was; default: by the first that decides, as a comparison stops there.
    """
    valid = valid_launches(comparison)
    pairs = [_pair(comparison, valid, arm, whole=whole) for arm in range(1, len(comparison.arms))]
    notes = [
        f"the same code twice came out {pair.verdict}: this machine is not fit for comparisons now; "
        "no verdict here is evidence"
        for pair in pairs
        if pair.is_self_check and pair.verdict in {"faster", "slower"}
    ]
    if comparison.reason is not None:
        notes.append(comparison.reason)
    return Analysis(comparison=comparison_id, pairs=tuple(pairs), spent_s=comparison.spent_s, notes=tuple(notes))


def next_step(
    comparison: Comparison, ready: Callable[[Comparison], bool] | None = None
) -> Literal["go on", "decided", "spent"]:
    """Return whether another launch is of use; looks at the data only where the design says so.

    Args:
        comparison: so far.
        ready: says whether it is decided; None: every arm but an A/A one has a verdict.
    """
    valid = valid_launches(comparison)
    if len(valid) in comparison.design.looks:
        arms = range(1, len(comparison.arms) - comparison.design.self_check)
        if ready is not None:
            decided = ready(comparison)
        else:
            decided = all(_look(comparison, ratios_of(valid, arm, mean_step)).decided for arm in arms or (1,))
        if decided:
            return "decided"
    return "spent" if len(valid) >= comparison.design.looks[-1] else "go on"


def valid_launches(comparison: Comparison) -> list[Launch]:
    """Return the launches that count: no guard has marked them, and every arm has had turns in them."""
    arms = range(1, len(comparison.arms))
    return [
        launch
        for launch in comparison.launches
        if launch.invalid is None and all(log_ratios(launch, (0, arm), mean_step) for arm in arms)
    ]


def ratios_of(launches: Iterable[Launch], arm: int, quantity: Callable[[Turn], float | None]) -> list[float]:
    """Return the log ratio of an arm to the first in each launch that knows it."""
    found = (log_ratios(launch, (0, arm), quantity) for launch in launches)
    return [hodges_lehmann(each) for each in found if each]


def verdict(low: float, high: float, margin: float) -> Verdict:
    """Return what an interval of the log ratio says of B against A."""
    allowed = math.log1p(margin)
    if margin and -allowed < low and high < allowed:
        return "equivalent"
    if high < 0:
        return "faster"
    return "slower" if low > 0 else "inconclusive"


def last_share(comparison: Comparison) -> float:
    """Return the share of the error that the last look there was may spend; 0: there was none."""
    reached = [look.share for look in _looks(comparison) if look.launches <= len(valid_launches(comparison))]
    return reached[-1] if reached else 0.0


def _looks(comparison: Comparison) -> list[Look]:
    return looks_of(comparison.design.looks, comparison.design.shares, comparison.last_look)


def _look(comparison: Comparison, ratios: Sequence[float], *, whole: bool = False) -> _Look:
    """Return the first look that decides, else the last one there was; no launches: none."""
    design = comparison.design
    found = _Look(0, design.alpha, decided=False)
    reached = [look for look in _looks(comparison) if look.launches <= len(ratios)]
    for count, share in reached[-1:] if whole else reached:
        seen = interval(ratios[:count], design.alpha * share)
        decided = verdict(seen.low, seen.high, design.margin) != "inconclusive"
        found = _Look(count, design.alpha * share, decided)
        if decided:
            break
    return found


def _phase_time(phase: str, turn: Turn) -> float | None:
    return turn.phase_s.get(phase)


def _pair(comparison: Comparison, valid: Sequence[Launch], arm: int, *, whole: bool = False) -> Pair:
    design = comparison.design
    look = _look(comparison, ratios_of(valid, arm, mean_step), whole=whole)
    used = valid[: look.launches] if look.launches else list(valid)
    metrics = {STEP_TIME: _with_stalls(_estimate(design, ratios_of(used, arm, mean_step), look), used, arm)}
    for phase in _phases(used):
        metrics[phase] = _estimate(design, ratios_of(used, arm, functools.partial(_phase_time, phase)), look)
    metrics[CPU_TIME] = _estimate(design, ratios_of(used, arm, lambda turn: turn.cpu_time_s), look)
    metrics[MEMORY] = _estimate(design, _memory_ratios(used, arm), look)
    metrics = {name: each for name, each in metrics.items() if each.ratio is not None or name == STEP_TIME}
    return Pair(
        arms=(comparison.arms[0].name, comparison.arms[arm].name),
        verdict=metrics[STEP_TIME].verdict,
        metrics=metrics,
        launches=len(used),
        invalid_launches=len(comparison.launches) - len(valid),
        decided_at=look.launches if look.decided else None,
        is_self_check=design.self_check and arm == len(comparison.arms) - 1,
        amdahl=_amdahl(metrics),
        payback_steps=_payback(used, arm, metrics[STEP_TIME]),
    )


def _phases(launches: Iterable[Launch]) -> list[str]:
    names = {name: None for launch in launches for turn in launch.turns for name in turn.phase_s}
    return list(names)


def _estimate(design: Design, ratios: Sequence[float], look: _Look) -> Estimate:
    if not ratios:
        return Estimate(ratio=None, low=None, high=None, verdict="inconclusive", smallest_effect=None)
    found = interval(ratios, look.alpha)
    known = bool(look.launches) and math.isfinite(found.half)
    return Estimate(
        ratio=math.exp(found.centre),
        low=math.exp(found.low) if known else None,
        high=math.exp(found.high) if known else None,
        verdict=verdict(found.low, found.high, design.margin) if known else "inconclusive",
        smallest_effect=math.expm1(found.half) if known else None,
        launches=tuple(math.exp(each) for each in ratios),
    )


def _memory_ratios(launches: Iterable[Launch], arm: int) -> list[float]:
    sides = [(each.peak_memory_bytes[0], each.peak_memory_bytes[arm]) for each in launches]
    return [math.log(b / a) for a, b in sides if a and b]


def _times(launches: Iterable[Launch], arm: int) -> list[float]:
    return [time for launch in launches for turn in launch.turns if turn.arm == arm for time in turn.step_time_s]


def _with_stalls(estimate: Estimate, launches: Sequence[Launch], arm: int) -> Estimate:
    first, second = _times(launches, 0), _times(launches, arm)
    tails = (p99(first), p99(second))
    known = None if tails[0] is None or tails[1] is None else (tails[0], tails[1])
    return estimate.model_copy(update={"stalls": (stalls(first), stalls(second)), "p99_s": known})


def _amdahl(metrics: dict[str, Estimate]) -> str | None:
    """Return the sentences that tell the optimizer's ratio from the step's; None: neither differs beyond doubt."""
    optimizer, step = metrics.get("optimizer"), metrics[STEP_TIME]
    if optimizer is None or optimizer.ratio is None or step.ratio is None:
        return None
    if {optimizer.verdict, step.verdict}.isdisjoint({"faster", "slower"}):
        return None  # neither is told from nothing
    told = _differs("the optimizer", optimizer), _differs("the step", step)
    # Joined by a comma, what is not known of one would be read as the other's.
    return (", " if "inconclusive" not in {optimizer.verdict, step.verdict} else "; ").join(told)


def _differs(what: str, found: Estimate) -> str:
    if found.ratio is None or found.verdict == "inconclusive":
        return f"whether {what} differs is not known"
    if found.verdict == "equivalent":
        return f"{what} does not differ beyond the margin"
    return (
        f"{what} is {1 / found.ratio:.2f}x faster" if found.ratio <= 1 else f"{what} is {found.ratio:.2f}x slower"
    )


def _payback(launches: Sequence[Launch], arm: int, step: Estimate) -> int | None:
    """Return after how many steps the arm that steps faster has made up for its slower start."""
    import numpy as np

    if not launches or step.verdict not in {"faster", "slower"}:
        return None
    starts = [
        float(
            np.median([each.warm_ups[index].build_s + (each.warm_ups[index].compile_s or 0) for each in launches])
        )
        for index in (0, arm)
    ]
    compiled = any(each.warm_ups[index].compile_s for each in launches for index in (0, arm))
    times = [float(np.median(_times(launches, index))) for index in (0, arm)]
    fast, slow = (1, 0) if step.verdict == "faster" else (0, 1)
    later = starts[fast] - starts[slow]
    gain = times[slow] - times[fast]
    return math.ceil(later / gain) if compiled and later > 0 and gain > 0 else None
