"""What live comparisons say of speed and memory: one-sided 99 % bounds against margins, Holm over all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from harness.comparison.estimate import holm, interval, p_above, p_below
from harness.comparison.model import STEP_TIME
from harness.gating.model import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from harness.comparison.model import Analysis, Estimate
    from harness.gating.model import Axis, Verdict

ALPHA = 0.01
"""Error of each one-sided bound, and of all regressions found together."""

MEMORY = "peak_memory_bytes"
GATED: dict[str, Axis] = {STEP_TIME: "speed", MEMORY: "memory"}
"""What is gated unless the file has margins for more, and what it is."""

MORE = "a larger [gate] budget or margin decides"


DISTURBED = "no launch was undisturbed"
QUIETER = "run the gate again when the machine is quieter"


class Compared(NamedTuple):
    """The live comparison of one cell: the baseline's code is the first arm, the gated code the second.

    Attributes:
        cell: its name.
        analysis: of it.
        share: of the error, what the last look at the data may spend; 0: there was none.
        margins: by gated metric.
    """

    cell: str
    analysis: Analysis
    share: float
    margins: dict[str, float]


class _Claim(NamedTuple):
    """One metric of one cell, with the error of either claim about it."""

    cell: str
    metric: str
    found: Estimate
    margin: float
    share: float
    p_worse: float
    p_fine: float


def judged(compared: Sequence[Compared], family: int = 0) -> list[Row]:
    """Return a row for each gated metric of each cell, and one for each self-check.

    To call one of many metrics worse by chance must be as rare as for one: Holm (1979) over all of them. To pass,
    every metric needs evidence of its own at the full level, so that no correction is due (Berger 1982).

    Args:
        compared: cells.
        family: metrics of all cells of the gate together, where only some of the cells are known yet: the others
            are taken to show nothing, so that what is called worse now is called so in the end.
    """
    claims = [claim for each in compared for claim in _claims(each)]
    unknown = [1.0] * (family - len(claims))
    adjusted = holm([*(claim.p_worse for claim in claims), *unknown])[: len(claims)]
    rows = [_row(claim, worse) for claim, worse in zip(claims, adjusted, strict=True)]
    return [*rows, *(row for each in compared for row in _self_checks(each)), *_missing(compared)]


def _claims(each: Compared) -> Iterable[_Claim]:
    for pair in each.analysis.pairs:
        if pair.is_self_check:
            continue
        for metric, margin in each.margins.items():
            found = pair.metrics.get(metric)
            if found is not None:
                logs = _logs(found)
                reach = math.log1p(margin)
                yield _Claim(
                    each.cell,
                    metric,
                    found,
                    margin,
                    each.share,
                    min(1.0, p_above(logs, reach) / each.share) if logs and each.share else 1.0,
                    min(1.0, p_below(logs, reach) / each.share) if logs and each.share else 1.0,
                )


def _logs(found: Estimate) -> list[float]:
    return [math.log(ratio) for ratio in found.launches if ratio > 0]


def _row(claim: _Claim, p_worse: float) -> Row:
    verdict: Verdict = "inconclusive"
    if p_worse <= ALPHA:
        verdict = "regressed"
    elif claim.p_fine <= ALPHA:
        verdict = "passed"
    low = high = None
    logs = _logs(claim.found)
    if len(logs) > 1 and claim.share:
        bounds = interval(logs, 2 * ALPHA * claim.share)
        low, high = math.exp(bounds.low), math.exp(bounds.high)
    return Row(
        axis=_axis(claim.metric),
        cell=claim.cell,
        what=claim.metric,
        verdict=verdict,
        detail=f"{len(logs)} launches",
        remedy=MORE if verdict == "inconclusive" else None,
        ratio=claim.found.ratio,
        low=low,
        high=high,
        margin=claim.margin,
        smallest_effect=claim.found.smallest_effect,
    )


def _axis(metric: str) -> Axis:
    return GATED.get(metric, "memory" if metric.endswith("_bytes") else "speed")


def _self_checks(each: Compared) -> Iterable[Row]:
    """Judge the A/A arm: where the same code seems to differ from itself, nothing else may be believed."""
    for pair in each.analysis.pairs:
        if pair.is_self_check:
            alarm = pair.verdict in {"faster", "slower"}
            step = pair.metrics.get(STEP_TIME)
            yield Row(
                axis="self-check",
                cell=each.cell,
                what="the same code twice",
                verdict="invalid" if alarm else "passed",
                detail=f"the same code came out {pair.verdict}" if alarm else f"no alarm: {pair.verdict}",
                remedy="this machine cannot be trusted now; run the gate again when it is quieter"
                if alarm
                else None,
                ratio=None if step is None else step.ratio,
            )


def _missing(compared: Sequence[Compared]) -> Iterable[Row]:
    """Make a row of each metric that was to be gated and was not measured: it did not pass."""
    for each in compared:
        pairs = [pair for pair in each.analysis.pairs if not pair.is_self_check]
        known = {name for pair in pairs for name in pair.metrics}
        disturbed = bool(pairs) and all(pair.invalid_launches and not pair.launches for pair in pairs)
        for metric in each.margins:
            if metric not in known:
                yield Row(
                    axis=_axis(metric),
                    cell=each.cell,
                    what=metric,
                    verdict="inconclusive" if disturbed else "invalid",
                    detail=DISTURBED if disturbed else "was not measured",
                    remedy=QUIETER if disturbed else None,
                )


def margins_of(asked: Iterable[str], margin: Callable[[str], float]) -> dict[str, float]:
    """Return the margin of each gated metric.

    Args:
        asked: metrics that the gate's file has margins for.
        margin: of a metric.
    """
    return {metric: margin(metric) for metric in dict.fromkeys([*GATED, *asked])}
