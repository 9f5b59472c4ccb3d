"""Algorithms that orthogonalise a matrix's momentum: Muon, and the form of it that heavyball has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.references.adam import adam
from harness.references.decay import DECOUPLED, moved
from harness.references.moments import averaged, counted, unbias
from harness.references.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from harness.references.reference import Hyperparameters, State

_HEAVYBALL = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Coefficients of heavyball's five iterations."""


def orthogonalised(
    x: Tensor,
    coefficients: Sequence[Sequence[float]],
    eps: float,
    *,
    rounded: str = "lines",
    eps_added: bool = False,
) -> Tensor:
    """Return nearly U V^T of x = U S V^T, by Newton-Schulz iterations in bfloat16, as the source prescribes.

    A = X X^T, B = b A + c A A, X <- a X + B X. The coefficients stretch small singular values by several hundred,
    and roundings with them: two sound orders of the same operations differ by a tenth of the largest element.

    Args:
        x: (rows, columns).
        coefficients: a, b, c of each iteration.
        eps: least norm that x is divided by.
        eps_added: it is added to the norm instead.
        rounded: to bfloat16: the result of ``lines`` (multiply-adds in one, as torch.addmm), of each of their
            ``operations``, or ``nothing``.
    """
    line = _bfloat16 if rounded != "nothing" else _exact
    part = _bfloat16 if rounded == "operations" else _exact
    wide = x.shape[0] <= x.shape[1]
    y = line(x if wide else x.T)
    norm = line(y.norm())
    y = line(y / (line(norm + eps) if eps_added else norm.clamp(min=eps)))
    for a, b, c in coefficients:
        gram = line(y @ y.T)
        polynomial = line(part(b * gram) + part(part(c * gram) @ gram))
        y = line(part(a * y) + part(polynomial @ y))
    return y if wide else y.T


def _bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().double()


def _exact(x: Tensor) -> Tensor:
    return x


def muon(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    B_t = momentum B_{t-1} + (1 - momentum) g_t, with ``nesterov`` momentum B_t + (1 - momentum) g_t for it;
    p_t = (1 - lr weight_decay) p_{t-1} - lr s orthogonalised(B_t); s = sqrt(max(1, rows / columns)), or
    0.2 sqrt(max(rows, columns)) by ``adjust_lr_fn``. A sum in place of the average differs by a factor only,
    which the iteration's first division takes out. What is no matrix inside the model: AdamW.
    """
    if p.dim() != 2 or h["role"] != "matrix":
        return adam(p, g, state, companion(h))
    momentum = h["momentum"]
    b = averaged(state, "b", g, momentum, h)
    b = momentum * b + (1 - momentum) * g if h["nesterov"] else b
    each = {"rounded": h["rounded"], "eps_added": h["norm_eps"] == "added"}
    o = orthogonalised(b, [h["ns_coefficients"]] * h["ns_steps"], h["eps"], **each)
    return moved(p, h["lr"] * _adjustment(p, h) * o, h)


def companion(h: Hyperparameters) -> dict[str, Any]:
    """Return the hyperparameters of the AdamW beside Muon: the ``adamw_`` options under AdamW's names."""
    own = {name.removeprefix("adamw_"): value for name, value in h.items() if name.startswith("adamw_")}
    own["lr"] = h["lr"] if own.get("lr") is None else own["lr"]
    return {**h, **own, "eps_at": h["adamw_eps_at"]}


def _adjustment(p: Tensor, h: Hyperparameters) -> float:
    rows, columns = p.shape
    if h.get("adjusted", True) is False:
        return 1.0
    if h["adjust_lr_fn"] == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


MUON = Reference(
    "muon",
    "Jordan 2024, kellerjordan.github.io/posts/muon; AdamW for the rest: Loshchilov and Hutter 2019, Algorithm 2",
    muon,
    variants={
        "decoupled_weight_decay": True,
        "adamw_eps_at": "outside",
        "norm_eps": "clamped",
        "rounded": "lines",
    },
    mistakes={
        "eps added to the norm instead of bounding it": {"norm_eps": "added"},
        "Nesterov form left out": {"nesterov": False},
        "rate not adjusted to the matrix's shape": {"adjusted": False},
        "one iteration too few": {"ns_steps": 4},
        "one iteration too many": {"ns_steps": 6},
        "AdamW without bias correction": {"corrected": 0},
        "AdamW with eps inside the root": {"adamw_eps_at": "inside"},
        "AdamW's betas swapped": {"beta_of": (1, 0)},
        "AdamW's second moment kept in bfloat16": {"narrow": ("v",)},
        "momentum kept in bfloat16": {"narrow": ("b",)},
        **{cause: switches for cause, switches in DECOUPLED.items() if "weight_decay" not in switches},
        "decay left out": {"weight_decay": 0.0, "adamw_weight_decay": 0.0},
    },
    internal_dtype="bfloat16",
)


def muon_ema(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    m_t = beta1 m_{t-1} + (1 - beta1) g_t; with ``nesterov`` g_t + m_t stands for it, else m_t / (1 - beta1^t).
    Of two or more dimensions, as a matrix with all but the first in its columns:
    p_t = (1 - lr weight_decay) p_{t-1} - lr sqrt(max(1, rows / columns)) orthogonalised; of fewer, as it is.
    beta2 and eps are not used.
    """
    t, beta1 = counted(state, h), h["betas"][0]
    m = averaged(state, "m", g, beta1, h)
    x = g + m if h["nesterov"] else m / unbias(beta1, t, h)
    if p.dim() >= 2 and p.numel():
        flat = x.flatten(1)
        stretch = math.sqrt(max(1.0, flat.shape[0] / flat.shape[1])) if h.get("adjusted", True) else 1.0
        x = stretch * orthogonalised(flat, _HEAVYBALL[: h.get("iterations", 5)], 1e-7).reshape(p.shape)
    return moved(p, h["lr"] * x, h)


MUON_EMA = Reference(
    "muon-ema",
    "Jordan 2024, kellerjordan.github.io/posts/muon, with the average and the coefficients of heavyball's Muon",
    muon_ema,
    variants={"decoupled_weight_decay": True},
    mistakes={
        "Nesterov form left out": {"nesterov": False},
        "rate not adjusted to the matrix's shape": {"adjusted": False},
        "one iteration too few": {"iterations": 4},
        "moment kept in bfloat16": {"narrow": ("m",)},
        **DECOUPLED,
    },
    internal_dtype="bfloat16",
)
