"""Algorithms that follow the gradient's sign: Rprop and Lion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.references.decay import DECOUPLED, MAXIMISE, descent, moved, penalised
from harness.references.moments import averaged, betas
from harness.references.reference import Reference

if TYPE_CHECKING:
    from torch import Tensor

    from harness.references.reference import Hyperparameters, State


def rprop(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    Each element's own step starts at lr; it grows by eta+ where the gradient keeps its sign, up to the larger of
    ``step_sizes``, and shrinks by eta- where the sign turns, where the element then rests and its gradient is
    forgotten. p_t = p_{t-1} - sign(g_t) step_t. No lr enters after the first step.

    ``backtracking``: where the sign turns, the last move is undone (Riedmiller and Braun's own form).
    """
    g = descent(g, h)
    (shrink, grow), (low, high) = h["etas"], h["step_sizes"]
    turn = g * state.get("g", torch.zeros_like(g))
    size = state.get("size", torch.full_like(g, h["lr"]))
    size = torch.where(turn > 0, size * grow, torch.where(turn < 0, size * shrink, size))
    state["size"] = size = size if h.get("unbounded") else size.clamp(low, high)
    rests = (turn < 0) & h.get("rests", True)
    step = torch.where(rests, 0.0, g.sign() * size)
    if h["backtracking"]:
        step = torch.where(turn < 0, -state.get("step", torch.zeros_like(g)), step)
    state["g"], state["step"] = torch.where(rests, 0.0, g), step
    return p - step


RPROP = Reference(
    "rprop",
    "Igel and Huesken 2000, iRprop-; Riedmiller and Braun 1993, doi:10.1109/ICNN.1993.298623",
    rprop,
    variants={"backtracking": False},
    mistakes={
        "last move undone where the sign turns": {"backtracking": True},
        "element moves where the sign turns": {"rests": False},
        "steps not bounded": {"unbounded": True},
        **MAXIMISE,
    },
)


def lion(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    c_t = beta1 m_{t-1} + (1 - beta1) g_t, p_t = p_{t-1} - lr (sign(c_t) + weight_decay p_{t-1}),
    m_t = beta2 m_{t-1} + (1 - beta2) g_t. sign(0) is 0; ``sign_of_zero`` is what an implementation gives there.
    """
    g = penalised(p, g, h)
    beta1, beta2 = betas(h)
    before = state.get("m", torch.zeros_like(g))
    m = averaged(state, "m", g, beta2, h)
    c = m if h.get("updated_moment") else beta1 * before + (1 - beta1) * g
    direction = torch.where(c == 0, float(h["sign_of_zero"]), c.sign())
    return moved(p, h["lr"] * direction, h)


LION = Reference(
    "lion",
    "Chen et al. 2023, arXiv:2302.06675, Algorithm 2",
    lion,
    variants={"sign_of_zero": 0, "decoupled_weight_decay": True},
    mistakes={
        "betas swapped": {"beta_of": (1, 0)},
        "first beta used for both averages": {"beta_of": (0, 0)},
        "second beta used for both averages": {"beta_of": (1, 1)},
        "sign of the updated moment instead of the interpolated one": {"updated_moment": True},
        "moment kept in bfloat16": {"narrow": ("m",)},
        **DECOUPLED,
    },
)
