"""A forest plot of ratios: its one model, its logarithmic axis, and how a terminal draws it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.reports.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

FARTHEST = 100.0
"""The axis ends here however far a ratio is: what lies beyond is drawn as an arrow."""

STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Distances of ticks where the axis spans less than a factor of three: there it is nearly linear."""

WIDE = ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
"""Ticks in each power of ten where it spans more."""


@dataclass(frozen=True)
class Row:
    """One ratio with its interval.

    Attributes:
        label: what the ratio is of.
        ratio: B/A, positive; None: unknown.
        low: of the interval; None: unknown.
        high: likewise.
        word: the verdict, for people.
        significant: whether the interval keeps off the margin.
    """

    label: str
    ratio: float | None
    low: float | None
    high: float | None
    word: str
    significant: bool


@dataclass(frozen=True)
class Forest:
    """Ratios on one axis.

    Attributes:
        title: one line.
        rows: in the order shown.
        margin: relative difference that does not matter; shaded from 1/(1 + margin) to 1 + margin.
        level: of the intervals, in percent.
        left: what a ratio below 1 means.
        right: what one above 1 means.
    """

    title: str
    rows: tuple[Row, ...]
    margin: float
    level: float = 99.0
    left: str = "faster"
    right: str = "slower"


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis of ratios, with 1 on it."""

    low: float
    high: float

    def position(self, ratio: float) -> float:
        """Return where a ratio lies, 0 at the axis' beginning and 1 at its end; outside: less or more."""
        return (math.log(ratio) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))

    def ticks(self, most: int) -> tuple[float, ...]:
        """Return at most so many round ratios on the axis, rising; 1 is always one of them."""
        for found in (self._near(most), self._far(most)):
            if found is not None:
                return found
        return (1.0,)

    def _near(self, most: int) -> tuple[float, ...] | None:
        for step in STEPS if self.high / self.low < 3 else ():
            first, last = math.ceil((self.low - 1) / step - 1e-9), math.floor((self.high - 1) / step + 1e-9)
            if last - first < most:
                return tuple(round(1 + step * number, 4) for number in range(first, last + 1))
        return None

    def _far(self, most: int) -> tuple[float, ...] | None:
        for digits in WIDE:
            every = (digit * 10.0**power for power in range(-3, 3) for digit in digits)
            found = tuple(round(each, 6) for each in every if self.low * 0.999 <= each <= self.high * 1.001)
            if len(found) <= most:
                return found
        return None


def positive(value: float | None) -> float | None:
    """Return a ratio that can be drawn; None for what is no positive finite number."""
    return value if value is not None and math.isfinite(value) and value > 0 else None


def row(
    label: str, ratio: float | None, low: float | None, high: float | None, word: str, *, significant: bool
) -> Row:
    """Return a row of stored numbers, whatever they are."""
    ends = (positive(low), positive(high))
    if None in ends or ends[0] > ends[1]:  # type: ignore[operator]  # None is told before
        ends = (None, None)
    return Row(printable(label), positive(ratio), *ends, word, significant)


def shaded(margin: float) -> tuple[float, float]:
    """Return the ratios between which a difference does not matter."""
    wide = 1 + (margin if math.isfinite(margin) and margin > 0 else 0.0)
    return 1 / wide, wide


def axis(rows: Sequence[Row], margin: float) -> Axis:
    """Return the axis that shows every row, the margin and 1, with a little room on both sides."""
    known = [each for row in rows for each in (row.ratio, row.low, row.high) if each is not None]
    least, most = (min(known, default=1.0), max(known, default=1.0))
    low, high = min(least, shaded(margin)[0], 0.99), max(most, shaded(margin)[1], 1.01)
    room = (high / low) ** 0.04 if high / low < FARTHEST**4 else FARTHEST
    return Axis(max(low / room, 1 / FARTHEST), min(high * room, FARTHEST))


@dataclass(frozen=True)
class Marks:
    """The characters of a plot in a terminal."""

    line: str
    ends: tuple[str, str]
    point: str
    quiet_point: str
    one: str
    shade: str
    beyond: tuple[str, str]


UNICODE = Marks("─", ("├", "┤"), "●", "○", "│", "░", ("◄", "►"))
ASCII = Marks("-", ("[", "]"), "#", "o", "|", ":", ("<", ">"))


def strip(row: Row, scale: Axis, margin: float, width: int, marks: Marks) -> str:
    """Return a row's interval as so many characters: the margin shaded, a bar at 1, the point over both."""
    cells = [" "] * width
    first, last = (_cell(scale, each, width) for each in shaded(margin))
    for index in range(first, last + 1) if last > first else ():
        cells[index] = marks.shade
    cells[_cell(scale, 1.0, width)] = marks.one
    if row.low is not None and row.high is not None:
        first, last = _cell(scale, row.low, width), _cell(scale, row.high, width)
        for index in range(first, last + 1):
            cells[index] = marks.line
        if last - first >= 2:
            cells[first], cells[last] = marks.ends
        _mark_beyond(cells, scale, row.low, marks)
        _mark_beyond(cells, scale, row.high, marks)
    if row.ratio is not None:
        cells[_cell(scale, row.ratio, width)] = marks.point if row.significant else marks.quiet_point
        _mark_beyond(cells, scale, row.ratio, marks)
    return "".join(cells)


def _mark_beyond(cells: list[str], scale: Axis, ratio: float, marks: Marks) -> None:
    if ratio < scale.low:
        cells[0] = marks.beyond[0]
    elif ratio > scale.high:
        cells[-1] = marks.beyond[1]


def labels(scale: Axis, width: int) -> str:
    """Return the axis' ticks as one line: each label centred below its place, none touching another."""
    for most in range(max(1, width // 5), 0, -1):
        line = [" "] * width
        if all(_write(line, _cell(scale, tick, width), f"{tick:g}") for tick in scale.ticks(most)):
            return "".join(line)
    line = [" "] * width
    _write(line, _cell(scale, 1.0, width), "1")
    return "".join(line)


def _write(line: list[str], centre: int, text: str) -> bool:
    """Write a label where it fits; say whether it did."""
    start = min(max(0, centre - len(text) // 2), len(line) - len(text))
    around = line[max(0, start - 1) : start + len(text) + 1]
    if start < 0 or any(each != " " for each in around):
        return False
    line[start : start + len(text)] = text
    return True


def _cell(scale: Axis, ratio: float, width: int) -> int:
    return min(width - 1, max(0, round(scale.position(ratio) * (width - 1))))
