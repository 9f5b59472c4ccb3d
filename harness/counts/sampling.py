"""A long run: the time of each step, and now and then a look at all that is alive in this process."""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, TextIO

import psutil
import torch

from harness.counts.model import RankDrift, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

LOOKS = 9
"""Looks at what is alive, evenly over the run, beside the one at its start."""

FIXED_WORK = 10_000
"""Turns of an empty loop after each step, a fraction of a millisecond: their time tells what cores do."""


def long_run(step: Callable[[], None], steps: int, device: torch.device) -> RankDrift:
    """Train ``steps`` steps and return what grew. All ranks must call it together."""
    clocks = (array("d", [0.0]) * steps, array("d", [0.0]) * steps, array("d", [0.0]) * steps)
    looks = {round(steps * (each + 1) / LOOKS) for each in range(LOOKS)}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        _train(step, clocks, looks, device, spool)
        spool.seek(0)
        samples = [Sample.model_validate_json(line) for line in spool]
    times, cpu, fixed = map(tuple, clocks)
    return RankDrift(samples=_rising(samples), step_time_s=times, cpu_time_s=cpu, fixed_work_s=fixed)


def _train(
    step: Callable[[], None],
    clocks: tuple[array[float], array[float], array[float]],
    looks: set[int],
    device: torch.device,
    spool: TextIO,
) -> None:
    """Train and write each look to a file at once: what this process keeps of it would be growth."""
    times, cpu, fixed = clocks
    print(_look(0).model_dump_json(), file=spool)
    for number in range(len(times)):
        began, cpu_began = time.perf_counter(), time.process_time()
        step()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times[number], cpu[number] = time.perf_counter() - began, time.process_time() - cpu_began
        began = time.thread_time()
        for _ in range(FIXED_WORK):
            pass
        fixed[number] = time.thread_time() - began
        if number + 1 in looks:
            print(_look(number + 1).model_dump_json(), file=spool)


def _look(step: int) -> Sample:
    gc.collect()
    blocks = sys.getallocatedblocks()
    alive = gc.get_objects()
    objects = Counter(map(type, alive))
    kinds = {kind for kind in objects if issubclass(kind, torch.Tensor)}  # not isinstance: proxies would import
    tensors = Counter(_described(found) for found in alive if type(found) in kinds)
    del alive
    named: Counter[str] = Counter()
    for kind, count in objects.items():
        if kind in kinds:
            continue
        named[f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")] += count
    return Sample(
        step=step, rss_bytes=psutil.Process().memory_info().rss, blocks=blocks, tensors=tensors, objects=named
    )


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _rising(samples: list[Sample]) -> tuple[Sample, ...]:
    """Leave out all kinds of which there are not more in the end than in the middle: they cannot have drifted."""
    middle, last = samples[len(samples) // 2], samples[-1]
    tensors = {name for name, count in last.tensors.items() if count > middle.tensors.get(name, 0)}
    objects = {name for name, count in last.objects.items() if count > middle.objects.get(name, 0)}
    return tuple(
        each.model_copy(
            update={
                "tensors": {name: each.tensors.get(name, 0) for name in sorted(tensors)},
                "objects": {name: each.objects.get(name, 0) for name in sorted(objects)},
            }
        )
        for each in samples
    )
