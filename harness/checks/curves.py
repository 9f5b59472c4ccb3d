"""Loss curves of implementations of one algorithm: with one workload, seed and world they must be one curve."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import TYPE_CHECKING, Any

from harness.invocation import command
from harness.likeness import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from harness.record import RunRecord

ROUNDING = {"fp32": 1e-5, "tf32": 1e-3, "fp16": 1e-3, "bf16": 1e-2, "bf16-pure": 1e-2, "bf16-master": 1e-2}
"""Relative difference of two losses that rounding alone may make in a step, by precision. In fp32 forloop,
foreach, fused and DeepSpeed's own kernels of 13 algorithms on gpt, cnn and lstm stay within 1e-6 in their first
six steps, and nearly all for ever; formats of 11 and 8 significant bits round a hundred times as much and more."""

GROWTH = 1000.0
"""Factor by which the largest difference so far may grow in one step. Where a learning rate is at the edge,
training is chaotic: Adagrad's on gpt goes from 1e-7 to 1e-1 in 4 steps, by 240 at most in one; a fault jumps."""

WIDEST = 0.25
"""Relative difference of the mean losses of the last quarter: chaos averages out, a worse optimizer does not."""

STATE_ROUNDING = {"float64": 0.0, "float32": 0.0, "float16": 1e-3, "bfloat16": 1e-2}
"""What a state's dtype adds to that: as much as the precision of the same format allows."""

CODED = 1e-2
"""What a state in codes of few bits adds, whatever the code."""

AMPLIFIES = 1e-3
"""Relative difference of an update that the last bit of each gradient makes, from which a reader is told of it.
Of 220 optimizers over small tensors SOAP's and SPlus's reach 0.5 to 0.7, nearly all others stay below 1e-4."""

SAME = (
    *("workload", "size", "data", "workload_options", "strategy", "strategy_options", "precision", "device"),
    *("world_size", "seed", "steps", "global_batch", "accumulation", "clip_norm", "lr", "schedule"),
    "optimizer_options",
)
"""Fields of a spec that two runs must share to be compared."""


def parted(records: Sequence[RunRecord], results: Path | None = None) -> list[str]:
    """Return a note for each set of runs that should have one loss curve and have several.

    Args:
        records: of a sweep, in any order; only completed runs with curves are compared.
        results: the store that they are in; None: no matter.

    Returns:
        Notes of two lines, the second of which is the command that tells which run is wrong.
    """
    alike: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        if record.outcome == "completed" and _curve(record):
            alike.setdefault(_identity(record), []).append(record)
    return [note for members in alike.values() for note in _notes(members, results)]


def parting(one: RunRecord, other: RunRecord) -> int | None:
    """Return the first step, from 1, in which the losses of two runs leave the band; None: they never do.

    The band is ``ROUNDING``, or what the proof of one of them says that its algorithm makes of rounding, or
    ``GROWTH`` times the largest difference of the steps before.
    """
    states = [dtype for record in (one, other) for dtype in _state_dtypes(record)]
    precisions = [str(record.spec.get("precision")) for record in (one, other)]
    amplified = min(WIDEST, max(amplification(one), amplification(other)))
    return parts(_curve(one), _curve(other), max(band(precisions, states), amplified))


def band(precisions: Iterable[str], state_dtypes: Iterable[str]) -> float:
    """Return the relative difference of two losses that rounding alone may make in a step.

    Args:
        precisions: of both runs.
        state_dtypes: that the traits of both optimizers declare.
    """
    widest = max(ROUNDING.get(each, max(ROUNDING.values())) for each in precisions)
    return widest + max((STATE_ROUNDING.get(each, CODED) for each in state_dtypes), default=0.0)


def amplification(record: RunRecord) -> float:
    """Return what the gradients' last bits alone make of an update, relative to it, as the run's proof found.

    0: little, or nobody has measured it.
    """
    found = record.verification.get("amplification")
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return 0.0
    return float(found) if math.isfinite(found) else WIDEST


def amplifies(record: RunRecord) -> str | None:
    """Return a note on losses that repeat to few digits only, for the reader of a run; None: nothing to say."""
    found = amplification(record)
    if found <= AMPLIFIES or record.outcome != "completed":
        return None
    return (
        f"amplifies rounding: the last bit of each gradient alone changes an update by {found:.1%} of its size. "
        "Losses part early under another strategy, world size or implementation, and none of them is wrong"
    )


