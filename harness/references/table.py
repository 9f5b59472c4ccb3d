"""Every reference, by algorithm; what has none, and why."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from harness.references import (
    accumulating,
    adafactor,
    adam,
    adaptive,
    layerwise,
    lbfgs,
    moment_forms,
    orthogonal,
    schedule_free,
    sgd,
    signs,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.references.reference import Reference

_TABLE: tuple[Reference, ...] = (
    adam.ADAM,
    adam.ADAMW,
    sgd.SGD,
    sgd.SGD_MOMENTUM,
    sgd.SGD_NESTEROV,
    sgd.ASGD,
    adam.SPARSEADAM,
    adaptive.ADAMAX,
    adaptive.NADAM,
    adaptive.RADAM,
    accumulating.ADAGRAD,
    accumulating.ADADELTA,
    accumulating.RMSPROP,
    signs.RPROP,
    signs.LION,
    layerwise.LAMB,
    layerwise.NOVOGRAD,
    adafactor.ADAFACTOR,
    moment_forms.ADAMW_CLAMPED,
    moment_forms.LAPROP,
    moment_forms.ADOPT,
    moment_forms.ADEMAMIX,
    schedule_free.ADAMW_SCHEDULE_FREE,
    schedule_free.RADAM_SCHEDULE_FREE,
    schedule_free.SGD_SCHEDULE_FREE,
    lbfgs.LBFGS,
    orthogonal.MUON,
    orthogonal.MUON_EMA,
)

REFERENCES: Mapping[str, Reference] = MappingProxyType({each.algorithm: each for each in _TABLE})
"""Every reference, by algorithm."""

WITHOUT: Mapping[str, str] = MappingProxyType(
    {
        "psgd-kron": "its preconditioner is fitted to random probes: no two sound implementations agree",
        "soap": (
            "its first bases are eigenvectors of statistics without full rank, which leave a choice: two sound "
            "implementations differ in it"
        ),
        "scion": "its first step puts initial values of its own, drawn at random, in place of the parameters",
    }
)
"""Algorithm -> why there can be no reference."""


def reference(name: str) -> Reference | None:
    """Return an algorithm's reference; None: it has none.

    Args:
        name: algorithm, as before the slash of an optimizer's name.
    """
    return REFERENCES.get(name)
