"""Whether training takes as many steps to its target as it did, over paired seeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

from harness.gating.model import Row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.gating.file import Convergence
    from harness.gating.model import Verdict
    from harness.record import RunRecord

CONFIDENCE = 0.99
"""Of each one-sided bound."""

ENDED: frozenset[str] = frozenset({"completed", "diverged"})
"""Outcomes that tell how training went; a run that diverged missed its target."""

KNOWN = 0.8
"""Of the margin, what the steps between two evaluations may take up."""

WHAT = "steps to the target"
MORE = "take more steps, a nearer target or more seeds"


class Bounds(NamedTuple):
    """One-sided bounds of a median, and the median."""

    low: float
    median: float
    high: float


def steps_to_target(record: RunRecord, asked: Convergence) -> float:
    """Return the evaluation, by its step, at which a run met the target; infinity: it never did, or diverged."""
    if record.outcome != "completed":
        return math.inf
    if asked.metric is None or asked.target is None:
        known = record.metrics.get("steps_to_target")
        return math.inf if known is None or known.value is None else float(known.value)
    found = record.metrics.get(asked.metric)
    series = () if found is None else found.series or ()
    steps = range(1, len(series) + 1) if found is None or found.series_steps is None else found.series_steps
    for step, value in zip(steps, series, strict=False):
        if value is not None and _meets(value, asked.target, asked.better or "lower"):
            return float(step)
    return math.inf


def _meets(value: float, target: float, better: str) -> bool:
    return value <= target if better == "lower" else value >= target


def bounds(values: Sequence[float]) -> Bounds | None:
    """Return order statistics that bound the median, each with 99 % confidence; None: too few values.

    By signs: of n values, the k-th smallest lies above the median with probability P(B < k), B ~ Binomial(n, 1/2)
    (Conover 1999, Practical Nonparametric Statistics, 3.2). Infinite values take part like any other.
    """
    ordered, count = sorted(values), len(values)
    tail, rank = 0.0, 0
    for each in range(count):
        tail += math.comb(count, each) * 0.5**count
        if tail > 1 - CONFIDENCE:
            break
        rank = each + 1
    if rank == 0:
        return None
    low, high = ordered[count // 2 - (count % 2 == 0)], ordered[count // 2]
    median = (low + high) / 2 if math.isfinite(low) and math.isfinite(high) else high
    return Bounds(ordered[rank - 1], median, ordered[count - rank])


def judged(
    cell: str, before: Mapping[int, float], after: Mapping[int, float], margin: float, interval: int = 1
) -> tuple[Row, str | None]:
    """Return the row of one cell, and a note if it trains otherwise, though no worse.

    Args:
        cell: its name.
        before: by seed, steps to the target with the baseline's code; infinity: missed.
        after: likewise with the code that is gated.
        margin: relative difference that does not matter, to either side.
        interval: steps between evaluations; a target met at one of them was met at any step since the last.
    """
    seeds = [seed for seed in before if seed in after]
    told = [seed for seed in seeds if math.isfinite(before[seed]) or math.isfinite(after[seed])]
    missed, had_missed = (sum(math.isinf(steps[seed]) for seed in seeds) for steps in (after, before))
    middle = bounds([_log_ratio(before[seed], after[seed]) for seed in told])
    least = bounds([_log_ratio(before[seed], _earliest(after[seed], interval)) for seed in told])
    most = bounds([_log_ratio(_earliest(before[seed], interval), after[seed]) for seed in told])
    if middle is None or least is None or most is None:
        detail = f"on {len(seeds) - len(told)} of {len(seeds)} seeds neither code met the target"
        return _row(cell, "inconclusive", detail, margin, remedy=MORE), None
    found = Bounds(least.low, middle.median, most.high)
    verdict, note = _verdict(found, math.log1p(margin), cell)
    detail = f"over {len(told)} seeds"
    if missed or had_missed:
        detail += f"; missed on {missed}, with the baseline's code on {had_missed}"
    if _misses_more(before, after, seeds):
        verdict, note = "regressed", None
    elif verdict == "passed" and missed > had_missed:
        verdict, note = "inconclusive", None
    remedy: str | None = None
    if verdict == "inconclusive":
        remedy = MORE
        if interval > 1 and _verdict(middle, math.log1p(margin), cell)[0] == "passed":
            detail += f"; evaluated every {interval} steps only"
            remedy = "evaluate more often (evaluate_every), or train to a target that is met later"
    return _row(cell, verdict, detail, margin, found=found, remedy=remedy), note


def finest(steps: int, margin: float) -> int:
    """Return after how many steps to evaluate, so that a target met half-way is known within the margin."""
    known = 1 - 1 / (1 + KNOWN * margin)
    return 1 + int(steps / 2 * known)


def _earliest(met: float, interval: int) -> float:
    return met if math.isinf(met) else max(1.0, met - interval + 1)


def _misses_more(before: Mapping[int, float], after: Mapping[int, float], seeds: Sequence[int]) -> bool:
    """Say whether the gated code alone misses on more seeds than the baseline alone, by McNemar's exact test.

    McNemar 1947, Psychometrika 12:153. The median's bound does not see misses on fewer than half of the seeds.
    """
    only_after = sum(math.isinf(after[seed]) and math.isfinite(before[seed]) for seed in seeds)
    only_before = sum(math.isinf(before[seed]) and math.isfinite(after[seed]) for seed in seeds)
    count = only_after + only_before
    tail = sum(math.comb(count, each) for each in range(only_after, count + 1)) * 0.5**count
    return bool(count) and tail <= 1 - CONFIDENCE


def _log_ratio(before: float, after: float) -> float:
    if math.isinf(after) or math.isinf(before):
        return math.inf if math.isinf(after) else -math.inf
    return math.log(after / before)


def _verdict(found: Bounds, reach: float, cell: str) -> tuple[Verdict, str | None]:
    if found.low > reach:
        return "regressed", None
    if found.high < -reach:
        return "passed", f"{cell}: reaches the target in fewer steps than before: it does not train the same"
    return ("passed" if -reach <= found.low and found.high <= reach else "inconclusive"), None


def _row(
    cell: str,
    verdict: Literal["passed", "regressed", "inconclusive", "invalid"],
    detail: str,
    margin: float,
    *,
    found: Bounds | None = None,
    remedy: str | None = None,
) -> Row:
    ratios = {} if found is None else dict(zip(("low", "ratio", "high"), map(_exp, found), strict=True))
    return Row(
        axis="convergence",
        cell=cell,
        what=WHAT,
        verdict=verdict,
        detail=detail,
        remedy=remedy,
        margin=margin,
        **ratios,
    )


def _exp(value: float) -> float:
    return math.exp(value) if math.isfinite(value) else math.inf if value > 0 else 0.0
