"""What makes a launch invalid, decided from the machine's state before its ratios are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.comparison.model import Launch

STEAL = 0.25
"""Cores that the hypervisor may take during the turns. Interleaving shares out less than that fairly."""

UNLIKE_STEAL = 0.10
"""Difference between two arms' shares: one of them was robbed and the other not."""


def invalid(launch: Launch) -> str | None:
    """Return why a launch's ratios are not to be used; None: they are. No step time decides it."""
    shares = [share for arm in range(len(launch.warm_ups)) if (share := _stolen(launch, arm)) is not None]
    if shares and max(shares) > STEAL:
        return f"the hypervisor took {100 * max(shares):.0f} % of a core during the turns"
    if shares and max(shares) - min(shares) > UNLIKE_STEAL:
        low, high = (f"{100 * share:.0f} %" for share in (min(shares), max(shares)))
        return f"the hypervisor took {high} of one arm's turns, {low} of another's"
    return None


def _stolen(launch: Launch, arm: int) -> float | None:
    turns = [turn for turn in launch.turns if turn.arm == arm and turn.steal_s is not None]
    spent = sum(turn.took_s or 0.0 for turn in turns)
    return sum(turn.steal_s or 0.0 for turn in turns) / spent if spent else None
