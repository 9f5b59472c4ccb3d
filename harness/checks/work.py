"""Did the steps do anything? Parameters and optimizer state before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from harness.schedule import factor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.checks.spans import Span
    from harness.loop import Turn
    from harness.spec import RunSpec

FEW = 1000
"""So few parameters may stand still for a turn because the model has converged to the last bit."""


@dataclass(frozen=True)
class State:
    """What one rank held at one moment.

    Attributes:
        spans: of every parameter, by fingerprint; None: the engine does not tell parts.
        values: fingerprint of masters, and of parameters that ``spans`` does not tell.
        kept: of the optimizer's state.
        elements: of parameters and masters.
        narrow: all of them are of fewer than 32 bits, so that a small update is rounded away.
    """

    spans: tuple[Span, ...] | None
    values: int
    kept: int
    elements: int
    narrow: bool

    def moved(self, later: Self) -> bool:
        """Say whether parameters or masters are others."""
        return (self.spans, self.values) != (later.spans, later.values)


@dataclass(frozen=True)
class Change:
    """What changed on one rank from one moment to another."""

    parameters: bool
    state: bool
    elements: int
    narrow: bool

    @classmethod
    def between(cls, before: State, after: State) -> Self:
        """Compare two moments."""
        return cls(before.moved(after), before.kept != after.kept, after.elements, after.narrow)


def idle(ranks: Sequence[Change], when: str, *, lenient: bool) -> str | None:
    """Say that no parameter of any rank changed; None: some did, or there is a reason why they need not.

    Args:
        ranks: what changed on each.
        when: in words, for the message.
        lenient: an optimizer whose state changed may not have moved the parameters (yet): one that waits for its
            statistics, or a learning rate next to 0.
    """
    if any(rank.parameters for rank in ranks):
        return None
    state = any(rank.state for rank in ranks)
    rounded = all(rank.narrow for rank in ranks)
    few = sum(rank.elements for rank in ranks) < FEW * len(ranks)
    if state and (lenient or rounded or few):
        return None
    return f"no parameter of any rank changed {when}"


def rates(spec: RunSpec, turn: Turn) -> list[float]:
    """Return the factors on the learning rate in a turn."""
    return [factor(spec.schedule, step, spec.steps) for step in range(turn.first, turn.end)]
