"""Numbers and names of a comparison in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.comparison.model import STEP_TIME
from harness.reports.printable import printable

if TYPE_CHECKING:
    from harness.comparison.model import Estimate, Pair, Verdict

PHASES = ("data", "forward", "backward", "work", "optimizer", "other")
"""In the order of a step; others follow by name."""

MEMORY_WORDS: dict[Verdict, str] = {"faster": "less", "slower": "more"}
"""Of a metric that is no time, a verdict reads like this."""

LONGEST_NAME = 60
LONGEST_REASON = 300


def percent(share: float | None) -> str:
    """Return a relative difference, ``1.2 %``; ``?`` where it is unknown."""
    if share is None or not math.isfinite(share):
        return "?"
    return f"{100 * share:.{'2g' if abs(share) < 0.995 else '0f'}} %"


def times(ratio: float | None) -> str:
    """Return a ratio as a factor, ``0.523x``, with three digits after the point below ten."""
    if ratio is None or not math.isfinite(ratio):
        return "?"
    if ratio != 0 and not 1e-4 <= abs(ratio) < 1e6:
        return f"{ratio:.1e}x"
    return f"{ratio:.{3 if ratio < 10 else 1 if ratio < 1000 else 0}f}x"


def level_of(alpha: float) -> float:
    """Return an interval's level in percent, its distance from 100 rounded to one digit: 99.7 for 1 % / 3."""
    return round(100 - float(f"{100 * alpha:.1g}"), 12)


def interval(estimate: Estimate) -> str:
    """Return an interval, ``0.503 … 0.544``."""
    return interval_of(estimate.low, estimate.high)


def interval_of(low: float | None, high: float | None) -> str:
    """Return two ends, ``0.503 … 0.544``; ``unknown`` without them."""
    if low is None or high is None:
        return "unknown"
    return f"{times(low).rstrip('x')} … {times(high).rstrip('x')}"


def label(metric: str) -> str:
    """Name a metric for people."""
    known = {STEP_TIME: "whole step", "cpu_time_s": "CPU time", "peak_memory_bytes": "peak memory"}
    bare = metric.removeprefix("phase_").removeprefix("phase.")
    for suffix in ("_time_s", "_s", "_bytes"):
        bare = bare.removesuffix(suffix)
    return printable(known.get(metric) or bare.replace("_", " ") or metric, LONGEST_NAME)


def is_time(metric: str) -> bool:
    """Whether a metric is a time, of which less is faster."""
    return metric.endswith("_s") or phase(metric) is not None


def phase(metric: str) -> str | None:
    """Return the phase of the step that a metric times; None: it is none's."""
    bare = metric.removeprefix("phase_").removeprefix("phase.").removesuffix("_s").removesuffix("_time")
    return bare if bare in PHASES or metric.startswith(("phase_", "phase.")) else None


def order(metric: str) -> tuple[int, int, str]:
    """Return the place of a metric: whole step, its phases in their order, CPU time, the rest."""
    part = phase(metric)
    if metric == STEP_TIME:
        return 0, 0, metric
    if part is not None:
        return 1, PHASES.index(part) if part in PHASES else len(PHASES), metric
    return 2, 0 if metric == "cpu_time_s" else 1, metric


def shown_name(name: str) -> str:
    """Return an arm's name as it may be shown."""
    return printable(name, LONGEST_NAME)


def sentence(pair: Pair, margin: float, level: float) -> str:
    """Say what came of a pair so that nobody takes the ratio for its inverse."""
    first, second = shown_name(pair.arms[0]), shown_name(pair.arms[1])
    found = pair.metrics.get(STEP_TIME)
    if found is None or found.ratio is None:
        return f"{second} against {first}: {pair.verdict}: too few valid launches for a ratio"
    text = f"{second} takes {times(found.ratio)} the time of {first}"
    if found.low is not None:
        text += f" ({level:g} % interval {interval(found)})"
    return f"{text}: {ending(pair.verdict, margin)}"


def ending(verdict: Verdict, margin: float) -> str:
    """Say what a verdict means."""
    if verdict == "equivalent":
        return f"equivalent: no difference beyond the margin of {percent(margin)}"
    return "inconclusive: too little evidence for a verdict" if verdict == "inconclusive" else verdict
