"""What grew over a long run: leaks by name, resident memory, the step's own time."""

from __future__ import annotations

import itertools
import statistics
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from harness.counts.slopes import theil_sen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.counts.model import RankDrift, Sample

WARM_UP_SHARE = 1 / 3
"""Of the run: what grows in it only is a cache, a pool or state that is made late."""

FEWEST_INTERVALS = 4
"""Looks after the warm-up less one, below which growth is not told from chance."""

LEAST_BLOCKS = 0.8
"""Of Python's allocator a step, from each look to the next: one number kept a step, less what comes and goes.

Without a leak, torch's wrappers of native objects (ranges of its profiler, say) take up to one block a step at
first, fewer and fewer as their addresses come again, and none after some 300 steps (torch 2.13, CPU).
"""

LEAST_RESIDENT_BYTES = 1 << 20
"""Over the run after its warm-up: allocators keep some pages more now and then."""

TIME_MARGIN = 0.1
"""Growth of the step's time over the run after its warm-up, relative to its median, that counts."""

BLOCKS_OF_TIME = 12
"""Medians of so many stretches of steps stand for the steps, whose times depend on their neighbours'."""


class Finding(BaseModel):
    """One thing that grows from step to step."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: Literal["tensors", "objects", "blocks", "resident memory", "step time"]
    name: str
    """Dtype and shape of the tensors, type of the objects; empty for the others."""
    per_step: float
    """Tensors, objects, blocks, bytes or seconds."""
    ranks: tuple[int, ...]
    text: str
    """For people."""

    def __str__(self) -> str:
        return f"{self.text} (rank {', '.join(map(str, self.ranks))})" if self.ranks else self.text


def enough(drift: Sequence[RankDrift]) -> bool:
    """Say whether a run was long enough for `findings` to find anything."""
    return bool(drift) and all(len(_settled(each.samples)) > FEWEST_INTERVALS for each in drift)


def findings(drift: Sequence[RankDrift]) -> list[Finding]:
    """Return what grew on any rank; what grew on several is told once, with the fastest growth.

    Args:
        drift: by rank.
    """
    found: dict[tuple[str, str], list[tuple[int, Finding]]] = {}
    for rank, each in enumerate(drift):
        for finding in _of_rank(each):
            found.setdefault((finding.kind, finding.name), []).append((rank, finding))
    merged = []
    for same in found.values():
        worst = max((finding for _, finding in same), key=lambda finding: finding.per_step)
        merged.append(worst.model_copy(update={"ranks": tuple(rank for rank, _ in same)}))
    return merged


def _of_rank(drift: RankDrift) -> Iterator[Finding]:
    samples = _settled(drift.samples)
    if len(samples) <= FEWEST_INTERVALS:
        return
    for name in samples[-1].tensors:
        growth = _growth(samples, [each.tensors.get(name, 0) for each in samples])
        if growth is not None:
            text = f"tensors {name}: {growth:+.3g} a step"
            yield Finding(kind="tensors", name=name, per_step=growth, ranks=(), text=text)
    for name in samples[-1].objects:
        growth = _growth(samples, [each.objects.get(name, 0) for each in samples])
        if growth is not None:
            text = f"objects of type {name}: {growth:+.3g} a step"
            yield Finding(kind="objects", name=name, per_step=growth, ranks=(), text=text)
    growth = _steady_growth(samples)
    if growth is not None:
        text = f"Python's memory blocks (numbers, strings, small objects): {growth:+.3g} a step"
        yield Finding(kind="blocks", name="", per_step=growth, ranks=(), text=text)
    yield from _resident(samples)
    yield from _time(drift)


def _settled(samples: Sequence[Sample]) -> list[Sample]:
    last = samples[-1].step if samples else 0
    return [each for each in samples if each.step >= last * WARM_UP_SHARE]


def _growth(samples: Sequence[Sample], counts: Sequence[int]) -> float | None:
    """Return growth a step of what rises from every look to the next; None: it does not."""
    if all(after > before for before, after in itertools.pairwise(counts)):
        return (counts[-1] - counts[0]) / (samples[-1].step - samples[0].step)
    return None


def _steady_growth(samples: Sequence[Sample]) -> float | None:
    """Return growth a step of Python's blocks that does not fade; None: it does, or there is none."""
    rates = [(b.blocks - a.blocks) / (b.step - a.step) for a, b in itertools.pairwise(samples)]
    half = len(rates) // 2
    fades = statistics.mean(rates[half:]) < LEAST_BLOCKS * statistics.mean(rates[:half])
    return None if min(rates) < LEAST_BLOCKS or fades else statistics.mean(rates)


def _resident(samples: Sequence[Sample]) -> Iterator[Finding]:
    slope = theil_sen([each.step for each in samples], [each.rss_bytes for each in samples])
    steps = samples[-1].step - samples[0].step
    if slope is not None and slope.low * steps > LEAST_RESIDENT_BYTES:
        text = f"resident memory: {slope.value:+.3g} B a step ({slope.low:.3g} to {slope.high:.3g})"
        yield Finding(kind="resident memory", name="", per_step=slope.value, ranks=(), text=text)


def _time(drift: RankDrift) -> Iterator[Finding]:
    """Find growing step times.

    The process's CPU time must grow too, since neighbours slow the clock's; and faster than that of the same
    arithmetic after each step, since cores change their speed.
    """
    relative = [step / fixed for step, fixed in zip(drift.cpu_time_s, drift.fixed_work_s, strict=True) if fixed]
    wall, *others = map(_time_growth, (drift.step_time_s, drift.cpu_time_s, relative))
    if wall is None:
        return
    least = min(0.0 if each is None else each[1] for each in (wall, *others))
    if least > TIME_MARGIN:
        text = f"step time: {wall[0]:+.3g} s a step, at least {least:.0%} of the median over the run"
        yield Finding(kind="step time", name="", per_step=wall[0], ranks=(), text=text)


def _time_growth(times: Sequence[float]) -> tuple[float, float] | None:
    """Return growth a step, and its lower bound over the whole run relative to the median."""
    first = round(len(times) * WARM_UP_SHARE)
    length = (len(times) - first) // BLOCKS_OF_TIME
    if length < 1:
        return None
    starts = range(first, first + length * BLOCKS_OF_TIME, length)
    medians = [statistics.median(times[start : start + length]) for start in starts]
    slope = theil_sen(list(starts), medians)
    middle = statistics.median(medians)
    if slope is None or middle <= 0:
        return None
    return slope.value, slope.low * (len(times) - first) / middle
