"""Schedule-free AdamW, RAdam and SGD: the parameters in train mode are y, where gradients are taken."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.references.adaptive import rectified
from harness.references.moments import CORRECTION, averaged, counted, misplaced, rooted, unbias
from harness.references.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness.references.decay import Mistakes
    from harness.references.reference import Hyperparameters, State

_THRESHOLD = 4.0
"""RAdam's paper's."""


def adamw_schedule_free(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return y after one step along g / (sqrt(v_hat) + eps); see `_averaged_on`."""
    _idled(state, h, lambda t, lr: _warm(t, {**h, "lr": lr}))
    t, (_, beta2) = counted(state, h), h["betas"]
    v = averaged(state, "v", g * g, beta2, h)
    direction = g / rooted(v, unbias(beta2, t, h, 2), h)
    return _averaged_on(p, direction, _warm(t, h), h["betas"][0], state, h)


def radam_schedule_free(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return y after one step of RAdam's rate and Adam's direction; see `_averaged_on`.

    While RAdam's variance is intractable, along g itself; not at all with ``silent_sgd_phase``.
    """
    _idled(state, h, lambda t, lr: _rate(t, {**h, "lr": lr}))
    t, (beta1, beta2) = counted(state, h), h["betas"]
    v = averaged(state, "v", g * g, beta2, h)
    intractable = rectified(beta2, t, _THRESHOLD) is None
    direction = g if intractable else g / rooted(v, unbias(beta2, t, h, 2), h)
    return _averaged_on(p, direction, _rate(t, h), beta1, state, h)


def _rate(t: int, h: Hyperparameters) -> float:
    """Return RAdam's rate of step t."""
    scale = rectified(h["betas"][1], t, _THRESHOLD)
    if scale is None:
        return 0.0 if h["silent_sgd_phase"] else float(h["lr"])
    return float(h["lr"]) * (scale if h.get("rectified", True) else 1.0)


def sgd_schedule_free(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return y after one step along g; see `_averaged_on`."""
    _idled(state, h, lambda t, lr: _warm(t, {**h, "lr": lr}))
    return _averaged_on(p, g, _warm(counted(state, h), h), h["momentum"], state, h)


def _warm(t: int, h: Hyperparameters) -> float:
    """Return the rate of step t: it rises over ``warmup_steps``."""
    return float(h["lr"]) * (min(t / h["warmup_steps"], 1.0) if h["warmup_steps"] else 1.0)


def _idled(state: State, h: Hyperparameters, rate: Callable[[int, float], float]) -> None:
    """Weigh the group's steps since the tensor's last at which it had no gradient: they count all the same."""
    before = state.get("t", 0)
    for number, lr in enumerate(h.get("idle", ()), start=before + 1):
        state["t"] = number
        _share(rate(number, lr), state, h)
    state["t"] = before


def _averaged_on(y: Tensor, x: Tensor, rate: float, beta: float, state: State, h: Hyperparameters) -> Tensor:
    """Return y_t from y_{t-1} and a direction.

    z_t = z_{t-1} - rate (x + weight_decay y_{t-1}), x_t = (1 - c_t) x_{t-1} + c_t z_t,
    y_t = (1 - beta) z_t + beta x_t, z_0 = y_0 = x_0. The average x_{t-1} is found in y_{t-1} and z_{t-1}.
    c_t = w_t / sum of w, w_t = t^r (largest rate so far)^weight_lr_power; 0 where the sum is 0.
    """
    z: Tensor = state.get("z", y)
    average = (y - (1 - beta) * z) / beta
    z = z - rate * (x + h.get("decay_times", 1) * h["weight_decay"] * (z if h.get("decay_at_z") else y))
    state["z"], share = z, _share(rate, state, h)
    return (1 - beta) * z + beta * ((1 - share) * average + share * z)


def _share(rate: float, state: State, h: Hyperparameters) -> float:
    """Return c_t."""
    if h.get("uniform"):
        return 1.0 / int(state["t"])
    largest = state["largest"] = max(rate, state.get("largest", 0.0)) if h.get("largest", True) else rate
    weight = math.pow(state["t"], h["r"]) * math.pow(largest, h["weight_lr_power"])
    total = state["weights"] = state.get("weights", 0.0) + weight
    return weight / total if total else 0.0


_AVERAGE: Mistakes = {
    "iterates averaged uniformly": {"uniform": True},
    "weight of the present rate instead of the largest": {"largest": False},
    "decay at z instead of y": {"decay_at_z": True},
    "decay left out": {"weight_decay": 0.0},
    "decay applied twice": {"decay_times": 2},
}
_MOMENT: Mistakes = {
    **{
        cause: CORRECTION[cause]
        for cause in ("bias correction off by one step", "bias correction one step behind")
    },
    "no bias correction": {"corrected": 0},
    **misplaced("outside"),
    "second moment kept in bfloat16": {"narrow": ("v",)},
}
_PAPER = "Defazio et al. 2024, arXiv:2405.15682"

ADAMW_SCHEDULE_FREE = Reference(
    "adamw-schedule-free",
    f"{_PAPER}, Algorithm 1, decay at y",
    adamw_schedule_free,
    variants={"eps_at": "outside", "counts": "group"},
    mistakes={**_MOMENT, **_AVERAGE, "warm-up left out": {"warmup_steps": 0}},
)

RADAM_SCHEDULE_FREE = Reference(
    "radam-schedule-free",
    f"{_PAPER}, Algorithm 1, with the rate of Liu et al. 2020, arXiv:1908.03265, Algorithm 2",
    radam_schedule_free,
    variants={"eps_at": "outside", "counts": "group"},
    mistakes={
        **_MOMENT,
        **_AVERAGE,
        "rectification left out": {"rectified": False},
        "steps taken in RAdam's silent phase": {"silent_sgd_phase": False},
    },
)

SGD_SCHEDULE_FREE = Reference(
    "sgd-schedule-free",
    f"{_PAPER}, equations 3 to 5, decay at y",
    sgd_schedule_free,
    variants={"counts": "group"},
    mistakes={**_AVERAGE, "warm-up left out": {"warmup_steps": 0}},
)
