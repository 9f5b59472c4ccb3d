"""Adam's relatives: Adamax, NAdam, RAdam."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from harness.references.decay import DECOUPLED, L2, MAXIMISE, Mistakes, moved, penalised
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


def adamax(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    m_t = beta1 m_{t-1} + (1 - beta1) g_t, u_t = max(beta2 u_{t-1}, |g_t|),
    p_t = p_{t-1} - lr / (1 - beta1^t) m_t / u_t. The paper has no eps; by ``eps_at`` it is added to |g_t|
    (``gradient``) or to u_t (``outside``).
    """
    g = penalised(p, g, h)
    t, (beta1, beta2) = counted(state, h), betas(h)
    m = averaged(state, "m", g, beta1, h)
    size = g.abs() + h["eps"] if h["eps_at"] == "gradient" else g.abs()
    state["u"] = u = torch.maximum(beta2 * state.get("u", torch.zeros_like(g)), size)
    bottom = u + h["eps"] if h["eps_at"] == "outside" else u
    return moved(p, h["lr"] / unbias(beta1, t, h) * m / bottom, h)


ADAMAX = Reference(
    "adamax",
    "Kingma and Ba 2015, arXiv:1412.6980, Algorithm 2",
    adamax,
    variants={"eps_at": "gradient"},
    mistakes={
        "no bias correction": {"corrected": 0},
        "bias correction off by one step": {"step_offset": 1},
        "bias correction one step behind": {"step_offset": -1},
        "eps added to the maximum instead of the gradient": {"eps_at": "outside"},
        "eps left out": {"eps": 0.0},
        **BETAS,
        "first moment kept in bfloat16": {"narrow": ("m",)},
        **L2,
        **MAXIMISE,
    },
)


def nadam(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2), with the product of mu_1 ... mu_t for its bias:
    m_hat = mu_{t+1} m_t / (1 - prod_{t+1}) + (1 - mu_t) g_t / (1 - prod_t), then as Adam.
    """
    g = penalised(p, g, h)
    t, (beta1, beta2) = counted(state, h), betas(h)
    mu, after = (_momentum(beta1, at, h) for at in (t, t + 1))
    state["product"] = product = state.get("product", 1.0) * mu
    if not h.get("scheduled", True):
        product = math.pow(beta1, t)
    m, v = averaged(state, "m", g, beta1, h), averaged(state, "v", g * g, beta2, h)
    corrected = h.get("corrected", 2) > 0
    ahead = after * m / (1 - product * after if corrected else 1.0)
    now = (1 - mu) * g / (1 - product if corrected else 1.0)
    return moved(p, h["lr"] * (ahead + now) / rooted(v, unbias(beta2, t, h, 2), h), h)


def _momentum(beta1: float, t: int, h: Hyperparameters) -> float:
    return beta1 * (1 - 0.5 * math.pow(0.96, t * h["momentum_decay"]))


_NADAM: Mistakes = {
    **CORRECTION,
    **misplaced("outside"),
    **BETAS,
    **NARROW,
    "powers of beta1 instead of the product of the momenta": {"scheduled": False},
    "momentum schedule left out": {"momentum_decay": 0.0},
    **MAXIMISE,
}

NADAM = Reference(
    "nadam",
    "Dozat 2016, ICLR workshop, Algorithm 2 and section 3's schedule of the momentum",
    nadam,
    variants={"eps_at": "outside"},
    mistakes={**_NADAM, **L2, **DECOUPLED},
)


def radam(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    rho_inf = 2 / (1 - beta2) - 1, rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t). With rho_t over the threshold:
    p_t = p_{t-1} - lr r_t m_hat / (sqrt(v_hat) + eps),
    r_t^2 = (rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t); else p_t = p_{t-1} - lr m_hat.
    """
    g = penalised(p, g, h)
    t, (beta1, beta2) = counted(state, h), betas(h)
    m, v = averaged(state, "m", g, beta1, h), averaged(state, "v", g * g, beta2, h)
    m_hat = m / unbias(beta1, t, h)
    scale = rectified(beta2, t, h["threshold"])
    if scale is None:
        return moved(p, h["lr"] * m_hat, h)
    if not h.get("rectified", True):
        scale = 1.0
    return moved(p, h["lr"] * scale * m_hat / rooted(v, unbias(beta2, t, h, 2), h), h)


def rectified(beta2: float, t: int, threshold: float) -> float | None:
    """Return r_t; None: the variance is intractable, rho_t is not above the threshold."""
    limit = 2 / (1 - beta2) - 1
    power = math.pow(beta2, t)
    rho = limit - 2 * t * power / (1 - power)
    if rho <= threshold:
        return None
    return math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))


RADAM = Reference(
    "radam",
    "Liu et al. 2020, arXiv:1908.03265, Algorithm 2, with the threshold 5 of the authors' code",
    radam,
    # At t = 6, rho_t - 4 is 1 and moves by 2 t beta^t / (1 - beta^t)^2 = 340 of the rounding of 1 - beta.
    conditioning=340.0,
    variants={"eps_at": "uncorrected", "threshold": 5.0},
    mistakes={
        **CORRECTION,
        **misplaced("uncorrected"),
        **BETAS,
        **NARROW,
        "rectification left out": {"rectified": False},
        "threshold 4 instead of 5": {"threshold": 4.0},
        **MAXIMISE,
        **L2,
        **DECOUPLED,
    },
)
