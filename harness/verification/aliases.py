"""Hyperparameters that an optimizer calls otherwise: ``wd`` for ``weight_decay``, found by what fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.rates import number
from harness.verification.comparing import compare, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from harness.verification.comparing import Held
    from harness.verification.playing import Trace


def alias(trace: Trace, known: Mapping[str, Any], held: Callable[[Mapping[str, Any]], Held]) -> dict[str, str]:
    """Return the hyperparameter that the instance does not name, and the setting of its own that stands for it.

    Empty: what was seen is right as it is, or no single setting explains it.

    Args:
        trace: what was seen.
        known: the algorithm's hyperparameters with their defaults.
        held: the reference, given hyperparameters that differ from what it takes by itself.
    """
    pairs = list(_pairs(trace, known))
    if not pairs or _fits(held({}), trace):
        return {}
    found = ((name, own) for name, own in pairs if _fits(held({name: trace.defaults[own]}), trace))
    return dict([pair] if (pair := next(found, None)) else [])


def _pairs(trace: Trace, known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each absent number beside each number under a name that the algorithm does not know."""
    unknown = [name for name, value in trace.defaults.items() if name not in {*known, "lr"} and _is_number(value)]
    for name, value in known.items():
        if name not in trace.defaults and _is_number(value):
            yield from ((name, own) for own in unknown)


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and number(value) is not None


def _fits(held: Held, trace: Trace) -> bool:
    found = worst(compare(held, trace, stop_at=1.0))
    return found is None or found.ratio <= 1
