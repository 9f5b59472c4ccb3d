"""Numbers with SI prefixes for people; records themselves keep plain SI units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.record import MetricInfo
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.record import Metric

UNKNOWN = "-"


def seconds(value: float | None) -> str:
    """Return a duration with three digits: ``41.2 ms``."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0 s"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value) >= factor:
            return f"{_three(value / factor)} {unit}"
    return f"{_three(value / 1e-9)} ns"


def size(value: float | None) -> str:
    """Return bytes with a binary prefix: ``8.1 MiB``."""
    if value is None:
        return UNKNOWN
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power:
            scaled = value / 1024**power
            return f"{scaled:.{0 if abs(scaled) >= 100 else 1}f} {unit}"
    return f"{value:.0f} B"


def bound(metric: Metric | None) -> str:
    """Return a metric's bytes, with a sign where they are a lower bound: ``>= 8.1 MiB``."""
    if metric is None:
        return UNKNOWN
    return f"{'>= ' if metric.at_least else ''}{size(metric.value)}"


def number(value: float | None, digits: int = 5) -> str:
    """Return a pure number with so many significant digits."""
    if value is None:
        return UNKNOWN
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}g}" if math.isfinite(value) else str(value)


def metric(of: MetricInfo, value: float | None, digits: int = 5) -> str:
    """Return a metric's value in its unit.

    Args:
        of: the metric.
        value: one of its numbers.
        digits: of a pure number.
    """
    if of.unit == "s" or (of.name.endswith("_s") and not of.name.endswith("_per_s")):
        return seconds(value)
    if of.unit in {"B", "By"} or of.name.endswith("_bytes"):
        return size(value)
    if of.name.endswith("_per_s"):
        return rate(value)
    text = number(value, digits)
    return text if of.unit == "1" or value is None else f"{text} {of.unit}"


def rate(value: float | None) -> str:
    """Return a rate with a decimal prefix: ``1.2 k``."""
    if value is None:
        return UNKNOWN
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{_three(value / factor)} {prefix}"
    return _three(value)


def _three(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def duration(value: float) -> str:
    """Return a waiting time in whole seconds or minutes."""
    return f"{value:.0f} s" if value < 180 else f"{value / 60:.0f} min"
