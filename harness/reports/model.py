"""The one model of a comparison's report: what every format shows, in words and numbers, before it is laid out."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.comparison.model import STEP_TIME
from harness.reports import quantities
from harness.reports.forest import Forest, Row
from harness.reports.forest import row as forest_row
from harness.reports.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.comparison.model import Analysis, Comparison, Estimate, Launch, Pair, Verdict

PHASES = ("data", "forward", "backward", "communication", "clip", "optimizer", "zero_grad", "other")
"""In the order of a step; others follow by name."""

MEMORY_WORDS: dict[Verdict, str] = {"faster": "less", "slower": "more"}
"""Of a metric that is no time, a verdict reads like this."""

LONGEST_NAME = 60
LONGEST_REASON = 300


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
        sections: a pair each.
        forest: of the whole step, a row an arm; None: two arms say all in their own.
        measured: launches, why some are invalid, time spent.
        warnings: of the comparison as a whole.
        failed: why it did not end as planned; None: it did.
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
    level = 100 * (1 - design.alpha)
    sections = tuple(_section(pair, comparison, level) for pair in analysis.pairs)
    failed = None
    if comparison.outcome != "completed":
        failed = f"{comparison.outcome}: {printable(comparison.reason or 'no reason recorded')}"
    return Report(
        heading=_heading(comparison),
        arms=tuple((_name(arm.name), what) for arm, what in zip(comparison.arms, _apart(comparison), strict=True)),
        sections=sections,
        forest=_overview(analysis.pairs, design.margin, level) if len(sections) > 1 else None,
        measured=_measured(analysis, comparison),
        warnings=(*_common_warnings(comparison), *(printable(note) for note in analysis.notes)),
        failed=failed,
        margin=design.margin,
        level=level,
    )


def percent(share: float | None) -> str:
    """Return a relative difference, ``1.2 %``; ``?`` where it is unknown."""
    return "?" if share is None or not math.isfinite(share) else f"{100 * share:.2g} %"


def times(ratio: float | None) -> str:
    """Return a ratio as a factor, ``0.523x``, with three digits after the point below ten."""
    if ratio is None or not math.isfinite(ratio):
        return "?"
    if ratio != 0 and not 1e-4 <= abs(ratio) < 1e6:
        return f"{ratio:.1e}x"
    return f"{ratio:.{3 if ratio < 10 else 1 if ratio < 1000 else 0}f}x"


def interval(estimate: Estimate) -> str:
    """Return an interval, ``0.503 … 0.544``."""
    return interval_of(estimate.low, estimate.high)


def interval_of(low: float | None, high: float | None) -> str:
    """Return two ends, ``0.503 … 0.544``; ``unknown`` without them."""
    if low is None or high is None:
        return "unknown"
    return f"{times(low).rstrip('x')} … {times(high).rstrip('x')}"


def label(metric: str) -> str:
    """Name a metric for people."""
    known = {STEP_TIME: "whole step", "cpu_time_s": "CPU time", "peak_memory_bytes": "peak memory"}
    bare = metric.removeprefix("phase_").removeprefix("phase.")
    for suffix in ("_time_s", "_s", "_bytes"):
        bare = bare.removesuffix(suffix)
    return printable(known.get(metric) or bare.replace("_", " ") or metric, LONGEST_NAME)


def _is_time(metric: str) -> bool:
    return metric.endswith("_s") or _phase(metric) is not None


def _phase(metric: str) -> str | None:
    bare = metric.removeprefix("phase_").removeprefix("phase.").removesuffix("_s").removesuffix("_time")
    return bare if bare in PHASES or metric.startswith(("phase_", "phase.")) else None


def _order(metric: str) -> tuple[int, int, str]:
    phase = _phase(metric)
    if metric == STEP_TIME:
        return 0, 0, metric
    if phase is not None:
        return 1, PHASES.index(phase) if phase in PHASES else len(PHASES), metric
    return 2, 0 if metric == "cpu_time_s" else 1, metric


def _name(name: str) -> str:
    return printable(name, LONGEST_NAME)


def _line(metric: str, estimate: Estimate) -> Line:
    verdict = estimate.verdict
    word = verdict if _is_time(metric) else MEMORY_WORDS.get(verdict, verdict)
    significant = verdict in {"faster", "slower"}
    return Line(metric, label(metric), _phase(metric) is not None, estimate, word, significant)


def _section(pair: Pair, comparison: Comparison, level: float) -> Section:
    known = [name for name, found in pair.metrics.items() if found.ratio is not None or name == STEP_TIME]
    lines = tuple(_line(name, pair.metrics[name]) for name in sorted(known, key=_order))
    first, second = _name(pair.arms[0]), _name(pair.arms[1])
    return Section(
        arms=(first, second),
        verdict=pair.verdict,
        sentence=sentence(pair, comparison.design.margin, level),
        ending=ending(pair.verdict, comparison.design.margin),
        step=pair.metrics.get(STEP_TIME),
        lines=lines,
        told=_told(pair, comparison),
        warnings=_pair_warnings(pair),
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
            name = _name(pair.arms[1]) + (" (self-check)" if pair.is_self_check else "")
            clear = pair.verdict in {"faster", "slower"}
            rows.append(forest_row(name, found.ratio, found.low, found.high, pair.verdict, significant=clear))
    if not rows:
        return None
    return Forest(f"whole step against {_name(pairs[0].arms[0])}", tuple(rows), margin, level)


def sentence(pair: Pair, margin: float, level: float) -> str:
    """Say what came of a pair so that nobody takes the ratio for its inverse."""
    first, second = _name(pair.arms[0]), _name(pair.arms[1])
    found = pair.metrics.get(STEP_TIME)
    if found is None or found.ratio is None:
        return f"{second} against {first}: {pair.verdict}: too few valid launches for a ratio"
    text = f"{second} takes {times(found.ratio)} the time of {first}"
    if found.low is not None:
        text += f" ({level:g} % interval {interval(found)})"
    return f"{text}: {ending(pair.verdict, margin)}"


def ending(verdict: Verdict, margin: float) -> str:
    """Say what a verdict means."""
    if verdict == "equivalent":
        return f"equivalent: no difference beyond the margin of {percent(margin)}"
    return "inconclusive: too little evidence for a verdict" if verdict == "inconclusive" else verdict


def _told(pair: Pair, comparison: Comparison) -> tuple[str, ...]:
    found = pair.metrics.get(STEP_TIME)
    return tuple(
        each
        for each in (
            _smallest(found),
            _medians(pair, comparison),
            printable(pair.amdahl) if pair.amdahl else None,
            _payback(pair),
            _stalls(found),
        )
        if each
    )


def _smallest(found: Estimate | None) -> str | None:
    if found is None or found.smallest_effect is None:
        return None
    return f"smallest effect that this comparison could have seen: {percent(found.smallest_effect)}"


def _medians(pair: Pair, comparison: Comparison) -> str | None:
    """Return the arms' median steps, since a ratio alone does not tell milliseconds from minutes."""
    names = [arm.name for arm in comparison.arms]
    if not all(name in names for name in pair.arms):
        return None
    valid = [turn for launch in comparison.launches if launch.invalid is None for turn in launch.turns]
    words = []
    for letter, name in zip("AB", pair.arms, strict=True):
        steps = [each for turn in valid if turn.arm == names.index(name) for each in turn.step_time_s]
        if not steps:
            return None
        words.append(f"{letter} {quantities.seconds(statistics.median(steps))}")
    return f"median step: {', '.join(words)}"


