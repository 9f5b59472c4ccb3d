"""Finds the one hyperparameter that differs from what was asked for, and the value that was used instead."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.verification.comparing import Twist, compare, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.verification.comparing import Held
    from harness.verification.playing import Trace

STEPS = 12
"""Steps of the trace that a search looks at; its finding is judged by all of them."""

_NOT_FITTED = frozenset({"lr", "adamw_lr", "ns_steps", "norm_type"})


@dataclass(frozen=True)
class _Knob:
    """One number to turn: ``unit`` is turned on a logarithmic scale from it, ``set`` gives the switches."""

    name: str
    value: float
    switched: Callable[[float], dict[str, Any]]
    complement: bool = False

    def at(self, turn: float) -> float:
        """Return the number after a turn of its logarithm; of 1 - number for one that is nearly 1."""
        if self.complement:
            return 1 - (1 - self.value) * math.exp(turn)
        return self.value * math.exp(turn)


def fitted(held: Held, trace: Trace, good: float, until: float) -> str | None:
    """Return which hyperparameter must differ, and by how much, to explain a trace; None: no single one.

    Args:
        held: the reference and its hyperparameters.
        trace: what was seen.
        good: the error in multiples of its bound that counts as an explanation.
        until: of the monotonic clock; past it the search ends.
    """
    best: tuple[float, str | None] = (max(1.0, good), None)
    for knob in _knobs(held):
        if time.monotonic() > until:
            break
        value = knob.at(_search(held, trace, knob))
        error = _error(held, trace, knob, value, len(trace.steps))
        if error < best[0]:
            best = (error, f"{knob.name} is {_told(value, knob.value)}")
    return best[1]


def _told(value: float, right: float) -> str:
    """Return both numbers with as many digits as it takes to tell them apart, four at least."""
    digits = next((n for n in range(4, 17) if f"{value:.{n}g}" != f"{right:.{n}g}"), 17)
    return f"{value:.{digits}g}, not {right:.{digits}g}"


def _knobs(held: Held) -> Iterator[_Knob]:
    yield _Knob("every update's factor", 1.0, lambda value: {"__scale__": value})
    for name, value in held.options.items():
        if name in _NOT_FITTED or name.startswith("adamw_"):
            continue
        if _number(value) and value != 0:
            yield _Knob(name, value, lambda new, name=name: {name: new}, 0.5 < value < 1)  # type: ignore[misc]
        if isinstance(value, tuple) and all(_number(each) for each in value):
            for place, each in enumerate(value):
                if each != 0:
                    label = f"beta{place + 1}" if name == "betas" else f"{name}[{place}]"
                    yield _Knob(label, each, _replacing(name, value, place), 0.5 < each < 1)


def _number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _replacing(name: str, values: tuple[float, ...], place: int) -> Callable[[float], dict[str, Any]]:
    return lambda new: {name: (*values[:place], new, *values[place + 1 :])}


def _search(held: Held, trace: Trace, knob: _Knob) -> float:
    """Return the turn of least error: a coarse look over six powers of e, then golden sections."""
    turns = [number / 4 for number in range(-12, 13) if number] + [0.01, -0.01, 0.05, -0.05]
    limit = 1.0 if not knob.complement else math.log(1 / (1 - knob.value))
    turns = [turn for turn in turns if not knob.complement or turn < limit]
    errors = {turn: _error(held, trace, knob, knob.at(turn), STEPS) for turn in turns}
    start = min(errors, key=lambda turn: errors[turn])
    width = 0.25 if abs(start) >= 0.25 else 0.2
    low, high = start - width, start + width
    golden = (math.sqrt(5) - 1) / 2

    def error(turn: float) -> float:
        return _error(held, trace, knob, knob.at(turn), STEPS)

    left, right = high - golden * (high - low), low + golden * (high - low)
    of_left, of_right = error(left), error(right)
    for _ in range(34):
        if of_left < of_right:
            high, right, of_right = right, left, of_left
            left = high - golden * (high - low)
            of_left = error(left)
        else:
            low, left, of_left = left, right, of_right
            right = low + golden * (high - low)
            of_right = error(right)
    return (low + high) / 2


def _error(held: Held, trace: Trace, knob: _Knob, value: float, steps: int) -> float:
    from dataclasses import replace

    switches = knob.switched(value)
    scale = switches.pop("__scale__", 1.0)
    cut = replace(trace, steps=trace.steps[:steps])
    try:
        found = worst(compare(held, cut, Twist(knob.name, switches=switches, scale=scale)))
    except (ValueError, ZeroDivisionError, OverflowError):  # a value that the algorithm has no meaning for
        return math.inf
    return math.inf if found is None or math.isnan(found.ratio) else found.ratio
