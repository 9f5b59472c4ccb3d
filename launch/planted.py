"""An optimizer whose step is slower by a planted share: what the measurement of the measurement looks for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

if TYPE_CHECKING:
    from collections.abc import Callable


BURNED = 0.1
"""Share of a step that every planted optimizer burns, the plain one as well.

What follows a burn is slower, as others fill the caches meanwhile: of two arms that both burn only the difference
of their burns is planted, not the cold caches too.
"""


class PlantedAdamW(torch.optim.AdamW):
    """AdamW that makes every training step last ``1 + slower`` times as long as the same one with ``slower=0``.

    The time from the first module's forward pass to the end of this step is taken, and a share of it burned on
    the same core, so that the planted ratio is known step by step whatever the machine does. With ``slower=0``
    that share is `BURNED`: arms differ in how long they burn alone.

    Args:
        params: of torch's optimizer.
        lr: learning rate.
        slower: share of the whole step (with what is always burned), 0.03 for 3 %.
        options: of AdamW.
    """

    def __init__(self, params: Any, lr: float = 1e-3, slower: float = 0.0, **options: Any) -> None:
        super().__init__(params, lr=lr, **options)
        self._burned = (1 + BURNED) * (1 + slower) - 1
        self._started: float | None = None
        register_module_forward_pre_hook(self._begin)

    def _begin(self, module: torch.nn.Module, inputs: Any) -> None:
        del module, inputs
        if self._started is None:
            self._started = time.perf_counter()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # as the base
        """Step, then burn the share of the time since the first forward pass."""
        found: float | None = super().step(closure)
        now = time.perf_counter()
        until = now + self._burned * (now - (self._started if self._started is not None else now))
        while time.perf_counter() < until:
            pass
        self._started = None
        return found