def parts(one: Sequence[float | None], other: Sequence[float | None], rounding: float) -> int | None:
    """Return the first step, from 1, in which two curves leave the band; None: they never do.

    Args:
        one: losses from the first step on; None: unknown.
        other: likewise.
        rounding: relative difference that rounding alone may make in a step.
    """
    pairs = list(zip(one, other, strict=False))
    least = _scale(one)
    largest, beyond = 0.0, None
    for step, (left, right) in enumerate(pairs, 1):
        apart = _apart(left, right, least)
        if apart > max(rounding, GROWTH * largest):
            return step
        if apart > rounding and beyond is None:
            beyond = step
        largest = max(largest, apart)
    last = pairs[-(len(pairs) // 4) :] if len(pairs) >= 20 else []
    known = [(left, right) for left, right in last if left is not None and right is not None]
    means = [statistics.fmean(side) for side in zip(*known, strict=True)]
    return beyond if means and _apart(means[0], means[1], least) > WIDEST else None


def _apart(left: float | None, right: float | None, least: float) -> float:
    """Return the relative difference; not finite on one side only: infinite."""
    if left is None or right is None or not (math.isfinite(left) or math.isfinite(right)):
        return 0.0
    apart = abs(left - right)
    return apart / max(abs(left), abs(right), least, 1e-30) if math.isfinite(apart) else math.inf


def _notes(members: Sequence[RunRecord], results: Path | None) -> list[str]:
    """Name every run that parted, those that stayed together in one breath."""
    bunches: list[list[RunRecord]] = []
    for record in members:
        for bunch in bunches:
            if _comparable(bunch[0], record) and parting(bunch[0], record) is None:
                bunch.append(record)
                break
        else:
            bunches.append([record])
    return [
        _note(one, other, step, results)
        for one, other in itertools.combinations(bunches, 2)
        if _comparable(one[0], other[0]) and (step := parting(one[0], other[0])) is not None
    ]


def _note(one: Sequence[RunRecord], other: Sequence[RunRecord], step: int, results: Path | None) -> str:
    left, right = (_curve(bunch[0])[step - 1] for bunch in (one, other))
    each = dict.fromkeys(str(record.spec.get("optimizer")) for record in (*one, *other))
    words = [word for name in each for word in ("--optimizer", name)]
    names = [", ".join(dict.fromkeys(str(r.spec.get("optimizer")) for r in bunch)) for bunch in (one, other)]
    return (
        f"losses of one algorithm part in step {step}: {names[0]} {left:.6g}, {names[1]} {right:.6g} "
        f"({one[0].spec.get('workload')}, {one[0].spec.get('strategy')}); one of them computes something else; "
        f"what tells which:\n{command('verify', *words, results=results)}"
    )


def _identity(record: RunRecord) -> tuple[str, ...]:
    return record.algorithm, *(str(record.spec.get(field)) for field in SAME)


def _curve(record: RunRecord) -> Sequence[float | None]:
    metric = record.metrics.get("train_loss")
    return (metric.series or ()) if metric is not None and metric.series_steps is None else ()


def _scale(curve: Sequence[float | None]) -> float:
    """Return a hundredth of the first loss: relative to a loss that nears zero, rounding is anything."""
    first = curve[0] if curve else None
    return 0.01 * abs(first) if first is not None and math.isfinite(first) else 0.0


def _comparable(one: RunRecord, other: RunRecord) -> bool:
    """Say whether both were constructed with the same numbers, as far as both constructors tell.

    A class from elsewhere may call a number otherwise, or have it fixed: its constructor must take the same ones.
    """
    left, right = _arguments(one), _arguments(other)
    names = {str(record.spec.get("optimizer")) for record in (one, other)}
    if len(names) > 1 and any(":" in name for name in names) and left.keys() != right.keys():
        return False
    return all(left[name] == right[name] for name in left.keys() & right.keys())


def _arguments(record: RunRecord) -> dict[str, Any]:
    optimizer = record.facts.get("optimizer")
    found = optimizer.get("arguments") if isinstance(optimizer, dict) else None
    numbers = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in numbers if not isinstance(value, (bool, str, type(None)))}


def _state_dtypes(record: RunRecord) -> list[str]:
    declared = table(record.facts, "optimizer_traits").get("state_dtypes")
    return [str(each) for each in declared] if isinstance(declared, list) else []
