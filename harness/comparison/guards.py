"""What makes a launch invalid, decided from the machine's state before its ratios are looked at."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.comparison.model import Launch

STEAL = 0.25
"""Cores that the hypervisor may take during the turns. Interleaving shares out less than that fairly."""

UNLIKE_STEAL = 0.10
"""Difference between two arms' shares: one of them was robbed and the other not."""


UNLIKE_LOAD = 0.5
"""Cores by which other processes may keep the machine busier in one arm's turns than in another's, on average."""

HELD_DOWN = 0.05
"""Share of the turns at whose end a GPU's clocks may be held down by heat or a fault."""

CLOCK_FELL = 0.10
"""Share that the clock may lose from the first quarter of the turns to the last."""


def invalid(launch: Launch) -> str | None:
    """Return why a launch's ratios are not to be used; None: they are. No step time decides it."""
    return _robbed(launch) or _unlike_load(launch) or _slowed_down(launch)


def _robbed(launch: Launch) -> str | None:
    shares = [share for arm in range(len(launch.warm_ups)) if (share := _stolen(launch, arm)) is not None]
    if shares and max(shares) > STEAL:
        return f"the hypervisor took {100 * max(shares):.0f} % of a core during the turns"
    if shares and max(shares) - min(shares) > UNLIKE_STEAL:
        low, high = (f"{100 * share:.0f} %" for share in (min(shares), max(shares)))
        return f"the hypervisor took {high} of one arm's turns, {low} of another's"
    return None


def _unlike_load(launch: Launch) -> str | None:
    loads = []
    for arm in range(len(launch.warm_ups)):
        turns = [turn for turn in launch.turns if turn.arm == arm and turn.other_load is not None and turn.took_s]
        if turns:
            busy = sum((turn.other_load or 0.0) * (turn.took_s or 0.0) for turn in turns)
            loads.append(busy / sum(turn.took_s or 0.0 for turn in turns))
    if loads and max(loads) - min(loads) > UNLIKE_LOAD:
        return (
            f"other processes kept {max(loads):.1f} cores busy in one arm's turns, {min(loads):.1f} in another's"
        )
    return None


def _slowed_down(launch: Launch) -> str | None:
    held = [reason for turn in launch.turns for reason in turn.held_down[:1]]
    if len(held) > HELD_DOWN * len(launch.turns):
        share = 100 * len(held) / len(launch.turns)
        return (
            f"a GPU's clocks were held down ({max(held, key=held.count)}) at the end of {share:.0f} % of the turns"
        )
    clocks = [turn.clock_hz for turn in launch.turns if turn.clock_hz is not None]
    if len(clocks) < 8:
        return None
    quarter = len(clocks) // 4
    first, last = median(clocks[:quarter]), median(clocks[-quarter:])
    if last < (1 - CLOCK_FELL) * first:
        return f"the clock fell from {first / 1e9:.2f} to {last / 1e9:.2f} GHz in the course of the turns"
    return None


def _stolen(launch: Launch, arm: int) -> float | None:
    turns = [turn for turn in launch.turns if turn.arm == arm and turn.steal_s is not None]
    spent = sum(turn.took_s or 0.0 for turn in turns)
    return sum(turn.steal_s or 0.0 for turn in turns) / spent if spent else None
