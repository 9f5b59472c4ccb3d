"""A forest plot as SVG: readable in light and dark, told in words to who cannot see it, safe with any name."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from rich.cells import cell_len, set_cell_size

from harness.reports import forest as plots
from harness.reports.words import interval_of, percent, times

if TYPE_CHECKING:
    from harness.reports.forest import Axis, Forest, Row

NAMESPACE = "http://www.w3.org/2000/svg"

STYLE = """
.paper{fill:#fff}.text{fill:#1f2328}.quiet{fill:#59636e}.grid{stroke:#d1d9e0}.one{stroke:#59636e}
.margin{fill:#afb8c1;fill-opacity:.35}.less{fill:#1a7f37;stroke:#1a7f37}.more{fill:#cf222e;stroke:#cf222e}
.open{fill:#fff;stroke:#59636e}.openline{stroke:#59636e}
@media (prefers-color-scheme:dark){.paper{fill:#0d1117}.text{fill:#e6edf3}.quiet{fill:#9198a1}
.grid{stroke:#3d444d}.one{stroke:#9198a1}.margin{fill:#656c76;fill-opacity:.4}
.less{fill:#3fb950;stroke:#3fb950}.more{fill:#f85149;stroke:#f85149}.open{fill:#0d1117;stroke:#9198a1}
.openline{stroke:#9198a1}}
"""

ROW, TOP, BOTTOM, PAD = 26, 62, 46, 16
LABEL, PLOT, NUMBERS = 220, 320, 310
COLUMNS = (LABEL + PLOT + 2 * PAD, LABEL + PLOT + 2 * PAD + 74, LABEL + PLOT + 2 * PAD + 214)
"""Where ratio, interval and verdict begin."""

LONGEST_LABEL, LONGEST_TITLE = 28, 96
"""In widths of a Latin character, of which a Chinese one takes two."""


def svg(forest: Forest) -> str:
    """Return the plot as one SVG document."""
    height = TOP + ROW * len(forest.rows) + BOTTOM
    width = LABEL + PLOT + NUMBERS + 2 * PAD
    mark = f"{zlib.crc32(repr(forest).encode('utf-8', 'replace')):08x}"  # several plots may share one page
    root = ET.Element(
        "svg",
        {
            "xmlns": NAMESPACE,
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "role": "img",
            "aria-labelledby": f"title-{mark} desc-{mark}",
            "font-family": "system-ui, sans-serif",
            "font-size": "13",
        },
    )
    ET.SubElement(root, "title", {"id": f"title-{mark}"}).text = forest.title
    ET.SubElement(root, "desc", {"id": f"desc-{mark}"}).text = _described(forest)
    ET.SubElement(root, "style").text = STYLE
    ET.SubElement(root, "rect", {"class": "paper", "width": "100%", "height": "100%"})
    _text(root, PAD, 24, _cut(forest.title, LONGEST_TITLE), size="15", weight="600")
    _frame(root, forest, height)
    for index, row in enumerate(forest.rows):
        _row(root, plots.axis(forest.rows, forest.margin), row, TOP + ROW * index + ROW / 2)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _described(forest: Forest) -> str:
    """Tell every row in words."""
    rows = [
        f"{row.label.strip()}: {times(row.ratio)}, interval {interval_of(row.low, row.high)}, {row.word}."
        for row in forest.rows
    ]
    return " ".join(
        [f"Ratios on a logarithmic axis, margin {percent(forest.margin)}, {forest.level:g} % intervals.", *rows]
    )


def _frame(root: ET.Element, forest: Forest, height: int) -> None:
    """Draw the shaded margin, the ticks, the bar at 1 and what the two directions mean."""
    scale, bottom = plots.axis(forest.rows, forest.margin), height - BOTTOM
    left, right = (_x(scale, each) for each in plots.shaded(forest.margin))
    shape = {"x": _n(left), "y": _n(TOP), "width": _n(right - left), "height": _n(bottom - TOP)}
    ET.SubElement(root, "rect", {"class": "margin", **shape})
    for tick in scale.ticks(7):
        x = _x(scale, tick)
        _line(root, x, TOP, x, bottom + 4, "one" if tick == 1 else "grid", 1)
        _text(root, x, bottom + 20, f"{tick:g}", anchor="middle", kind="quiet")
    start, end = LABEL + PAD, LABEL + PLOT + PAD
    _text(root, start, TOP - 8, f"← {forest.left}", kind="quiet")
    _text(root, end, TOP - 8, f"{forest.right} →", anchor="end", kind="quiet")
    for at, head in zip(COLUMNS, ("B/A", f"{forest.level:g} % interval", "verdict"), strict=True):
        _text(root, at, TOP - 8, head, kind="quiet")
    words = f"B/A, logarithmic; shaded: margin {percent(forest.margin)}"
    _text(root, (start + end) / 2, bottom + 38, words, anchor="middle", kind="quiet")


def _row(root: ET.Element, scale: Axis, row: Row, y: float) -> None:
    indent = 12 if row.label.startswith("  ") else 0
    _text(root, PAD + indent, y + 4, _cut(row.label.strip(), LONGEST_LABEL))
    kind = "open" if not row.significant else "less" if (row.ratio or 1) < 1 else "more"
    if row.low is not None and row.high is not None:
        ends = _x(scale, row.low), _x(scale, row.high)
        stroke = "openline" if kind == "open" else kind
        _line(root, ends[0], y, ends[1], y, stroke, 2)
        for end in ends:
            _line(root, end, y - 4, end, y + 4, stroke, 2)
    if row.ratio is not None:
        _point(root, scale, row.ratio, y, kind)
    told = (times(row.ratio), interval_of(row.low, row.high), row.word)
    for at, words in zip(COLUMNS, told, strict=True):
        _text(root, at, y + 4, words)


def _cut(text: str, widest: int) -> str:
    return text if cell_len(text) <= widest else f"{set_cell_size(text, widest - 1).rstrip()}…"


def _point(root: ET.Element, scale: Axis, ratio: float, y: float, kind: str) -> None:
    """Draw a ratio; one beyond the axis as an arrow at its end."""
    x = _x(scale, ratio)
    if not scale.low <= ratio <= scale.high:
        tip = 8 if ratio > scale.high else -8
        arrow = f"{_n(x)},{_n(y - 6)} {_n(x + tip)},{_n(y)} {_n(x)},{_n(y + 6)}"
        ET.SubElement(root, "polygon", {"class": kind, "points": arrow, "stroke-width": "2"})
        return
    # Filled square or open circle: the difference does not hang on colour.
    if kind != "open":
        square = {"x": _n(x - 5), "y": _n(y - 5), "width": "10", "height": "10"}
        ET.SubElement(root, "rect", {"class": kind, **square})
    else:
        circle = {"cx": _n(x), "cy": _n(y), "r": "5", "stroke-width": "2"}
        ET.SubElement(root, "circle", {"class": kind, **circle})


def _x(scale: Axis, ratio: float) -> float:
    return LABEL + PAD + PLOT * min(1.0, max(0.0, scale.position(ratio)))


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _line(root: ET.Element, x1: float, y1: float, x2: float, y2: float, kind: str, width: int) -> None:
    ends = {"x1": _n(x1), "y1": _n(y1), "x2": _n(x2), "y2": _n(y2)}
    ET.SubElement(root, "line", {"class": kind, **ends, "stroke-width": str(width)})


def _text(
    root: ET.Element,
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    kind: str = "text",
    size: str | None = None,
    weight: str | None = None,
) -> None:
    more = {"font-size": size, "font-weight": weight, "text-anchor": None if anchor == "start" else anchor}
    words = {name: value for name, value in more.items() if value is not None}
    ET.SubElement(root, "text", {"class": kind, "x": _n(x), "y": _n(y), **words}).text = text
