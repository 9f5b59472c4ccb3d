"""What a step needs that nobody declared: found by trying, and named in the remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import UndeclaredError, UnsupportedError
from harness.stepping import step_parameters, undeclared
from harness.verification.playing import Player, RefusedError
from harness.verification.scenarios import unreferenced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.interfaces import Optimizer, OptimizerTraits
    from harness.spec import RunSpec

STEPS = 3


class Declared:
    """An optimizer as if it had declared more.

    Args:
        optimizer: registry entry.
        words: traits that are on.
    """

    def __init__(self, optimizer: Optimizer, words: Sequence[str]) -> None:
        self._optimizer = optimizer
        self.traits: OptimizerTraits = optimizer.traits.model_copy(update=dict.fromkeys(words, True))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


def refused(optimizer: Optimizer, spec: RunSpec, error: RefusedError) -> None:
    """Raise what a refusal comes from, where that is no fault of the optimizer's.

    Args:
        optimizer: that raised in a step.
        spec: that it was built from.
        error: what it raised.

    Raises:
        UnsupportedError: the step cannot be driven.
        UndeclaredError: it works once it gets what it does not declare.
    """
    if isinstance(error.__cause__, UnsupportedError):
        raise error.__cause__
    demand(optimizer, spec, f"raised {error} in step {error.step}")


def demand(optimizer: Optimizer, spec: RunSpec, found: str) -> None:
    """Try a step that fails with more than it declares.

    Args:
        optimizer: whose step fails.
        spec: to build it from.
        found: how it fails, in words.

    Raises:
        UndeclaredError: it works with more; names the declaration.
    """
    words = next((each for each in _choices(optimizer, spec) if _works(optimizer, spec, each)), None)
    if words is not None:
        already = "closure" if optimizer.traits.closure else "gradients alone"
        declared = ", ".join(f"{word}=True" for word in words)
        raise UndeclaredError(
            f"{optimizer.name}.step {found} with {already}, and works with more: declare {declared} in its traits "
            f"(traits = OptimizerTraits(…, {declared}) in the class)"
        )


def _choices(optimizer: Optimizer, spec: RunSpec) -> list[tuple[str, ...]]:
    player = Player(optimizer, spec, unreferenced(optimizer.traits))
    return undeclared(step_parameters(player.live.step), optimizer.traits)


def _works(optimizer: Optimizer, spec: RunSpec, words: Sequence[str]) -> bool:
    """Say whether a few steps raise nothing and move something to where it is finite."""
    try:
        after = _ended(Declared(optimizer, words), spec)
        before = Player(optimizer, spec, unreferenced(optimizer.traits)).values()
    except Exception:  # noqa: BLE001  # it fails so, too
        return False
    moved = any(not torch.equal(value, before[name]) for name, value in after.items())
    return moved and all(bool(value.isfinite().all()) for value in after.values())


def _ended(optimizer: Any, spec: RunSpec) -> dict[str, torch.Tensor]:
    """Return the parameters after a few steps."""
    player = Player(optimizer, spec, replace(unreferenced(optimizer.traits), steps=STEPS, saved_at=None))
    for number in range(1, STEPS + 1):
        player.step(number)
    return player.values()
