"""L-BFGS with steps of fixed length, over all parameters as one vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import UnsupportedError
from harness.references.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness.references.reference import Hyperparameters, State

    Evaluate = Callable[[Tensor], tuple[float, Tensor]]
    """Point -> loss and gradient there."""

_CURVED = 1e-10
"""Least s . y of a pair that is kept: the Hessian's estimate stays positive definite."""


def lbfgs(p: Tensor, evaluate: Evaluate, state: State, h: Hyperparameters) -> Tensor:
    """Return the point after one step: up to ``max_iter`` moves p <- p + lr d, d by `_direction`.

    The very first move is lr min(1, 1 / |g|_1) d. A step ends early where the gradient, the move or the change of
    the loss is within its tolerance, d does not descend, or the loss was evaluated ``max_eval`` times.

    Raises:
        UnsupportedError: a line search is asked for.
    """
    if h["line_search_fn"] is not None:
        raise UnsupportedError("the reference of LBFGS moves by lr; verify it with line_search_fn left out")
    budget = h["max_iter"] * 5 // 4 if h["max_eval"] is None else h["max_eval"]
    loss, g = evaluate(p)
    evaluations = 1
    if _flat(g, h):
        return p
    for move in range(1, h["max_iter"] + 1):
        d = _direction(g, state, h)
        length = h["lr"] * (min(1.0, 1.0 / float(g.abs().sum())) if state["n"] == 1 and _shortens(h) else 1.0)
        before, state["d"], state["length"], state["g"] = loss, d, length, g
        if float(g @ d) > -h["tolerance_change"]:
            break
        p = p + length * d
        if move == h["max_iter"]:
            break
        loss, g = evaluate(p)
        evaluations += 1
        still = float((length * d).abs().max()) <= h["tolerance_change"]
        if evaluations >= budget or _flat(g, h) or still or abs(loss - before) < h["tolerance_change"]:
            break
    return p


def _flat(g: Tensor, h: Hyperparameters) -> bool:
    return bool(float(g.abs().max()) <= h["tolerance_grad"])


def _shortens(h: Hyperparameters) -> bool:
    return bool(h.get("first_shortened", True))


def _direction(g: Tensor, state: State, h: Hyperparameters) -> Tensor:
    """Return -H g: the two loops over the last ``history_size`` pairs (s, y), H_0 = (s . y) / (y . y)."""
    state["n"] = state.get("n", 0) + 1
    pairs = state.setdefault("pairs", [])
    if state["n"] == 1:
        state["diagonal"] = 1.0
        return -g
    s, y = state["length"] * state["d"], g - state["g"]
    if float(s @ y) > _CURVED:
        pairs.append((s, y))
        del pairs[: -h["history_size"]]
        state["diagonal"] = float(s @ y) / float(y @ y) if h.get("scaled", True) else 1.0
    q, shares = -g, []
    for s, y in reversed(pairs):
        shares.append(float(s @ q) / float(s @ y))
        q = q - shares[-1] * y
    r: Tensor = state["diagonal"] * q
    for (s, y), share in zip(pairs, reversed(shares), strict=True):
        r = r + (share - float(y @ r) / float(s @ y)) * s
    return r


LBFGS = Reference(
    "lbfgs",
    "Nocedal 1980, doi:10.2307/2006193; Nocedal and Wright 2006, Algorithm 7.4, steps of fixed length",
    None,
    mistakes={
        "initial Hessian not scaled": {"scaled": False},
        "first move not shortened by the gradient's size": {"first_shortened": False},
        "history of one pair": {"history_size": 1},
    },
    minimise=lbfgs,
)
