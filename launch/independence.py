"""Whether forked launches are as independent as fresh ones: the same code twice, in sittings of each kind."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from harness.comparison.estimate import hodges_lehmann, log_ratios, mean_step, rounds_of
from harness.comparison.model import Arm
from launch import selftest
from launch.comparing import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.comparison.model import Comparison

FORKED_S, FRESH_S = 100.0, 220.0
"""Budget of a sitting on two cores, of forked launches and of fresh ones."""

LEAST_P = 0.01
SETTING = "forked and fresh"


def sittings(
    forked: int, fresh: int, told: Callable[[str], None], kept: Callable[[Comparison], object]
) -> list[Comparison]:
    """Return A/A comparisons: so many whose launches are forked, so many whose launches are fresh.

    Raises:
        OptbenchError: an arm could not run.
    """
    found = []
    arms = [Arm(name=name, spec=selftest.spec(0.0, 1)) for name in ("one", "other")]
    for number in range(forked + fresh):
        is_fresh = number >= forked
        made = compare(
            arms,
            margin=selftest.MARGIN,
            budget_s=FRESH_S if is_fresh else FORKED_S,
            seed=number,
            fresh=is_fresh,
            ready=lambda _: False,
            told=told,
        )
        kept(made)
        selftest.ended_well(made)
        found.append(made)
    return found


def rows_of(found: Sequence[Comparison]) -> list[selftest.Row]:
    """Return how far launches lie apart within a sitting, between sittings, and forked beside fresh.

    All launches count with as many rounds as the shortest has. One-way analysis of variance of the forked
    launches' log ratios by sitting; the share of their variance that sittings may have is bounded by the
    intraclass correlation's upper 95 % limit (Searle, Linear Models, 1971, chapter 9). Fresh beside forked by
    Brown and Forsythe's test (J. Am. Stat. Assoc. 69, 1974), since single launches can lie far off.

    Args:
        found: sittings, two or more forked ones of two or more valid launches among them.
    """
    from scipy import stats

    counted = [each for each in found if selftest.valid_launches([each])]
    groups = list(zip(_log_ratios(counted), counted, strict=True))
    forked, fresh = (
        [each for each, made in groups if made.launches[0].kind == kind] for kind in ("forked", "fresh")
    )
    result = stats.f_oneway(*forked)
    count = sum(map(len, forked))
    free = (len(forked) - 1, count - len(forked))
    least_f = float(result.statistic) / float(stats.f.ppf(0.05, *free))
    share = max(0.0, (least_f - 1) / (least_f - 1 + count / len(forked)))
    rows = [
        _row("forked launches, sittings", f"{count} in {len(forked)}, spread {100 * _spread(forked):.2f} %"),
        _row("sittings differ: p", f"{result.pvalue:.3f}", float(result.pvalue)),
        _row("share of the variance that sittings may have", f"{100 * share:.0f} % at most"),
    ]
    if not fresh:
        return rows
    own, other = ([each for group in groups for each in _centred(group)] for groups in (forked, fresh))
    p = float(stats.levene(own, other, center="median").pvalue)
    typical = stats.median_abs_deviation(other) / stats.median_abs_deviation(own)
    told = f"{_spread(fresh) / _spread(forked):.2f} by standard deviation, {typical:.2f} by median deviation"
    spread = f"spread {100 * _spread(fresh):.2f} %"
    return [
        *rows,
        _row("fresh launches, sittings", f"{sum(map(len, fresh))} in {len(fresh)}, {spread}"),
        _row("spread of fresh launches beside forked ones", told),
        _row("fresh and forked launches spread differently: p", f"{p:.3f}", p),
    ]


def shared_row(setting: str, found: Sequence[Comparison]) -> selftest.Row:
    """Return whether launches of one sitting of a pool share what its other sittings do not.

    One-way analysis of variance by sitting for each arm beside the first; the smallest p by Holm, since one arm
    that differs is enough.

    Args:
        setting: of the pool.
        found: comparisons of the same arms, two or more of two or more valid launches among them.
    """
    from scipy import stats

    smallest, middles = 1.0, []
    for arm in range(1, len(found[0].arms)):
        groups = [group for group in _log_ratios(found, arm) if len(group) > 1]
        smallest = min(smallest, float(stats.f_oneway(*groups).pvalue))
        middles.append("/".join(f"{100 * sum(each) / len(each):.1f}" for each in groups))
    p = min(1.0, smallest * (len(found[0].arms) - 1))
    told = f"{p:.3f}; means of the log ratios, %: {', '.join(middles)}"
    return selftest.Row(setting, f"{len(found)} sittings differ: p", told, f"p {LEAST_P:g}", p >= LEAST_P)


def _row(what: str, found: str, p: float | None = None) -> selftest.Row:
    if p is None:
        return selftest.Row(SETTING, what, found)
    return selftest.Row(SETTING, what, found, f"p {LEAST_P:g}", p >= LEAST_P)


def _log_ratios(found: Sequence[Comparison], arm: int = 1) -> list[list[float]]:
    """Return the valid launches' estimates of an arm beside the first by sitting.

    Each is of as many rounds as the shortest launch has.
    """
    rounds = min(rounds_of(launch) for launch in selftest.valid_launches(found))
    return [
        [
            hodges_lehmann(log_ratios(launch, (0, arm), mean_step)[:rounds])
            for launch in each.launches
            if launch.invalid is None
        ]
        for each in found
    ]


def _centred(group: Sequence[float]) -> list[float]:
    middle = median(group)
    return [each - middle for each in group]


def _spread(groups: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation within groups."""
    squares = sum((each - sum(group) / len(group)) ** 2 for group in groups for each in group)
    return math.sqrt(squares / (sum(map(len, groups)) - len(groups)))
