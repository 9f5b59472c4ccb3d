"""Learning-rate schedules, as a factor on the peak: the same for every implementation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.spec import Schedule


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return what the peak learning rate is multiplied by in step number ``step`` (from 0) of ``steps``.

    ``warmup-cosine``: linear from 1/w to 1 over the first w = max(1, steps // 10) steps, then
    (1 + cos(pi t)) / 2 with t from 0 to 1 over the rest (Loshchilov & Hutter 2017, SGDR, eq. 5, one cycle).
    """
    if schedule == "constant":
        return 1.0
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
