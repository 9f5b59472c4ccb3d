"""A slope that a few outliers do not move, with an interval."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Slope(NamedTuple):
    """Growth of y for each unit of x, and the interval around it."""

    value: float
    low: float
    high: float


def theil_sen(x: Sequence[float], y: Sequence[float], confidence: float = 0.99) -> Slope | None:
    """Return the median slope of all pairs of points; None: fewer than four points tell nothing.

    Sen (1968), "Estimates of the regression coefficient based on Kendall's tau", eq. 2.6: the interval's ends are
    the slopes whose ranks lie a normal quantile of Kendall's statistic to either side of the median. It takes the
    points' errors for independent; take medians of blocks where they are not.

    Args:
        x: distinct, rising.
        y: as many.
        confidence: two-sided.
    """
    count = len(x)
    if count < 4:
        return None
    pairs = [(first, second) for second in range(count) for first in range(second)]
    slopes = sorted((y[second] - y[first]) / (x[second] - x[first]) for first, second in pairs)
    quantile = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    reach = quantile * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, math.floor((len(slopes) - reach) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + reach) / 2))
    return Slope(statistics.median(slopes), slopes[low], slopes[high])
