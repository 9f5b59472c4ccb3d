"""A comparison as Markdown for a pull request: the verdict first, what is insignificant folded away.

Names come from strangers. Every character of theirs that Markdown or HTML could read as markup is written as a
numeric reference: no parser takes one for structure (CommonMark 0.31, section 2.5), nor GitHub's tables for a bar.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness.comparison.analysis import MEMORY
from harness.comparison.model import STEP_TIME
from harness.reports.model import report
from harness.reports.printable import printable
from harness.reports.words import interval, percent, times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.comparison.model import Analysis, Comparison
    from harness.reports.model import Line, Report, Section

_ANYWHERE = (
    r"[^A-Za-z0-9 /,;%….:()_\-\u0080-\U0010ffff]|(?<![A-Za-z0-9])[_-]|[_-](?![A-Za-z0-9])|:(?! )|(?<=www)\."
)
IN_CODE = re.compile(_ANYWHERE)
MARKUP = re.compile(_ANYWHERE + r"|\.(?!\d)|(?<=\d)\)")
"""What may be markup: punctuation, and full stops, colons and brackets where lists or addresses could be read."""

MARKS = {"faster": "🟢", "slower": "🔴", "equivalent": "⚪", "inconclusive": "🟡"}
COLUMNS = "| metric | B/A | {level:g} % interval | verdict | could have seen |\n| :-- | --: | :-: | :-- | --: |\n"


def markdown(analysis: Analysis, comparison: Comparison) -> str:
    """Return the comparison for a pull request's comment or a job's summary."""
    found = report(analysis, comparison)
    parts = [_headline(found)]
    if found.failed:
        parts.append(f"**{escaped(found.failed)}**")
    parts += [f"> **Warning** {escaped(each)}" for section in found.sections for each in section.warnings]
    for section in found.sections:
        parts.append(_section(section, found))
    parts += [f"> **Note** {escaped(each)}" for each in found.warnings]
    parts.append(_method(found))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Return one line of text that renders as itself and pings nobody."""
    line = " ".join(printable(text).split())
    return MARKUP.sub(_reference, line).replace("&#64;", "&#64;<!-- -->").replace("&#35;", "&#35;<!-- -->")


def code(name: str) -> str:
    """Return a name in the font of code; empty names are shown as such."""
    line = " ".join(printable(name).split())
    return f"<code>{IN_CODE.sub(_reference, line)}</code>" if line else "<code>(no name)</code>"


def _reference(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};"


def _headline(found: Report) -> str:
    shown = [section for section in found.sections if not section.is_self_check]
    verdicts = [f"{MARKS[each.verdict]} {each.verdict}" for each in shown]
    title = ", ".join(verdicts) if verdicts else "no verdict"
    return f"### optbench: {title}"


def _section(section: Section, found: Report) -> str:
    words = [_sentence(section, found)]
    # The error is shared out over looks and arms, not over metrics: a phase alone, or CPU time, may be chance.
    decided = any(line.significant and line.metric == STEP_TIME for line in section.lines)
    significant = [line for line in section.lines if line.significant and (decided or line.metric == MEMORY)]
    others = [line for line in section.lines if line not in significant]
    if significant:
        words.append(_table(significant, found))
    if others:
        words.append(folded(_summary(others), _table(others, found)))
    if section.told:
        words.append("\n".join(f"- {escaped(each)}" for each in section.told))
    return "\n\n".join(words)


def _summary(lines: Sequence[Line]) -> str:
    """Say how many of the metrics that are folded away differ, and what such a difference is worth."""
    differ = sum(line.significant for line in lines)
    count = f"{len(lines)} metric{'s' if len(lines) > 1 else ''}"
    if not differ:
        return f"{count} without a significant difference"
    verb = "differ" if differ > 1 else "differs"
    return f"{count}, {differ} of which {verb}; the step shows no significant difference, so that may be chance"


def _sentence(section: Section, found: Report) -> str:
    first, second = (code(name) for name in section.arms)
    mark = f"self-check: {MARKS[section.verdict]}" if section.is_self_check else MARKS[section.verdict]
    step = section.step
    if step is None or step.ratio is None:
        return f"{mark} {second} against {first}: **{section.verdict}**: too few valid launches for a ratio"
    told = f" ({found.level:g} % interval {interval(step)})" if step.low is not None else ""
    word, _, rest = section.ending.partition(":")
    more = f":{rest}" if rest else ""
    return f"{mark} {second} takes **{times(step.ratio)}** the time of {first}{told}: **{word}**{more}"


def _table(lines: Sequence[Line], found: Report) -> str:
    rows = [
        f"| {'&nbsp;&nbsp;' if line.is_part else ''}{escaped(line.label)} | {times(line.estimate.ratio)} "
        f"| {interval(line.estimate)} | {line.word} | {percent(line.estimate.smallest_effect)} |"
        for line in lines
    ]
    return COLUMNS.format(level=found.level) + "\n".join(rows)


def folded(summary: str, inside: str) -> str:
    """Return Markdown behind a line to click on; the summary is trusted."""
    return f"<details><summary>{summary}</summary>\n\n{inside}\n\n</details>"


def _method(found: Report) -> str:
    arms = [
        f"- {letter}: {code(name)}" + (f" ({escaped(what)})" if what else "")
        for letter, (name, what) in zip(["A", *["B"] * len(found.arms)], found.arms, strict=False)
    ]
    reading = (
        "B/A below 1: B takes less than A. Ratios are taken turn by turn within a launch; the interval is over"
    )
    words = [
        *([escaped(", ".join(found.heading.split("  |  ")))] if found.heading else []),
        "\n".join([*arms, *(f"- {escaped(each)}" for each in found.measured)]),
        f"{reading} launches.",
    ]
    return folded("How this was measured", "\n\n".join(words))
