"""Exponential averages of gradients and their squares, with what is commonly done wrong about them.

Switches, all off unless a variant or a mistake sets them: ``beta_of`` (which of ``betas`` serves the first and
which the second moment), ``corrected`` (how many moments are corrected for their bias: 2, 1 or 0), ``step_offset``
(added to the count in the correction), ``eps_at`` (`rooted`), ``narrow`` (moments kept in bfloat16).
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from harness.references.reference import Hyperparameters, State

BETAS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "betas swapped": {"beta_of": (1, 0)},
        "first beta used for both moments": {"beta_of": (0, 0)},
        "second beta used for both moments": {"beta_of": (1, 1)},
    }
)
CORRECTION: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "no bias correction": {"corrected": 0},
        "no bias correction of the second moment": {"corrected": 1},
        "bias correction off by one step": {"step_offset": 1},
        "bias correction one step behind": {"step_offset": -1},
    }
)
NARROW: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "second moment kept in bfloat16": {"narrow": ("v",)},
        "first moment kept in bfloat16": {"narrow": ("m",)},
    }
)
_EPSILON: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "eps inside the root": {"eps_at": "inside"},
        "eps outside the root": {"eps_at": "outside"},
        "epsilon scaled by bias correction": {"eps_at": "uncorrected"},
        "root clamped at eps instead of eps added": {"eps_at": "clamped"},
        "eps left out": {"eps": 0.0},
    }
)


def misplaced(prescribed: str) -> dict[str, dict[str, Any]]:
    """Return the mistakes about eps of an algorithm that prescribes one place for it."""
    return {cause: switches for cause, switches in _EPSILON.items() if switches.get("eps_at") != prescribed}


def counted(state: State, h: Hyperparameters) -> int:
    """Count this step; return its number, from 1.

    Variant ``counts``: ``tensor``, the steps at which the tensor had a gradient; or ``group``: every step of its
    group, of which h["idle"] lists the rates of those since the tensor's last at which it had none.
    """
    idle = h.get("idle", ()) if h.get("counts") == "group" else ()
    state["t"] = state.get("t", 0) + len(idle) + 1
    return int(state["t"])


def betas(h: Hyperparameters) -> tuple[float, float]:
    """Return the decay rates of the first and of the second moment."""
    first, second = h.get("beta_of", (0, 1))
    return h["betas"][first], h["betas"][second]


def averaged(state: State, key: str, x: Tensor, beta: float, h: Hyperparameters) -> Tensor:
    """Return state[key] <- beta state[key] + (1 - beta) x, from zero before the first step."""
    average = beta * state.get(key, torch.zeros_like(x)) + (1 - beta) * x
    state[key] = average.bfloat16().double() if key in h.get("narrow", ()) else average
    return state[key]  # type: ignore[no-any-return]


def unbias(beta: float, t: int, h: Hyperparameters, moment: int = 1) -> float:
    """Return 1 - beta^t, what an average of t steps from zero is divided by."""
    if not h.get("bias_correction", True) or h.get("corrected", 2) < moment:
        return 1.0
    return 1 - math.pow(beta, max(t + h.get("step_offset", 0), 1))


def rooted(v: Tensor, correction: float, h: Hyperparameters) -> Tensor:
    """Return the denominator sqrt(v_hat) + eps, v_hat = v / correction, by where eps stands.

    ``outside`` as in Kingma and Ba's Algorithm 1; ``inside`` sqrt(v_hat + eps); ``uncorrected`` their section 2's
    reordering, sqrt(1 - beta2^t) divides after eps is added; ``clamped`` max(sqrt(v_hat), eps).
    """
    place, eps = h.get("eps_at", "outside"), float(h["eps"])
    if place == "inside":
        return (v / correction + eps).sqrt()
    if place == "uncorrected":
        return (v.sqrt() + eps) / math.sqrt(correction)
    root = (v / correction).sqrt()
    return root.clamp(min=eps) if place == "clamped" else root + eps
