"""What is shown of a comparison: on a terminal, in a pull request, as JSON."""

from __future__ import annotations

import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from harness.comparison.analysis import analyse
from harness.comparison.model import Arm
from harness.reports.comparison import draw, render
from harness.reports.document import document
from harness.reports.markdown import code, escaped, markdown
from harness.reports.model import report
from harness.reports.printable import printable
from harness.reports.words import level_of, percent, times
from tests.unit.comparison_examples import (
    FOUR,
    NAMES,
    PLAIN,
    TROUBLED,
    analysis,
    comparison,
    design,
    estimate,
    launch,
    pair,
    spec,
)


def shown(found, width=80, encoding="utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    Console(width=width, file=file, color_system=None).print(render(*found))
    file.flush()
    return raw.getvalue().decode(encoding)


def one_line(found, **more) -> str:
    return " ".join(shown(found, **more).split())


def test_the_verdict_is_said_in_words_that_cannot_be_turned_round():
    text = one_line(PLAIN)
    assert "adamw/fused takes 0.923x the time of adamw/foreach (99 % interval 0.913 … 0.934): faster" in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
def test_no_line_is_wider_than_the_page(width):
    assert max(len(line) for line in shown(TROUBLED, width).splitlines()) <= width


def test_the_step_comes_first_then_its_phases_in_their_order_then_the_rest():
    lines = report(*PLAIN).sections[0].lines
    assert [line.metric for line in lines] == [
        "step_time_s", "forward_s", "backward_s", "optimizer_s", "cpu_time_s", "peak_memory_bytes",
    ]  # fmt: skip
    assert [line.is_part for line in lines] == [False, True, True, True, False, False]


def test_memory_is_less_or_more_rather_than_faster_or_slower():
    assert report(*PLAIN).sections[0].lines[-1].word == "less"


@pytest.mark.parametrize(("encoding", "interval"), [("ascii", "0.913 ... 0.934"), ("cp1252", "0.913 … 0.934")])
def test_an_output_without_the_marks_of_a_plot_is_drawn_in_ascii(encoding, interval):
    text = shown(PLAIN, encoding=encoding)
    assert interval in text
    assert "[#]" in text
    assert "?" not in text


@pytest.mark.parametrize(
    "words",
    [
        "smallest effect that this comparison could have seen: 1.2 %",
        "the optimizer is 1.91x faster, the step 1.08x",
        "the slower start of adamw/fused (compilation) has paid for itself after 1,234 steps",
        "stalls (steps over 5x the median): A 3, B 1; p99 step: A 121 ms, B 103 ms",
        "6 valid forked launches, decided at launch 6",
        "73 s of 120 s spent",
    ],
)
def test_a_comparison_tells_what_it_could_see_and_what_it_cost(words):
    assert words in one_line(PLAIN)


@pytest.mark.parametrize(
    "words",
    [
        "interrupted: stopped by the user",
        "self-check alarm: the same code against itself came out slower",
        "short launches in ABBA order",
        "adamw/compiled: no steady state in 1 of 3 launches",
        "3 stalls in adamw/compiled (1 of 3 launches)",
        "invalid: launches 0, 4: steal took 12 % of the cores",
        "inconclusive: too little evidence for a verdict",
    ],
)
def test_what_weakens_a_conclusion_is_said_in_every_format(words):
    assert words in one_line(TROUBLED)
    assert words in " ".join(text_of(markdown(*TROUBLED)).split())


def test_launches_that_are_not_resident_are_no_warning_where_they_were_invalid():
    quiet = comparison(launches=(launch(0, resident=False, invalid="load"), launch(1)))
    assert report(analysis(), quiet).warnings == ()


@pytest.mark.parametrize("alike", [True, False])
def test_addresses_that_the_system_draws_for_each_arm_are_a_warning(alike):
    facts = ({"addresses_alike": True}, {"addresses_alike": alike})
    warnings = report(analysis(), comparison(facts=facts)).warnings
    assert ["addresses" in each for each in warnings] == ([] if alike else [True])


def test_arms_that_differ_in_checkout_interpreter_or_environment_say_so():
    arms = (
        Arm(name="main", spec=spec("adamw/fused"), path="/src/main"),
        Arm(name="mine", spec=spec("adamw/fused", threads=2), python="/opt/python", env={"OMP_NUM_THREADS": "2"}),
    )
    found = report(analysis(pair(("main", "mine"))), comparison(arms=arms))
    assert found.arms == (
        ("main", "threads=None, code /src/main"),
        ("mine", "threads=2, OMP_NUM_THREADS=2, python /opt/python"),
    )


def test_a_forest_plot_alone_has_its_title_and_a_row_for_each_ratio():
    file = io.StringIO()
    Console(width=80, file=file, color_system=None).print(draw(report(*TROUBLED).forest))
    title, _, *rows, ticks = file.getvalue().splitlines()
    assert title.strip() == "whole step against adamw/foreach"
    assert [line.split()[0] for line in rows] == [*FOUR[1:3], "adamw/foreach", "(self-check)"]
    assert "0.95" in ticks


def test_the_marks_of_a_plot_are_where_its_axis_says():
    lines = shown(PLAIN).splitlines()
    at = next(line for line in lines if "optimizer" in line).index("●")
    ticks = next(line for line in lines if line.split()[:1] == ["0.6"])
    assert at < ticks.index("0.6")
    assert next(line for line in lines if "forward" in line).index("○") == pytest.approx(
        ticks.index("1", 50), abs=1
    )


def test_a_comparison_without_pairs_shows_why():
    failed = comparison(launches=(), outcome="failed", reason="adamw/fused: rank 1 died in step 3")
    found = analysis(pair())
    found = found.model_copy(update={"pairs": ()})
    assert "failed: adamw/fused: rank 1 died in step 3" in one_line((found, failed))
    assert "no verdict" in markdown(found, failed)
    assert document(found, failed)["comparisons"] == []


def test_without_an_interval_there_is_no_number_that_looks_like_one():
    few = pair(verdict="inconclusive", metrics={"step_time_s": estimate(None, None, None, "inconclusive", None)})
    assert "too few valid launches for a ratio" in one_line((analysis(few), comparison()))


def test_the_document_has_the_shape_that_was_promised():
    (entry,) = document(*PLAIN)["comparisons"]
    assert entry["arms"] == list(NAMES)
    assert entry["verdict"] == "faster"
    assert {
        "ratio": 0.923,
        "low": 0.913,
        "high": 0.934,
        "verdict": "faster",
        "smallest_effect": 0.012,
    }.items() <= (entry["metrics"]["step_time_s"].items())
    assert (entry["launches"], entry["spent_s"]) == (6, 73.2)
    assert entry["metrics"]["data_s"]["ratio"] is None


def test_the_document_has_an_entry_for_every_arm_against_the_first():
    entries = document(*TROUBLED)["comparisons"]
    assert [entry["arms"] for entry in entries] == [[FOUR[0], other] for other in FOUR[1:]]
    assert [entry["self_check"] for entry in entries] == [False, False, True]


@settings(deadline=None)
@given(st.floats(), st.floats(), st.floats())
def test_the_document_is_strict_json_whatever_the_numbers(ratio, low, high):
    found = pair(
        metrics={"step_time_s": estimate(ratio, low, high, "inconclusive", high, launches=(low, math.nan))}
    )
    text = json.dumps(document(analysis(found), comparison()), allow_nan=False)
    assert json.loads(text)["comparisons"][0]["metrics"]["step_time_s"]["launches"][1] is None


@settings(deadline=None)
@given(st.floats(), st.floats(), st.floats())
def test_any_numbers_of_a_stored_comparison_can_be_shown(ratio, low, high):
    found = pair(metrics={"step_time_s": estimate(ratio, low, high, "inconclusive", high, p99_s=(low, high))})
    assert max(len(line) for line in shown((analysis(found), comparison())).splitlines()) <= 80
    assert markdown(analysis(found), comparison())


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.5234, "0.523x"), (12.34, "12.3x"), (4321.0, "4321x"), (1e-9, "1.0e-09x"), (None, "?")]
)
def test_a_ratio_has_three_digits_and_a_mark(ratio, text):
    assert times(ratio) == text


