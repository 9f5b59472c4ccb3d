"""What a reference is: an algorithm in float64, one function a parameter tensor, written from its paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = dict[str, Any]
"""What an algorithm keeps for one tensor, by the paper's symbol: float64 tensors, counts. Empty before step 1."""

Hyperparameters = Mapping[str, Any]
"""The algorithm's options by their names in `harness.optimizers.algorithms`, ``lr``, ``weight_decay`` of the
tensor's group, ``role`` (`harness.interfaces.Role`), and every variant and switch of the reference."""

Update = Callable[[Tensor, Tensor, State, Hyperparameters], Tensor]
"""(p, g, state, h) -> the parameter after one step. p and g: float64, of one shape, never changed in place;
g is the gradient of the loss (negate it where h["maximize"]). The state is changed in place."""


@dataclass(frozen=True)
class Reference:
    """One algorithm.

    Attributes:
        algorithm: as in ``algorithm/implementation``.
        source: paper, section or equation, that the function was written from.
        update: one step of one tensor.
        variants: names of the choices that papers and libraries differ in (where eps stands, how decay enters),
            with the value that implementations of this algorithm document. An implementation that documents
            another one has it in its ``variants``.
        mistakes: what is commonly done wrong in this algorithm: cause, as a user should read it -> switches that
            make the reference do it. The causes are tried when an implementation fails.
        internal_dtype: of the narrowest arithmetic that the algorithm prescribes itself (Muon's iteration).
        conditioning: by how much the algorithm enlarges the rounding of its decay rates where an implementation
            has its scalars in float32 (RAdam's rho_t is a difference of two large numbers).
        evaluates: needs the loss again within a step (LBFGS): ``update`` is then None, ``minimise`` is set.
    """

    algorithm: str
    source: str
    update: Update | None
    variants: Mapping[str, Any] = field(default_factory=dict)
    mistakes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    internal_dtype: str = "float64"
    conditioning: float = 1.0
    minimise: (
        Callable[[Tensor, Callable[[Tensor], tuple[float, Tensor]], State, Hyperparameters], Tensor] | None
    ) = None
    """(p, evaluate, state, h) -> p after one step; p: all parameters as one float64 vector; evaluate(p): loss and
    gradient there."""
