"""Adafactor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from harness.references.decay import DECOUPLED, MAXIMISE, descent, moved
from harness.references.moments import counted
from harness.references.reference import Reference

if TYPE_CHECKING:
    from torch import Tensor

    from harness.references.reference import Hyperparameters, State


def adafactor(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    beta2_t = 1 - t^beta2_decay; R, C: averages of g^2's row and column means; V = R C / mean(R); of vectors V is
    the average of g^2. U = g / sqrt(V), U_hat = U / max(1, RMS(U) / d); rho_t = min(lr, 1 / sqrt(t));
    p_t = p_{t-1} - max(eps2, RMS(p_{t-1})) rho_t U_hat, with decoupled decay.

    eps1 bounds V below by its square and mean(R) by itself (the paper adds it to g^2); None: the roundoff of
    ``dtype``, the parameter's own (float32 unless given). Of more than two dimensions the last two are matrices.
    """
    g, t = descent(g, h), counted(state, h)
    small, least = h["eps"]
    small = torch.finfo(h.get("dtype", torch.float32)).eps if small is None else small
    average = 1.0 - math.pow(t + h.get("step_offset", 0), h["beta2_decay"])
    factored = g.dim() > 1 and h.get("factored", True)
    v = _factored(g, state, average, small) if factored else _plain(g, state, average)
    update = g / v.clamp(min=small * small).sqrt()
    update = update / max(1.0, _rms(update) / h["d"])
    rate = min(h["lr"], 1 / math.sqrt(t)) if h.get("relative", True) else h["lr"]
    scale = max(least, _rms(p)) if h.get("scaled", True) else 1.0
    return moved(p, scale * rate * update, h)


def _factored(g: Tensor, state: State, beta: float, small: float) -> Tensor:
    for key, axis in (("rows", -1), ("columns", -2)):
        mean = (g * g).mean(dim=axis, keepdim=True)
        state[key] = beta * state.get(key, torch.zeros_like(mean)) + (1 - beta) * mean
    rows: Tensor = state["rows"]
    return rows @ state["columns"] / rows.mean(dim=-2, keepdim=True).clamp(min=small)  # type: ignore[no-any-return]


def _plain(g: Tensor, state: State, beta: float) -> Tensor:
    v: Tensor = beta * state.get("v", torch.zeros_like(g)) + (1 - beta) * g * g
    state["v"] = v
    return v


def _rms(x: Tensor) -> float:
    return float(x.norm()) / math.sqrt(max(x.numel(), 1))


ADAFACTOR = Reference(
    "adafactor",
    "Shazeer and Stern 2018, arXiv:1804.04235, Algorithms 4 and 5, eps as torch.optim documents it",
    adafactor,
    variants={"eps1_at": "clamped", "decoupled_weight_decay": True},
    mistakes={
        "clipping of the update left out": {"d": math.inf},
        "scale of the parameter left out": {"scaled": False},
        "learning rate not bounded by 1/sqrt(t)": {"relative": False},
        "second moment not factored": {"factored": False},
        "decay of the second moment off by one step": {"step_offset": 1},
        **DECOUPLED,
        **MAXIMISE,
    },
)