def _payback(pair: Pair) -> str | None:
    if pair.payback_steps is None:
        return None
    faster = pair.arms[1] if pair.verdict == "faster" else pair.arms[0] if pair.verdict == "slower" else None
    whose = _name(faster) if faster else "the faster arm"
    return f"the slower start of {whose} (compilation) has paid for itself after {pair.payback_steps:,} steps"


def _stalls(found: Estimate | None) -> str | None:
    parts = []
    if found is not None and found.stalls is not None:
        parts.append(f"stalls (steps over 5x the median): A {found.stalls[0]:,}, B {found.stalls[1]:,}")
    if found is not None and found.p99_s is not None:
        parts.append("p99 step: A {}, B {}".format(*(quantities.seconds(each) for each in found.p99_s)))
    return "; ".join(parts) or None


def _pair_warnings(pair: Pair) -> tuple[str, ...]:
    if pair.is_self_check and pair.verdict in {"faster", "slower"}:
        alarm = (
            f"self-check alarm: the same code against itself came out {pair.verdict}; "
            "trust no verdict of this comparison: something on this machine favours one arm"
        )
        return (alarm,)
    return ()


def _common_warnings(comparison: Comparison) -> tuple[str, ...]:
    valid = [launch for launch in comparison.launches if launch.invalid is None]
    found = []
    if any(not launch.resident for launch in valid):
        found.append(
            "the arms did not fit into memory together: they took turns as short launches in ABBA order, which "
            "drift of the machine reaches; intervals are wider"
        )
    for index, arm in enumerate(comparison.arms):
        unsteady = sum(_is_unsteady(launch, index) for launch in valid)
        if unsteady:
            found.append(f"{_name(arm.name)}: no steady state in {unsteady} of {len(valid)} launches")
    for note in dict.fromkeys(note for launch in valid for note in launch.notes):
        count = sum(note in launch.notes for launch in valid)
        found.append(f"{printable(note, LONGEST_REASON)} ({count} of {len(valid)} launches)")
    return tuple(found)


