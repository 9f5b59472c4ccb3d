"""Algorithms that put Adam's moments together otherwise: clamped AdamW, LaProp, ADOPT, AdEMAMix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.references.adam import adam
from harness.references.decay import DECOUPLED, Mistakes, moved, penalised
from harness.references.moments import (
    BETAS,
    CORRECTION,
    NARROW,
    averaged,
    betas,
    counted,
    misplaced,
    rooted,
    unbias,
)
from harness.references.reference import Reference

if TYPE_CHECKING:
    from torch import Tensor

    from harness.references.reference import Hyperparameters, State

_MISTAKES: Mistakes = {
    **CORRECTION,
    **misplaced("clamped"),
    **BETAS,
    **NARROW,
    **DECOUPLED,
}
_CLAMPED = {"eps_at": "clamped", "decoupled_weight_decay": True}

ADAMW_CLAMPED = Reference(
    "adamw-clamped",
    "Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2; max(sqrt(v_hat), eps) as in heavyball's AdamW",
    adam,
    variants=_CLAMPED,
    mistakes=_MISTAKES,
)


def laprop(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    v_t = beta2 v_{t-1} + (1 - beta2) g_t^2, m_t = beta1 m_{t-1} + (1 - beta1) g_t / (sqrt(v_hat) + eps),
    p_t = p_{t-1} - lr m_t / (1 - beta1^t). ``adam_order``: m_t is of g_t and divided when it is used.
    """
    if h.get("adam_order"):
        return adam(p, g, state, h)
    g = penalised(p, g, h)
    t, (beta1, beta2) = counted(state, h), betas(h)
    v = averaged(state, "v", g * g, beta2, h)
    m = averaged(state, "m", g / rooted(v, unbias(beta2, t, h, 2), h), beta1, h)
    return moved(p, h["lr"] * m / unbias(beta1, t, h), h)


LAPROP = Reference(
    "laprop",
    "Ziyin, Wang and Ueda 2020, arXiv:2002.04839, Algorithm 1; max(sqrt(v_hat), eps) as in heavyball's LaProp",
    laprop,
    variants=_CLAMPED,
    mistakes={**_MISTAKES, "moment divided instead of the gradient (Adam's order)": {"adam_order": True}},
)


def adopt(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step; the first step moves nothing.

    v_1 = g_1^2; then m_t = beta1 m_{t-1} + (1 - beta1) g_t / max(sqrt(v_{t-1}), eps), p_t = p_{t-1} - lr m_t,
    v_t = beta2 v_{t-1} + (1 - beta2) g_t^2. ``clipped``: what enters m_t is clipped at (t - 1)^(1/4);
    ``corrected`` 2: both averages are corrected for their bias, that of v counted from its first step.
    """
    g = penalised(p, g, h)
    t, (beta1, beta2) = counted(state, h), betas(h)
    squares = g * g
    if t == 1:
        state["v"] = (1 - beta2) * squares if h["corrected"] else squares
        return p
    x = g / rooted(state["v"], unbias(beta2, t - 1, h, 2), h)
    if h["clipped"]:
        x = x.clamp(-((t - 1) ** 0.25), (t - 1) ** 0.25)
    if h.get("own_square"):
        x = g / rooted(beta2 * state["v"] + (1 - beta2) * squares, unbias(beta2, t, h, 2), h)
    m = averaged(state, "m", x, beta1, h)
    averaged(state, "v", squares, beta2, h)
    return moved(p, h["lr"] * m / unbias(beta1, t - 1, h), h)


ADOPT = Reference(
    "adopt",
    "Taniguchi et al. 2024, arXiv:2411.02853, Algorithm 1, with both averages corrected as in heavyball's ADOPT",
    adopt,
    variants={**_CLAMPED, "corrected": 2, "clipped": False},
    mistakes={
        **_MISTAKES,
        "normalised by the present square instead of the one before": {"own_square": True},
        "normalised gradient clipped": {"clipped": True},
    },
)


def ademamix(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    m1 and v as Adam's, m2 a slow average with beta3 that is not corrected:
    p_t = p_{t-1} - lr ((m1_hat + alpha_t m2) / (sqrt(v_hat) + eps) + weight_decay p_{t-1});
    alpha_t = alpha min(t / t_alpha, 1), beta3_t by `_slow`.
    """
    g = penalised(p, g, h)
    t, (beta1, beta2) = counted(state, h), betas(h)
    alpha = h["alpha"] * (min(t / h["t_alpha"], 1.0) if h["t_alpha"] else 1.0)
    beta3 = _slow(beta1, h["betas"][2], t, h["t_beta3"])
    m, v = averaged(state, "m", g, beta1, h), averaged(state, "v", g * g, beta2, h)
    slow = averaged(state, "m2", g, beta3, h) / (1 - math.pow(beta3, t) if h.get("slow_corrected") else 1.0)
    ahead = m / unbias(beta1, t, h) + alpha * slow
    return moved(p, h["lr"] * ahead / rooted(v, unbias(beta2, t, h, 2), h), h)


def _slow(beta1: float, beta3: float, t: int, steps: int | None) -> float:
    """Return beta3_t = min(exp(ln beta1 ln beta3 / ((1 - t/T) ln beta3 + t/T ln beta1)), beta3), T = t_beta3."""
    if not steps:
        return beta3
    share, first, third = t / steps, math.log(beta1), math.log(beta3)
    return min(math.exp(first * third / ((1 - share) * third + share * first)), beta3)


ADEMAMIX = Reference(
    "ademamix",
    "Pagliardini et al. 2024, arXiv:2409.03137, Algorithm 1",
    ademamix,
    variants={"eps_at": "outside", "decoupled_weight_decay": True},
    mistakes={
        **CORRECTION,
        **misplaced("outside"),
        **BETAS,
        **NARROW,
        "slow average left out": {"alpha": 0.0},
        "slow average corrected for its bias": {"slow_corrected": True},
        "schedule of alpha left out": {"t_alpha": None},
        "schedule of beta3 left out": {"t_beta3": None},
        **DECOUPLED,
    },
)
