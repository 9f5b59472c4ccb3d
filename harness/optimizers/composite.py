"""Several optimizers, each over its own parameters, as one torch.optim.Optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Composite(Optimizer):
    """Steps its parts in order.

    Its ``param_groups`` are the parts' own, one after the other, and its ``state`` is theirs too, so that setting
    a learning rate, saving and loading reach the parts.

    Args:
        parts: over disjoint parameters; at least one.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts: tuple[Optimizer, ...] = ()
        super().__init__([parameter for part in parts for parameter in _parameters(part)], {})
        self.parts = tuple(parts)
        self.param_groups = [group for part in parts for group in part.param_groups]
        for part in parts:
            self.state.update(part.state)  # some classes make their state in the constructor
        self._share()

    def _share(self) -> None:
        """Give the parts their slice of the groups, and the common state."""
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups = self.param_groups[start:end]
            part.state = self.state
            start = end

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every part; the closure, if any, is evaluated once, before the first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state and groups, and hand them to the parts again."""
        super().load_state_dict(state_dict)
        self._share()


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
