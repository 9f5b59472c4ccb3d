"""The one model of a comparison's report: what every format shows, in words and numbers, before it is laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.comparison.model import STEP_TIME
from harness.reports import beside
from harness.reports.forest import Forest, Row
from harness.reports.forest import row as forest_row
from harness.reports.printable import printable
from harness.reports.words import (
    MEMORY_WORDS,
    ending,
    is_time,
    label,
    level_of,
    order,
    phase,
    sentence,
    shown_name,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.comparison.model import Analysis, Comparison, Estimate, Pair, Verdict


@dataclass(frozen=True)
class Line:
    """One metric of one pair.

    Attributes:
        metric: its name in ``--json``.
        label: for people.
        is_part: whether it is a phase of the step.
        estimate: of B/A.
        word: the verdict in the metric's own words.
        significant: whether there is a difference beyond doubt.
    """

    metric: str
    label: str
    is_part: bool
    estimate: Estimate
    word: str
    significant: bool


@dataclass(frozen=True)
class Section:
    """One arm against the first.

    Attributes:
        arms: names of A and B, printable.
        verdict: of the whole step.
        sentence: the verdict with its numbers, for people.
        ending: of the sentence: what the verdict means.
        step: the whole step's ratio; None: not known.
        lines: whole step, phases, CPU time, memory, then the rest.
        told: Amdahl, payback, medians, stalls.
        warnings: what forbids or weakens the conclusion.
        is_self_check: whether both arms are the same code.
        forest: the lines, to be drawn.
    """

    arms: tuple[str, str]
    verdict: Verdict
    sentence: str
    ending: str
    step: Estimate | None
    lines: tuple[Line, ...]
    told: tuple[str, ...]
    warnings: tuple[str, ...]
    is_self_check: bool
    forest: Forest


@dataclass(frozen=True)
class Report:
    """A whole comparison.

    Attributes:
        heading: workload, strategy, precision: what all arms share.
        arms: name of each arm, and what sets it apart.
        sections: a pair each; none where there was no launch.
        forest: of the whole step, a row an arm; None: two arms say all in their own.
        measured: launches, why some are invalid, time spent.
        warnings: of the comparison as a whole.
        failed: why it did not end as planned, in lines; None: it did.
        margin: relative difference that does not matter.
        level: of the intervals, in percent.
    """

    heading: str
    arms: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    forest: Forest | None
    measured: tuple[str, ...]
    warnings: tuple[str, ...]
    failed: str | None
    margin: float
    level: float


def report(analysis: Analysis, comparison: Comparison) -> Report:
    """Return the model of what is shown of a comparison."""
    design = comparison.design
    level = level_of(design.alpha)
    pairs = analysis.pairs if comparison.launches else ()
    sections = tuple(_section(pair, comparison, level) for pair in pairs)
    failed = None
    if comparison.outcome != "completed":
        lines = (comparison.reason or "no reason recorded").splitlines()
        failed = f"{comparison.outcome}: " + "\n".join(printable(each) for each in lines)
    return Report(
        heading=beside.heading(comparison),
        arms=tuple(
            (shown_name(arm.name), what)
            for arm, what in zip(comparison.arms, beside.apart(comparison), strict=True)
        ),
        sections=sections,
        forest=_overview(pairs, design.margin, level) if len(sections) > 1 else None,
        measured=beside.measured(analysis, comparison),
        warnings=(
            *beside.common_warnings(comparison),
            *(printable(note) for note in analysis.notes if failed is None or note != comparison.reason),
        ),
        failed=failed,
        margin=design.margin,
        level=level,
    )


def _line(metric: str, estimate: Estimate) -> Line:
    verdict = estimate.verdict
    word = verdict if is_time(metric) else MEMORY_WORDS.get(verdict, verdict)
    significant = verdict in {"faster", "slower"}
    return Line(metric, label(metric), phase(metric) is not None, estimate, word, significant)


def _section(pair: Pair, comparison: Comparison, level: float) -> Section:
    known = [name for name, found in pair.metrics.items() if found.ratio is not None or name == STEP_TIME]
    lines = tuple(_line(name, pair.metrics[name]) for name in sorted(known, key=order))
    first, second = shown_name(pair.arms[0]), shown_name(pair.arms[1])
    return Section(
        arms=(first, second),
        verdict=pair.verdict,
        sentence=sentence(pair, comparison.design.margin, level),
        ending=ending(pair.verdict, comparison.design.margin),
        step=pair.metrics.get(STEP_TIME),
        lines=lines,
        told=beside.told(pair, comparison),
        warnings=beside.pair_warnings(pair),
        is_self_check=pair.is_self_check,
        forest=Forest(
            title=f"{second} against {first}: time and memory, as ratios",
            rows=tuple(_row(("  " if line.is_part else "") + line.label, line) for line in lines),
            margin=comparison.design.margin,
            level=level,
            left="less",
            right="more",
        ),
    )


def _row(name: str, line: Line) -> Row:
    found = line.estimate
    return forest_row(name, found.ratio, found.low, found.high, line.word, significant=line.significant)


def _overview(pairs: Sequence[Pair], margin: float, level: float) -> Forest | None:
    rows = []
    for pair in pairs:
        found = pair.metrics.get(STEP_TIME)
        if found is not None:
            name = shown_name(pair.arms[1]) + (" (self-check)" if pair.is_self_check else "")
            clear = pair.verdict in {"faster", "slower"}
            rows.append(forest_row(name, found.ratio, found.low, found.high, pair.verdict, significant=clear))
    if not rows:
        return None
    return Forest(f"whole step against {shown_name(pairs[0].arms[0])}", tuple(rows), margin, level)
