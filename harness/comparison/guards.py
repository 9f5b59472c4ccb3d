"""What makes a launch invalid, decided from the machine's state before its ratios are looked at."""

from __future__ import annotations

import math
from statistics import median, variance
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.comparison.model import Launch

STEAL = 0.125
"""Of each core, what the hypervisor may take during the turns. Interleaving shares out less than that fairly."""

UNLIKE_STEAL = 0.05
"""Of each core, the difference between two arms: one of them was robbed and the other not."""

UNLIKE_LOAD = 0.5
"""Cores by which other processes may keep the machine busier in one arm's turns than in another's, on average."""

ERRORS = 3.0
"""And so many standard errors of that difference: on a machine of many cores others' load is never even."""

HELD_DOWN = 0.05
"""Share of the turns at whose end a GPU's clocks may be held down by heat or a fault."""

CLOCK_FELL = 0.10
"""Share that the clock may lose from the first quarter of the turns to the last."""


def invalid(launch: Launch, cores: int = 2) -> str | None:
    """Return why a launch's ratios are not to be used; None: they are. No step time decides it.

    Args:
        launch: with its turns.
        cores: that were watched.
    """
    return _robbed(launch, cores) or _unlike_load(launch) or _slowed_down(launch)


def _robbed(launch: Launch, cores: int) -> str | None:
    shares = [share for arm in range(len(launch.warm_ups)) if (share := _stolen(launch, arm)) is not None]
    if shares and max(shares) > STEAL * cores:
        return f"the hypervisor took {100 * max(shares):.0f} % of a core during the turns"
    if shares and max(shares) - min(shares) > UNLIKE_STEAL * cores:
        low, high = (f"{100 * share:.0f} %" for share in (min(shares), max(shares)))
        return f"the hypervisor took {high} of one arm's turns, {low} of another's"
    return None


def _unlike_load(launch: Launch) -> str | None:
    loads = []
    for arm in range(len(launch.warm_ups)):
        turns = [turn for turn in launch.turns if turn.arm == arm and turn.other_load is not None and turn.took_s]
        if turns:
            values = [turn.other_load or 0.0 for turn in turns]
            busy = sum((turn.other_load or 0.0) * (turn.took_s or 0.0) for turn in turns)
            mean = busy / sum(turn.took_s or 0.0 for turn in turns)
            loads.append((mean, variance(values) / len(values) if len(values) > 1 else 0.0))
    if not loads:
        return None
    most, least = max(loads), min(loads)
    if most[0] - least[0] > max(UNLIKE_LOAD, ERRORS * math.sqrt(most[1] + least[1])):
        return f"other processes kept {most[0]:.1f} cores busy in one arm's turns, {least[0]:.1f} in another's"
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
