"""The forest plot: its axis, how a terminal draws it, and its SVG with names from anyone."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reports.forest import ASCII, UNICODE, Axis, Forest, axis, labels, row, shaded, strip
from harness.reports.printable import encodable, printable
from harness.reports.svg import NAMESPACE, svg

anything = st.one_of(st.none(), st.floats(), st.floats(0.001, 1000))
rows = st.builds(
    lambda label, ratio, low, high, clear: row(label, ratio, low, high, "faster", significant=clear),
    st.text(),
    anything,
    anything,
    anything,
    st.booleans(),
)


def a_row(ratio, low, high, *, significant=True):
    return row("x", ratio, low, high, "faster", significant=significant)


def test_equal_factors_are_equally_far_on_the_axis():
    scale = Axis(0.5, 2.0)
    assert [scale.position(each) for each in (0.5, 1.0, 2.0)] == pytest.approx([0, 0.5, 1])


def test_ticks_are_round_and_hold_one():
    assert Axis(0.97, 1.04).ticks(8) == (0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03, 1.04)
    assert Axis(0.48, 1.06).ticks(7) == (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert Axis(0.1, 100.0).ticks(5) == (0.1, 1.0, 10.0, 100.0)


def test_the_margin_is_as_wide_for_a_slowdown_as_for_the_same_speed_up():
    low, high = shaded(0.025)
    assert low * high == pytest.approx(1)
    assert high == 1.025


def test_an_interval_is_drawn_from_end_to_end_with_its_point_and_the_bar_at_one():
    drawn, plain = (strip(a_row(0.8, 0.7, 0.9), Axis(0.5, 2.0), 0.0, 41, marks) for marks in (UNICODE, ASCII))
    assert drawn.index("├") < drawn.index("●") < drawn.index("┤") < drawn.index("│") == 20
    assert plain == drawn.translate(str.maketrans("├─●┤│", "[-#]|"))


def test_what_lies_beyond_the_axis_is_an_arrow():
    found = a_row(1e9, 1e8, 1e10)
    assert strip(found, axis([found], 0.0), 0.0, 20, UNICODE)[-1] == "►"
    found = a_row(1e-9, 1e-10, 1e-8)
    assert strip(found, axis([found], 0.0), 0.0, 20, ASCII)[0] == "<"


def test_an_insignificant_ratio_has_another_mark_than_a_significant_one():
    one, other = (
        strip(a_row(1.0, 1.0, 1.0, significant=s), Axis(0.9, 1.1), 0.01, 21, UNICODE) for s in (True, False)
    )
    assert "●" in one
    assert "○" in other


def test_numbers_that_are_no_ratios_are_unknown():
    assert a_row(math.nan, -1.0, 2.0) == a_row(None, None, None)
    assert a_row(1.0, 2.0, 0.5).low is None


@settings(deadline=None)
@given(st.lists(rows, max_size=4), st.one_of(st.floats(0, 1), st.floats()), st.integers(1, 60))
def test_any_rows_can_be_drawn_in_any_width(found, margin, width):
    scale = axis(found, margin)
    assert 0 < scale.low < 1 < scale.high
    for marks in (UNICODE, ASCII):
        assert all(len(strip(each, scale, margin, width, marks)) == width for each in found)
    assert len(labels(scale, width)) == width


@settings(deadline=None)
@given(st.lists(rows, max_size=3), st.text(), st.floats(0, 1))
def test_an_svg_holds_any_name_as_text_and_nothing_else_of_it(found, title, margin):
    root = ET.fromstring(svg(Forest(printable(title), tuple(found), margin)))
    known = {"svg", "title", "desc", "style", "rect", "line", "text", "circle", "polygon"}
    assert {each.tag for each in root.iter()} <= {f"{{{NAMESPACE}}}{name}" for name in known}
    assert root.find(f"{{{NAMESPACE}}}title").text == (printable(title) or None)


def test_an_svg_tells_its_rows_in_words_to_who_cannot_see_it():
    plot = Forest("fused against foreach", (row("step", 0.5, 0.4, 0.6, "faster", significant=True),), 0.025)
    root = ET.fromstring(svg(plot))
    described = root.find(f"{{{NAMESPACE}}}desc").text
    assert root.get("role") == "img"
    assert "step: 0.500x, interval 0.400 … 0.600, faster." in described
    title, desc = root.get("aria-labelledby").split()
    assert root.find(f"{{{NAMESPACE}}}title").get("id") == title
    assert root.find(f"{{{NAMESPACE}}}desc").get("id") == desc


def test_two_plots_of_one_page_have_different_ids():
    one, other = (ET.fromstring(svg(Forest(title, (), 0.0))).get("aria-labelledby") for title in "ab")
    assert one != other


@settings(deadline=None)
@given(st.text())
def test_a_printable_name_is_one_line_without_control_characters(name):
    assert printable(name).isprintable()


def test_an_escape_sequence_of_a_name_reaches_no_terminal():
    assert printable("a\x1b[31mb\u202ec") == "a\\u001b[31mb\\u202ec"


@settings(deadline=None)
@given(st.text(), st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8"]))
def test_what_is_encodable_can_be_written(text, encoding):
    encodable(printable(text), encoding).encode(encoding)
