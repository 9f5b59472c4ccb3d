"""How a comparison's error is spent: a portion of what is left at each look, all of it where the budget ends.

An alpha-spending function over looks (Lan and DeMets 1983, Biometrika 70:659): what the looks may spend adds up to
the whole error however many there are, so that by Bonferroni's inequality all of them together keep it. How many
there will be and when the budget ends need not be known beforehand, as long as no ratio decides that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.comparison.model import Design

PORTION = 0.25
"""Of the error that is left, what a look spends unless it is the last."""

LEAST_LAUNCHES = 3
"""A last look has so many: a t interval of two launches has one degree of freedom, and tells nothing."""

GROWTH = 1.5
"""Times the launches of a look that the next one has, where there are more than were planned."""


class Look(NamedTuple):
    """One look at the data.

    Attributes:
        launches: valid ones.
        share: of the error, that it may spend.
    """

    launches: int
    share: float


def shares(count: int) -> tuple[float, ...]:
    """Return the shares of the error that so many looks spend, none of them the last."""
    return tuple(PORTION * (1 - PORTION) ** each for each in range(count))


def looks_of(looks: Sequence[int], spent: Sequence[float], last: int | None) -> list[Look]:
    """Return the looks of a comparison.

    Args:
        looks: planned, in launches, rising.
        spent: the share of each; none: equal shares.
        last: launches at the end of the budget, where the rest is spent; None: there is no such look.
    """
    each = spent or [1 / max(1, len(looks))] * len(looks)
    planned = [Look(*found) for found in zip(looks, each, strict=True)]
    if last is None or last < LEAST_LAUNCHES:
        return planned if last is None else [look for look in planned if look.launches <= last]
    before = [look for look in planned if look.launches < last]
    return [*before, Look(last, 1 - sum(look.share for look in before))]


def further(plan: Design) -> Design:
    """Return a plan with one look more, for a comparison that has time left after its last one."""
    more = max(plan.looks[-1] + 2, round(GROWTH * plan.looks[-1]))
    return plan.model_copy(update={"looks": (*plan.looks, more), "shares": shares(len(plan.looks) + 1)})
