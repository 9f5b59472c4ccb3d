"""Every reference, by algorithm; what has none, and why."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from harness.references import accumulating, adafactor, adam, adaptive, layerwise, sgd, signs

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
)

REFERENCES: Mapping[str, Reference] = MappingProxyType({each.algorithm: each for each in _TABLE})
"""Every reference, by algorithm."""

WITHOUT: Mapping[str, str] = MappingProxyType({})
"""Algorithm -> why there can be no reference."""


def reference(name: str) -> Reference | None:
    """Return an algorithm's reference; None: it has none.

    Args:
        name: algorithm, as before the slash of an optimizer's name.
    """
    return REFERENCES.get(name)
