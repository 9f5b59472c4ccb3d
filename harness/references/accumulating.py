"""Algorithms that scale each element by its own past gradients alone: Adagrad, Adadelta, RMSprop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.references.decay import L2, MAXIMISE, moved, penalised
from harness.references.moments import averaged, counted, rooted
from harness.references.reference import Reference

if TYPE_CHECKING:
    from torch import Tensor

    from harness.references.reference import Hyperparameters, State


def adagrad(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    s_t = s_{t-1} + g_t^2, p_t = p_{t-1} - lr / (1 + (t - 1) lr_decay) g_t / (sqrt(s_t) + eps).
    """
    g = penalised(p, g, h)
    t = counted(state, h)
    start = torch.full_like(g, h["initial_accumulator_value"])
    state["s"] = state.get("s", start) + g * g if h.get("summed", True) else g * g
    rate = h["lr"] / (1 + (t - h.get("decay_from", 1)) * h["lr_decay"])
    return moved(p, rate * g / rooted(state["s"], 1.0, h), h)


ADAGRAD = Reference(
    "adagrad",
    "Duchi, Hazan and Singer 2011, JMLR 12, Figure 1 with diagonal matrices, delta = eps",
    adagrad,
    variants={"eps_at": "outside"},
    mistakes={
        "eps inside the root": {"eps_at": "inside"},
        "root clamped at eps instead of eps added": {"eps_at": "clamped"},
        "eps left out": {"eps": 0.0},
        "squares not summed": {"summed": False},
        "learning rate decays one step early": {"decay_from": 0},
        "decay of the learning rate left out": {"lr_decay": 0.0},
        "initial value of the sum left out": {"initial_accumulator_value": 0.0},
        **L2,
        **MAXIMISE,
    },
)


def adadelta(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    E[g^2]_t = rho E[g^2]_{t-1} + (1 - rho) g_t^2, delta_t = RMS[delta]_{t-1} / RMS[g]_t g_t,
    E[delta^2]_t = rho E[delta^2]_{t-1} + (1 - rho) delta_t^2, p_t = p_{t-1} - lr delta_t;
    RMS[x] = sqrt(E[x^2] + eps).
    """
    g = penalised(p, g, h)
    before = rooted(state.get("e", torch.zeros_like(g)), 1.0, h)
    delta = before / rooted(averaged(state, "v", g * g, h["rho"], h), 1.0, h) * g
    taken = h["lr"] * delta if h.get("accumulates_scaled") else delta
    averaged(state, "e", taken * taken, h["rho"], h)
    return moved(p, h["lr"] * delta, h)


ADADELTA = Reference(
    "adadelta",
    "Zeiler 2012, arXiv:1212.5701, Algorithm 1; lr 1 in the paper",
    adadelta,
    variants={"eps_at": "inside"},
    mistakes={
        "eps outside the root": {"eps_at": "outside"},
        "root clamped at eps instead of eps added": {"eps_at": "clamped"},
        "step accumulated after scaling by lr": {"accumulates_scaled": True},
        "averages kept in bfloat16": {"narrow": ("v", "e")},
        **L2,
        **MAXIMISE,
    },
)


def rmsprop(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    v_t = alpha v_{t-1} + (1 - alpha) g_t^2; ``centered``: less the square of the gradient's average (Graves 2013,
    arXiv:1308.0850, equations 38 to 45). p_t = p_{t-1} - lr b_t, b_t = momentum b_{t-1} + g_t / (sqrt(v_t) + eps).
    ``rate_inside``: lr scales what enters b_t; the two forms part when lr changes.
    """
    g = penalised(p, g, h)
    t = counted(state, h)
    v = averaged(state, "v", g * g, h["alpha"], h)
    if h["centered"]:
        v = v - averaged(state, "mean", g, h["alpha"], h) ** 2
    if h.get("unbiased"):
        v = v / (1 - h["alpha"] ** t)
    inner, outer = (h["lr"], 1.0) if h["rate_inside"] else (1.0, h["lr"])
    state["b"] = h["momentum"] * state.get("b", torch.zeros_like(g)) + inner * g / rooted(v, 1.0, h)
    return moved(p, outer * state["b"], h)


RMSPROP = Reference(
    "rmsprop",
    "Hinton 2012, lecture 6e, slide 29; momentum and the centred form of Graves 2013, arXiv:1308.0850",
    rmsprop,
    variants={"eps_at": "outside", "rate_inside": False},
    mistakes={
        "eps inside the root": {"eps_at": "inside"},
        "root clamped at eps instead of eps added": {"eps_at": "clamped"},
        "eps left out": {"eps": 0.0},
        "bias correction where there is none": {"unbiased": True},
        "second moment kept in bfloat16": {"narrow": ("v",)},
        "not centred": {"centered": False},
        "momentum left out": {"momentum": 0.0},
        "learning rate inside the momentum": {"rate_inside": True},
        **L2,
        **MAXIMISE,
    },
)
