"""How far an implementation may be from its reference: what rounding explains, and nothing else.

The error of an update is measured relative to its size (`harness.verification.comparing`). It may be

    (16 + 2 t) u + 2 u' max|p| / size

with t the step, u the unit roundoff of the coarsest format that the computation passes through and u' that of the
parameters. Sixteen roundings are more than any algorithm here has operations on an element from gradient to
update; each step rounds each moment twice more, and a moment that forgets slowly (beta2 = 0.999) sums all of them
up. The last term is the parameter's own: a decay and an addition round it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

_UNIT: Mapping[str, float] = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-9,
}
"""Unit roundoff: half the distance from 1 to the next number."""

_CODES: Mapping[str, float] = {
    "uint8": 0.5,
    "int8": 0.5,
    "float8_e4m3fn": 0.5,
    "float8_e5m2": 0.7,
    "uint4": 1.5,
    "int4": 1.5,
}
"""What a state of few bits may do to an update: an element's code is relative to the largest of its block, so that
small elements keep few digits or none."""


_ITERATED = 128
"""Unit roundoffs of an iteration's format. Newton-Schulz takes a small singular value up by 3.4445 in each of five
iterations, 485 in all, and the rounding in it too; that of the large ones is not."""


@dataclass(frozen=True)
class Bound:
    """What rounding can explain.

    Attributes:
        unit: unit roundoff of the computation.
        parameter_unit: unit roundoff of the parameters' dtype.
        codes: added where state is kept in few bits.
        iterated: added for matrices, where the algorithm prescribes an iteration in few digits.
        decays: of moments, kernels hold them and one minus them in float32.
    """

    unit: float
    parameter_unit: float
    codes: float = 0.0
    iterated: float = 0.0
    held: float = 0.0

    def at(self, step: int, largest: float, size: float, *, coded: bool, matrix: bool = False) -> float:
        """Return the bound at a step.

        Args:
            step: from 1.
            largest: max|p| of the tensor.
            size: of the update, as errors are measured by it.
            coded: the tensor's state is in few bits.
            matrix: the algorithm iterates on it.
        """
        own = 2 * self.parameter_unit * largest / size if size > 0 else 0.0
        return self.computing(step, coded=coded, matrix=matrix) + own

    def computing(self, step: int, *, coded: bool, matrix: bool = False) -> float:
        """Return what the computation of an update may lose, the parameter's own rounding left out."""
        formats = (self.codes if coded else 0.0) + (self.iterated if matrix else 0.0)
        return (16 + 2 * step) * self.unit + self.held + formats


def bound(
    parameters: torch.dtype, state_dtypes: Sequence[str], internal: str, options: Mapping[str, Any]
) -> Bound:
    """Return the bound of an implementation.

    Args:
        parameters: dtype of the parameters.
        state_dtypes: of the optimizer's state, by torch's names.
        internal: the narrowest arithmetic that the algorithm prescribes.
        options: hyperparameters; rates of decay near 1 lose digits in float32.
    """
    own = _UNIT[str(parameters).removeprefix("torch.")]
    units = [_UNIT["float32"], own, *(_UNIT[each] for each in state_dtypes if each in _UNIT)]
    codes = max((_CODES[each] for each in state_dtypes if each in _CODES), default=0.0)
    iterated = _ITERATED * _UNIT[internal] if _UNIT[internal] > _UNIT["float32"] else 0.0
    return Bound(max(units), own, codes, iterated, _held(options))


def _held(options: Mapping[str, Any]) -> float:
    """Return the relative error of 1 - beta where beta is a float32, of the beta nearest 1."""
    betas = [*options.get("betas", ()), *options.get("adamw_betas", ())]
    rates = [*betas, options.get("alpha", 0.0), options.get("rho", 0.0)]
    near = max((rate for rate in rates if isinstance(rate, float) and 0 <= rate < 1), default=0.0)
    return _UNIT["float32"] / (1 - near)
