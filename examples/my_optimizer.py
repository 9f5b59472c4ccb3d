"""An optimizer of one's own: the sign of a momentum (signSGD with momentum, arXiv:1802.04434, Algorithm 2)."""

# ruff: noqa: INP001  # a file in a folder of the user's, not a package

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class SignMomentum(torch.optim.Optimizer):
    """Moves every element by lr against the sign of its averaged gradient.

    Args:
        params: parameters or parameter groups.
        lr: how far an element moves in a step.
        momentum: weight of the old average, 0 to 1.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum is {momentum}; expected 0 <= momentum < 1")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch declares overloads
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["average"] = torch.zeros_like(parameter)
                state["average"].lerp_(parameter.grad, 1 - group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(state["average"].sign(), alpha=group["lr"])
        return loss