def _is_unsteady(launch: Launch, arm: int) -> bool:
    return arm < len(launch.warm_ups) and launch.warm_ups[arm].steady_from is None


def _measured(analysis: Analysis, comparison: Comparison) -> tuple[str, ...]:
    design, launches = comparison.design, comparison.launches
    invalid = [launch for launch in launches if launch.invalid is not None]
    valid = len(launches) - len(invalid)
    kinds = "/".join(dict.fromkeys(launch.kind for launch in launches))
    decided = {pair.decided_at for pair in analysis.pairs if not pair.is_self_check and pair.decided_at}
    words = f"{valid} valid {kinds} launch{'es' if valid != 1 else ''}".replace("  ", " ")
    if decided:
        words += f", decided at launch {' and '.join(str(each) for each in sorted(decided))}"
    words += (
        f" (looks at {', '.join(map(str, design.looks))}); {design.rounds} rounds of {design.turn_steps} steps"
    )
    words += f"; {quantities.duration(analysis.spent_s)} of {quantities.duration(design.budget_s)} spent"
    return (words, *_invalid(invalid))


def _invalid(launches: Sequence[Launch]) -> list[str]:
    by_reason: dict[str, list[int]] = {}
    for launch in launches:
        by_reason.setdefault(printable(launch.invalid or "", LONGEST_REASON), []).append(launch.number)
    return [
        f"invalid: launch{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: {reason}"
        for reason, numbers in by_reason.items()
    ]


def _heading(comparison: Comparison) -> str:
    """Return what all arms share; empty words where they differ."""
    specs = [arm.spec for arm in comparison.arms]

    def shared(field: str) -> str | None:
        values = {str(getattr(spec, field)) for spec in specs if getattr(spec, field) is not None}
        return printable(values.pop(), LONGEST_NAME) if len(values) == 1 else None

    ranks, batch = shared("world_size"), shared("global_batch")
    words = [
        " ".join(filter(None, (shared("workload"), shared("size")))),
        ", ".join(filter(None, (shared("strategy"), ranks and f"{ranks} rank{'' if ranks == '1' else 's'}"))),
        shared("precision"),
        batch and f"batch {batch}",
    ]
    return "  |  ".join(filter(None, words))


def _apart(comparison: Comparison) -> list[str]:
    """Return for each arm the fields in which it is not like all others, its environment and where it runs."""
    arms = comparison.arms
    dumped = [arm.spec.model_dump() for arm in arms]
    differing = [key for key in dumped[0] if len({str(each[key]) for each in dumped}) > 1] if dumped else []
    return [
        printable(
            ", ".join(
                [
                    *(f"{key}={spec[key]}" for key in differing if str(spec[key]) != arm.name),
                    *(f"{key}={value}" for key, value in sorted(arm.env.items())),
                    *([f"python {arm.python}"] if arm.python else []),
                    *([f"code {arm.path}"] if arm.path else []),
                ]
            ),
            LONGEST_REASON,
        )
        for arm, spec in zip(arms, dumped, strict=True)
    ]
