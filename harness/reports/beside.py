"""What stands beside the ratios of a comparison: what it cost, what it could see, what weakens its conclusion."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from harness.comparison.estimate import rounds_of
from harness.comparison.model import STEP_TIME
from harness.comparison.spending import looks_of
from harness.reports import quantities
from harness.reports.printable import printable
from harness.reports.words import LONGEST_NAME, LONGEST_REASON, percent, shown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.comparison.model import Analysis, Comparison, Estimate, Launch, Pair


def told(pair: Pair, comparison: Comparison) -> tuple[str, ...]:
    """Say of a pair what it could see, its times, and when the faster arm has paid for its start."""
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
        if each and not each.isspace()
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
    whose = shown_name(faster) if faster else "the faster arm"
    return f"the slower start of {whose} (compilation) has paid for itself after {pair.payback_steps:,} steps"


def _stalls(found: Estimate | None) -> str | None:
    parts = []
    if found is not None and found.stalls is not None:
        parts.append(f"stalls (steps over 5x the median): A {found.stalls[0]:,}, B {found.stalls[1]:,}")
    if found is not None and found.p99_s is not None:
        parts.append("p99 step: A {}, B {}".format(*(quantities.seconds(each) for each in found.p99_s)))
    return "; ".join(parts) or None


def pair_warnings(pair: Pair) -> tuple[str, ...]:
    """Say what forbids to believe a pair's verdict."""
    if pair.is_self_check and pair.verdict in {"faster", "slower"}:
        alarm = (
            f"self-check alarm: the same code against itself came out {pair.verdict}; "
            "trust no verdict of this comparison: something on this machine favours one arm"
        )
        return (alarm,)
    return ()


def common_warnings(comparison: Comparison) -> tuple[str, ...]:
    """Say what weakens every verdict of a comparison."""
    valid = [launch for launch in comparison.launches if launch.invalid is None]
    found = []
    if any(not launch.resident for launch in valid):
        found.append(
            "one arm was in memory at a time: they took turns as short launches in ABBA order, which drift of the "
            "machine reaches; intervals are wider"
        )
    if any(facts.get("addresses_alike") is False for facts in comparison.facts):
        found.append(
            "the system draws the addresses of each program anew, whatever is asked: an arm may be half a percent "
            "faster or slower for that, as long as its ranks live"
        )
    return (*found, *_unproved(comparison), *of_launches(comparison))


def of_launches(comparison: Comparison) -> tuple[str, ...]:
    """Say what was noted of single launches, and of how many: no steady state, arms that train differently."""
    valid = [launch for launch in comparison.launches if launch.invalid is None]
    found = []
    for index, arm in enumerate(comparison.arms):
        unsteady = sum(_is_unsteady(launch, index) for launch in valid)
        if unsteady:
            found.append(f"{shown_name(arm.name)}: no steady state in {unsteady} of {len(valid)} launches")
    for note in dict.fromkeys(note for launch in valid for note in launch.notes):
        count = sum(note in launch.notes for launch in valid)
        found.append(f"{printable(note, LONGEST_REASON)} ({count} of {len(valid)} launches)")
    return tuple(found)


def _unproved(comparison: Comparison) -> list[str]:
    """Name the arms of which nothing is proved, and why: a speed counts only if the answer is right."""
    names: dict[str, list[str]] = {}
    for arm, facts in zip(comparison.arms, comparison.facts, strict=False):
        proof = facts.get("verification")
        if isinstance(proof, dict) and proof.get("outcome") != "passed":
            reason = printable(str(proof.get("reason") or proof.get("outcome")), LONGEST_REASON)
            names.setdefault(reason, []).append(shown_name(arm.name))
    return [f"not proved right: {', '.join(those)}: {reason}" for reason, those in names.items()]


def _is_unsteady(launch: Launch, arm: int) -> bool:
    return arm < len(launch.warm_ups) and launch.warm_ups[arm].steady_from is None


def measured(analysis: Analysis, comparison: Comparison) -> tuple[str, ...]:
    """Say how many launches there were, which were left out and why, and the time spent."""
    design, launches = comparison.design, comparison.launches
    invalid = [launch for launch in launches if launch.invalid is not None]
    valid = len(launches) - len(invalid)
    kinds = "/".join(dict.fromkeys(launch.kind for launch in launches))
    pairs = [pair for pair in analysis.pairs if not pair.is_self_check]
    decided = {pair.decided_at for pair in pairs if pair.decided_at}
    undecided = sum(pair.decided_at is None for pair in pairs)
    words = f"{valid} valid {kinds} launch{'es' if valid != 1 else ''}".replace("  ", " ")
    if decided:
        some = f"{len(pairs) - undecided} of {len(pairs)} " if undecided else ""
        words += f", {some}decided at launch {' and '.join(str(each) for each in sorted(decided))}"
    if design.looks:
        planned = [look.launches for look in looks_of(design.looks, design.shares, comparison.last_look)]
        words += (
            f" (looks at {', '.join(map(str, planned))}); {_rounds(launches)} rounds of {design.turn_steps} steps"
        )
    words += f"; {quantities.duration(analysis.spent_s)} of {quantities.duration(design.budget_s)} spent"
    return (words, *_invalid(invalid))


def _rounds(launches: Sequence[Launch]) -> str:
    """Return how many rounds launches had: they end by the clock."""
    found = [rounds_of(launch) for launch in launches] or [0]
    return f"{min(found)}" if min(found) == max(found) else f"{min(found)} to {max(found)}"


def _invalid(launches: Sequence[Launch]) -> list[str]:
    by_reason: dict[str, list[int]] = {}
    for launch in launches:
        by_reason.setdefault(printable(launch.invalid or "", LONGEST_REASON), []).append(launch.number)
    return [
        f"invalid: launch{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: {reason}"
        for reason, numbers in by_reason.items()
    ]


def heading(comparison: Comparison) -> str:
    """Return workload, strategy, ranks, precision and batch, as far as all arms share them."""
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


def apart(comparison: Comparison) -> list[str]:
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
