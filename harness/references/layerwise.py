"""Algorithms that scale each tensor by a norm: LAMB and NovoGrad."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.references.decay import DECOUPLED
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


def lamb(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    r_t = m_hat / (sqrt(v_hat) + eps), u_t = r_t + weight_decay p_{t-1}, p_t = p_{t-1} - lr |p_{t-1}| / |u_t| u_t,
    with Adam's moments. phi is the identity. Where a norm is 0 the ratio is 1, as in the authors' code.
    """
    t, (beta1, beta2) = counted(state, h), betas(h)
    decay = h["weight_decay"] * h.get("decay_times", 1)
    if h.get("decay") == "l2":
        g, decay = g + decay * p, 0.0
    m, v = averaged(state, "m", g, beta1, h), averaged(state, "v", g * g, beta2, h)
    r = m / unbias(beta1, t, h) / rooted(v, unbias(beta2, t, h, 2), h)
    u = r if h.get("decay_outside") else r + decay * p
    size, length = p.norm(), u.norm()
    ratio: Tensor = size / length if h["trust"] and size > 0 and length > 0 else torch.ones_like(size)
    if h.get("clipped_trust"):
        ratio = ratio.clamp(max=10.0)
    return p - float(h["lr"]) * (ratio * u + (decay * p if h.get("decay_outside") else 0.0))


LAMB = Reference(
    "lamb",
    "You et al. 2020, arXiv:1904.00962, Algorithm 2, phi the identity",
    lamb,
    variants={"eps_at": "outside", "trust": True},
    mistakes={
        **CORRECTION,
        **misplaced("outside"),
        **BETAS,
        **NARROW,
        "trust ratio left out": {"trust": False},
        "trust ratio clipped at 10": {"clipped_trust": True},
        "decay outside the trust ratio": {"decay_outside": True},
        "L2 penalty instead of decoupled decay": {"decay": "l2"},
        "decay left out": DECOUPLED["decay left out"],
        "decay applied twice": DECOUPLED["decay applied twice"],
    },
)


def novograd(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    v_t = beta2 v_{t-1} + (1 - beta2) |g_t|^2, one number a tensor, v_1 = |g_1|^2 (v_0 = 0: ``init_zero``);
    m_t = beta1 m_{t-1} + a g_t / (sqrt(v_t) + eps), p_t = p_{t-1} - lr (m_t + weight_decay p_{t-1}).
    a = 1 - beta1 with ``grad_averaging``, else 1; ``reg_inside_moment``: decay enters m_t, as in the paper;
    ``bias_correction``: both moments corrected as Adam's, which the paper has not. ``norm_type`` 0: the largest
    magnitude for the norm, averaged itself instead of its square.

    ``normalised_at``: ``gradient`` as written, or ``moment`` as NVIDIA's code where decay is outside: m_t is of
    g_t alone and divided when it is used.
    """
    t, (beta1, beta2) = counted(state, h), betas(h)
    norm = _norm(g, state, beta2, h) / _norm_correction(beta2, t, h) + h["eps"]
    decay = h["weight_decay"] * h.get("decay_times", 1)
    share = 1 - beta1 if h["grad_averaging"] else 1.0
    inside = h["reg_inside_moment"]
    x = g / norm if inside or h["normalised_at"] == "gradient" else g
    m = beta1 * state.get("m", torch.zeros_like(g)) + share * (x + decay * p if inside else x)
    state["m"] = m.bfloat16().double() if "m" in h.get("narrow", ()) else m
    update: Tensor = state["m"] / unbias(beta1, t, h)
    if not inside:
        update = (update if h["normalised_at"] == "gradient" else update / norm) + decay * p
    return p - float(h["lr"]) * update


def _norm(g: Tensor, state: State, beta2: float, h: Hyperparameters) -> Tensor:
    """Return sqrt(v_t), or the average of the largest magnitudes."""
    power = 2 if h["norm_type"] == 2 else 1
    now = (g.norm() if power == 2 else g.abs().max()) ** power
    start = torch.zeros_like(now) if h["init_zero"] else now
    state["v"] = beta2 * state.get("v", start) + (1 - beta2) * now
    return state["v"] ** (1 / power)  # type: ignore[no-any-return]


def _norm_correction(beta2: float, t: int, h: Hyperparameters) -> float:
    """Return sqrt(1 - beta2^t), by which Apex corrects the norm of either type."""
    return float(unbias(beta2, t, h, 2) ** 0.5)


NOVOGRAD = Reference(
    "novograd",
    "Ginsburg et al. 2019, arXiv:1905.11286, Algorithm 1; its options as NVIDIA's code names them",
    novograd,
    variants={"normalised_at": "moment"},
    mistakes={
        **CORRECTION,
        **BETAS,
        "eps left out": {"eps": 0.0},
        "second moment starts at zero": {"init_zero": True},
        "gradient not averaged": {"grad_averaging": False},
        "decay inside the moment": {"reg_inside_moment": True},
        "gradient divided by the norm instead of the moment": {"normalised_at": "gradient"},
        "first moment kept in bfloat16": {"narrow": ("m",)},
        "decay left out": DECOUPLED["decay left out"],
        "decay applied twice": DECOUPLED["decay applied twice"],
    },
)
