"""What the references share about gradients and decay: the sign, the penalty, the decoupled decay.

Switches, all off unless a variant or a mistake sets them: ``decay`` (``l2`` or ``decoupled``), ``decay_times``,
``decay_lr`` (``peak_lr``, ``none``), ``decay_after`` (the updated parameter decays).
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from harness.references.reference import Hyperparameters

Mistakes = dict[str, dict[str, Any]]
"""Cause -> switches, as `harness.references.reference.Reference.mistakes`."""

_EITHER: Mistakes = {
    "decay left out": {"weight_decay": 0.0},
    "decay applied twice": {"decay_times": 2},
}

L2: Mapping[str, dict[str, Any]] = MappingProxyType(
    {"decoupled decay instead of an L2 penalty": {"decay": "decoupled"}, **_EITHER}
)
"""Mistakes of an algorithm whose decay is a penalty."""

DECOUPLED: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "L2 penalty instead of decoupled decay": {"decay": "l2"},
        **_EITHER,
        "decay on the updated parameter": {"decay_after": True},
        "decay that ignores the schedule": {"decay_lr": "peak_lr"},
        "decay not multiplied by the learning rate": {"decay_lr": "none"},
    }
)
"""Mistakes of an algorithm whose decay is decoupled."""

MAXIMISE: Mapping[str, dict[str, Any]] = MappingProxyType(
    {"sign of the gradient under maximise": {"maximize": False}}
)
"""The mistake of whatever takes ``maximize``."""


def descent(g: Tensor, h: Hyperparameters) -> Tensor:
    """Return the gradient of what is minimised: g, or -g where h["maximize"]."""
    return -g if h.get("maximize") else g


def decoupled(h: Hyperparameters) -> bool:
    """Say whether weights decay apart from the gradient: ``decay``, else ``decoupled_weight_decay``, else no."""
    if "decay" in h:
        return bool(h["decay"] == "decoupled")
    return bool(h.get("decoupled_weight_decay"))


def penalised(p: Tensor, g: Tensor, h: Hyperparameters) -> Tensor:
    """Return the gradient of loss + weight_decay |p|^2 / 2; of the loss alone where decay is decoupled."""
    g = descent(g, h)
    return g if decoupled(h) else g + h.get("decay_times", 1) * h.get("weight_decay", 0.0) * p


def moved(p: Tensor, step: Tensor, h: Hyperparameters) -> Tensor:
    """Return p - step, and where decay is decoupled (1 - lr weight_decay) p - step.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2, line 12, with lambda scaled by lr.
    """
    if not decoupled(h):
        return p - step
    rate = {"lr": h["lr"], "peak_lr": h.get("peak_lr", h["lr"]), "none": 1.0}[h.get("decay_lr", "lr")]
    kept = math.pow(1 - rate * h.get("weight_decay", 0.0), h.get("decay_times", 1))
    return (p - step) * kept if h.get("decay_after") else p * kept - step
