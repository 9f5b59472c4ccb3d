"""Stochastic gradient descent, plain and with momentum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.references.decay import L2, MAXIMISE, Mistakes, moved, penalised
from harness.references.moments import counted
from harness.references.reference import Reference

if TYPE_CHECKING:
    from torch import Tensor

    from harness.references.reference import Hyperparameters, State


def sgd(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step.

    p_t = p_{t-1} - lr v_t, v_t = momentum v_{t-1} + (1 - dampening) g_t; with ``nesterov`` g_t + momentum v_t
    stands for v_t. v_1 = g_1: the first gradient is not dampened. Without momentum v_t = g_t, dampened or not.

    ``averaged``: an average, dampening = momentum from the first step on. ``rate_inside``: lr scales g_t as it
    enters v_t, as in Sutskever's equation 1; the two forms part when lr changes.
    """
    g, momentum = penalised(p, g, h), h["momentum"]
    if not momentum:
        return moved(p, h["lr"] * g, h)
    dampening = momentum if h.get("averaged") else h["dampening"]
    inner, outer = (h["lr"], 1.0) if h.get("rate_inside") else (1.0, h["lr"])
    if "v" in state:
        state["v"] = momentum * state["v"] + (1 - dampening) * inner * g
    else:
        first = 1 - dampening if h.get("averaged") or h.get("dampened_at_once") else 1.0
        state["v"] = first * inner * g
    return moved(p, outer * (inner * g + momentum * state["v"] if h["nesterov"] else state["v"]), h)


_MOMENTUM: Mistakes = {
    "momentum that averages gradients instead of summing them": {"averaged": True},
    "learning rate inside the momentum": {"rate_inside": True},
    "momentum left out": {"momentum": 0.0},
}
_DAMPENED: Mistakes = {
    **_MOMENTUM,
    "dampening left out": {"dampening": 0.0},
    "dampening of the first gradient": {"dampened_at_once": True},
}
_VARIANTS = {"averaged": False, "rate_inside": False}

SGD = Reference(
    "sgd",
    "Robbins and Monro 1951, doi:10.1214/aoms/1177729586, equation 6",
    sgd,
    variants=_VARIANTS,
    mistakes={**L2, **MAXIMISE, **_DAMPENED},
)

SGD_MOMENTUM = Reference(
    "sgd-momentum",
    "Sutskever et al. 2013, PMLR 28(3), equations 1 and 2, lr outside the momentum",
    sgd,
    variants=_VARIANTS,
    mistakes={"Nesterov form instead of the classical one": {"nesterov": True}, **_DAMPENED, **L2, **MAXIMISE},
)

SGD_NESTEROV = Reference(
    "sgd-nesterov",
    "Sutskever et al. 2013, PMLR 28(3), equations 3 and 4, in the point where the gradient is taken",
    sgd,
    variants=_VARIANTS,
    mistakes={"classical form instead of Nesterov's": {"nesterov": False}, **_MOMENTUM, **L2, **MAXIMISE},
)


def asgd(p: Tensor, g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return the parameter after one step; the average of the iterates is kept beside it and moves nothing.

    p_t = (1 - lambd eta_t) p_{t-1} - eta_t g_t, eta_1 = lr, eta_t = lr / (1 + lambd lr (t - 1))^alpha.
    ``rate_of`` ``step before``: lr is that of step t - 1, so that a changed rate arrives a step late.
    """
    g = penalised(p, g, h)
    t = counted(state, h)
    now = float(h["lr"])
    lr = state.get("lr", now) if h["rate_of"] == "step before" else now
    state["lr"] = now
    eta = lr / math.pow(1 + h["lambd"] * lr * (t - 1 + h.get("step_offset", 0)), h["alpha"])
    return p * float(1 - eta * h["lambd"] * h.get("shrinks", 1)) - eta * g


ASGD = Reference(
    "asgd",
    "Polyak and Juditsky 1992, doi:10.1137/0330046; decay and rate of Bottou 2012, Stochastic Gradient Tricks, 5",
    asgd,
    variants={"rate_of": "step before"},
    mistakes={
        "rate decays one step early": {"step_offset": 1},
        "rate does not decay": {"alpha": 0.0},
        "decay by lambd left out": {"shrinks": 0},
        "decay by lambd applied twice": {"shrinks": 2},
        "a changed learning rate acts at once": {"rate_of": "this step"},
        **L2,
        **MAXIMISE,
    },
)
