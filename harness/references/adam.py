"""Adam and AdamW."""

from __future__ import annotations

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


def adam(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    m_t = beta1 m_{t-1} + (1 - beta1) g_t, v_t = beta2 v_{t-1} + (1 - beta2) g_t^2,
    p_t = p_{t-1} - lr (m_t / (1 - beta1^t)) / (sqrt(v_t / (1 - beta2^t)) + eps).
    With ``amsgrad`` the largest v so far stands for v_t (Reddi et al. 2018, Algorithm 2, corrected for bias).
    """
    g = penalised(p, g, h)
    t, (beta1, beta2) = counted(state, h), betas(h)
    m, v = averaged(state, "m", g, beta1, h), averaged(state, "v", g * g, beta2, h)
    if h.get("amsgrad"):
        v = state["largest"] = torch.maximum(state.get("largest", torch.zeros_like(v)), v)
    m_hat = m / unbias(beta1, t, h)
    return moved(p, h["lr"] * m_hat / rooted(v, unbias(beta2, t, h, 2), h), h)


_MOMENTS: Mistakes = {
    **CORRECTION,
    **misplaced("outside"),
    **BETAS,
    **NARROW,
    "amsgrad left out": {"amsgrad": False},
    **MAXIMISE,
}

ADAM = Reference(
    "adam",
    "Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1",
    adam,
    variants={"eps_at": "outside"},
    mistakes={**_MOMENTS, **L2},
)

ADAMW = Reference(
    "adamw",
    "Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2",
    adam,
    variants={"eps_at": "outside", "decoupled_weight_decay": True},
    mistakes={**_MOMENTS, **DECOUPLED},
)


def sparseadam(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step; g is dense, the gradient's absent rows are zero there.

    Where ``role`` is ``sparse``, Adam in the rows that have a gradient: the others keep moments and values, and
    eps stands by ``sparse_eps_at``. The count of steps, hence the bias correction, is one for all rows.
    Elsewhere Adam.
    """
    if h["role"] != "sparse":
        return adam(p, g, state, h)
    rows = (g != 0).reshape(len(g), -1).any(dim=1)
    kept = {key: value.clone() for key, value in state.items() if key != "t"}
    moved_all = adam(p, g, state, {**h, "eps_at": h["sparse_eps_at"]})
    if h.get("dense_moments"):
        return torch.where(_over(rows, p), moved_all, p)
    for key in ("m", "v"):
        state[key] = torch.where(_over(rows, p), state[key], kept.get(key, torch.zeros_like(p)))
    return torch.where(_over(rows, p), moved_all, p)


def _over(rows: Tensor, p: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (p.dim() - 1))


SPARSEADAM = Reference(
    "sparseadam",
    "Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1, in the rows that have a gradient (torch.optim.SparseAdam)",
    sparseadam,
    variants={"eps_at": "outside", "sparse_eps_at": "uncorrected"},
    mistakes={
        **CORRECTION,
        "eps outside the root": {"sparse_eps_at": "outside"},
        "moments decay in rows without a gradient": {"dense_moments": True},
        **BETAS,
        **NARROW,
        **MAXIMISE,
    },
)