PARSER = MarkdownIt("commonmark").enable("table")


COMMENT = "html_inline <!-- -->"


def structure(text: str) -> list[str]:
    """Return every piece of markup that a parser finds, without its text."""
    found = []
    for token in PARSER.parse(text):
        found.append(token.type)
        markup = [each for each in token.children or () if not each.type.startswith("text")]
        found += [f"{each.type} {each.content}" if each.type == "html_inline" else each.type for each in markup]
    return [each for each in found if each != COMMENT]


def text_of(text: str) -> str:
    return "".join(
        each.content
        for token in PARSER.parse(text)
        for each in token.children or ()
        if each.type.startswith("text")
    )


def test_significant_rows_stand_above_the_fold_and_the_others_below():
    text = markdown(*PLAIN)
    before, _, after = text.partition("<details><summary>2 metrics without")
    assert "optimizer | 0.523x" in before
    assert "forward | 1.001x" in after
    assert text.startswith("### optbench: 🟢 faster\n")


def test_what_differs_beside_a_step_that_does_not_is_folded_away_but_for_memory():
    """Seven intervals share no correction."""
    alone = {**PLAIN[0].pairs[0].metrics, "step_time_s": estimate(1.0, 0.99, 1.01, "equivalent")}
    text = markdown(analysis(pair(verdict="equivalent", metrics=alone)), comparison())
    before, _, after = text.partition(
        "<details><summary>5 metrics, 2 of which differ; the step shows no significant"
    )
    assert "peak memory | 0.810x" in before
    assert "optimizer | 0.523x" in after


