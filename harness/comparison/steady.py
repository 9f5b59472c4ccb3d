"""Where a warm-up ends: a change-point test over its step times."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST = 8
"""Steps that a steady state must have lasted."""

LEVEL = 0.05
"""Of the test; step times are correlated, hence also:"""

CHANGE = 0.05
"""A change of the median by less is no matter of warming up: turns are compared within their round."""


def steady(times: Sequence[float]) -> int | None:
    """Return from which step on the times no longer change; None: they still do.

    Pettitt's rank test (Pettitt 1979, Applied Statistics 28:126) finds the most likely change point; what lies
    before it is cut off until none is left. Ranks make a single stall harmless.

    Args:
        times: of consecutive steps, in seconds.
    """
    import numpy as np

    found = np.asarray(times, dtype=float)
    start = 0
    while found.size - start >= LEAST:
        change = _change(found[start:])
        if change is None:
            return None if _drifts(found[start:]) else start
        start += change
    return None


def _change(values: object) -> int | None:
    import numpy as np
    from scipy import stats

    found = np.asarray(values, dtype=float)
    count = found.size
    ranks = stats.rankdata(found)
    position = np.arange(1, count)
    sums = np.abs(2 * np.cumsum(ranks)[:-1] - position * (count + 1))
    where = int(sums.argmax())
    p = 2 * np.exp(-6 * sums[where] ** 2 / (count**3 + count**2))
    before, after = np.median(found[: where + 1]), np.median(found[where + 1 :])
    if p >= LEVEL or abs(before / after - 1) < CHANGE:
        return None
    return where + 1


def _drifts(values: object) -> bool:
    """Say whether times still rise or fall from step to step (Spearman's correlation with their number)."""
    import numpy as np
    from scipy import stats

    found = np.asarray(values, dtype=float)
    half = found.size // 2
    if abs(np.median(found[:half]) / np.median(found[half:]) - 1) < CHANGE:
        return False
    return bool(stats.spearmanr(np.arange(found.size), found).pvalue < LEVEL / 5)
