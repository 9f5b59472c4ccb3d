"""The measured loop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.interfaces import MarksPhases, ObservesSteps, Phase
from harness.schedule import factor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from harness.interfaces import Batch, Collector, Engine, StepResult
    from harness.spec import RunSpec


@dataclass(frozen=True)
class Turn:
    """Some consecutive steps, after which the device was synchronised.

    Attributes:
        first: number of the first step, from 0.
        results: what each step left behind.
        wall_s: time from the first step's start to the synchronisation.
    """

    first: int
    results: tuple[StepResult, ...]
    wall_s: float

    @property
    def end(self) -> int:
        """Steps done once this turn is over."""
        return self.first + len(self.results)


def steps(
    engine: Engine,
    batches: Iterator[Batch],
    spec: RunSpec,
    device: torch.device,
    collectors: Sequence[Collector],
) -> Iterator[StepResult]:
    """Train one step at a time; everything between two steps is up to the caller."""
    markers = [collector.mark for collector in collectors if isinstance(collector, MarksPhases)]
    observers = [collector.observe for collector in collectors if isinstance(collector, ObservesSteps)]
    for step in range(spec.steps):

        def mark(phase: Phase, step: int = step) -> None:
            for each in markers:
                each(phase, step)

        engine.set_lr(factor(spec.schedule, step, spec.steps))
        mark(Phase.DATA)
        micro_batches = [on_device(next(batches), device) for _ in range(spec.accumulation)]
        result = engine.train_step(micro_batches, mark)
        mark(Phase.END)
        for each in observers:
            each(step, result)
        yield result


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on the rank's device; the copy is queued and the host goes on.

    A copy from pageable memory would hold the host up until the device's stream has drained. Pinned memory is
    torch's own: its host allocator keeps the blocks for later batches.
    """
    return {key: _pinned(tensor, device).to(device, non_blocking=True) for key, tensor in batch.items()}


def _pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type not in _FROM_PINNED or tensor.device.type != "cpu" or tensor.is_sparse or tensor.is_pinned():
        return tensor
    return tensor.pin_memory()


_FROM_PINNED = frozenset({"cuda", "xpu"})
"""Device types that copy from pinned host memory without holding the host up."""


def turn_ends(spec: RunSpec) -> Iterator[int]:
    """Yield the step counts at which a turn ends: every ``turn_steps``, the end of the warm-up, evaluations."""
    end = 0
    while end < spec.steps:
        ends = [(end // every + 1) * every for every in (spec.turn_steps, spec.evaluation_interval)]
        ends += [count for count in (spec.warmup_steps, spec.steps) if count > end]
        end = min(ends)
        yield end


def turns(stream: Iterator[StepResult], spec: RunSpec, synchronise: Callable[[], None]) -> Iterator[Turn]:
    """Cut the stream of steps into turns; the device is synchronised once, at the end of each."""
    first = 0
    for end in turn_ends(spec):
        started = time.perf_counter()
        results = tuple(next(stream) for _ in range(end - first))
        synchronise()
        yield Turn(first, results, time.perf_counter() - started)
        first = end