def test_what_was_said_of_launches_is_in_the_json_too():
    note = "a and b train differently: their losses part in step 2"
    found = comparison(launches=tuple(launch(number, notes=(note,)) for number in range(4)))
    assert document(analysis(), found)["notes"] == [f"{note} (4 of 4 launches)"]


@settings(deadline=None)
@given(st.text())
def test_a_name_renders_as_itself_and_is_never_markup(name):
    assert structure(f"- {escaped(name)}x") == structure("- plain")
    seen = " ".join(printable(name).split())
    assert text_of(f"x{code(name)}x") == f"x{seen or '(no name)'}x"


TRICKY = st.text(st.sampled_from("|`<>&*_[]()!#@~\\\"'$:{}=+-1. \nwabc/é\u202e"), max_size=30)


@settings(deadline=None)
@given(TRICKY, TRICKY)
def test_no_name_or_reason_breaks_the_markdown(name, reason):
    plain = pair(("harmless", "name"), amdahl="words")
    tricky = pair((name, name + "b"), amdahl=reason if reason.strip() else "words")
    one = markdown(analysis(plain), comparison(launches=(launch(0, invalid="words"),)))
    other = markdown(analysis(tricky), comparison(launches=(launch(0, invalid=reason),)))
    assert structure(other) == structure(one)


def test_a_name_mentions_nobody():
    assert "@" not in code("@octocat fixes #12")
    assert escaped("@octocat").startswith("&#64;<!-- -->")


@settings(deadline=None)
@given(TRICKY)
def test_no_name_breaks_the_terminal(name):
    text = shown((analysis(pair((name, name + "b"))), comparison((name, name + "b"))), encoding="ascii")
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text


def test_what_ended_before_its_plan_tells_of_no_looks():
    made = comparison(launches=(), design=design(looks=(), rounds=0), outcome="failed", reason="never right")
    text = one_line((analyse(made), made))
    assert "0 valid launches; " in text
    assert "looks" not in text


def test_a_speed_that_no_proof_stands_behind_says_so_with_the_reason():
    proofs = [{"outcome": "passed"}, {"outcome": "failed", "reason": "no answer in 60 s"}]
    found = PLAIN[1].model_copy(update={"facts": tuple({"verification": proof} for proof in proofs)})
    assert "not proved right: adamw/fused: no answer in 60 s" in one_line((PLAIN[0], found))
    assert "not proved right: adamw/fused: no answer in 60 s" in markdown(PLAIN[0], found)
    proved = PLAIN[1].model_copy(update={"facts": ({"verification": proofs[0]},) * 2})
    assert "not proved" not in one_line((PLAIN[0], proved)) + one_line(PLAIN)


@pytest.mark.parametrize(("share", "words"), [(0.012, "1.2 %"), (0.994, "99 %"), (1.04, "104 %"), (None, "?")])
def test_a_share_is_told_without_powers_of_ten(share, words):
    assert percent(share) == words


@pytest.mark.parametrize(
    ("arms", "level"), [(2, "99 %"), (3, "99.5 %"), (4, "99.7 %"), (5, "99.8 %"), (51, "99.98 %")]
)
def test_an_intervals_level_is_rounded_and_never_certainty(arms, level):
    assert f"{level_of(0.01 / (arms - 1)):g} %" == level


def test_a_comparison_without_an_interval_says_why_and_what_would_give_one():
    why = "an interval takes 3 valid launches, and there were 2: a budget of 143 s is enough"
    made = comparison(launches=(launch(0), launch(1)), last_look=2, reason=why)
    found = analyse(made)
    for text in (one_line((found, made), width=200), markdown(found, made)):
        assert "a budget of 143 s is enough" in text
    assert document(found, made)["notes"] == [why]
