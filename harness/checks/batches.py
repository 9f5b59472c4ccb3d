"""Was the global batch read exactly once? The ranks' samples of a step against the step's own."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.checks.fingerprint import row_fingerprints
from harness.interfaces import DataShard
from harness.seeding import generators_kept

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.interfaces import Batch, Workload
    from harness.spec import RunSpec

TOLERANCE = 1e-3
"""Relative, between floating samples made one way and another: vectorised code may round by its position."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Leave every global generator as it was: a workload may draw from them."""
    state, numbers = random.getstate(), np.random.get_state()
    with generators_kept():
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numbers)


def whole_batches(workload: Workload, spec: RunSpec, steps: int) -> list[Batch]:
    """Return the global batches of the first steps, each as the one micro-batch of one rank."""
    shard = DataShard(0, 1, spec.global_batch or 1, 1, spec.seed)
    with undisturbed():
        return list(itertools.islice(workload.batches(shard), steps))


def misread(ranks: Sequence[Sequence[Sequence[int]]], expected: Sequence[Sequence[int]]) -> str | None:
    """Say how the samples that the ranks read differ from those of the global batches; None: they are the same.

    Args:
        ranks: of each rank, of each step, the fingerprints of the samples that it read.
        expected: of each step, those of the global batch.
    """
    for step, wanted in enumerate(expected):
        read = Counter(itertools.chain.from_iterable(rank[step] for rank in ranks))
        missing, surplus = Counter(wanted) - read, read - Counter(wanted)
        if missing or surplus:
            twice = sum((surplus & Counter(dict.fromkeys(wanted, len(ranks)))).values())
            strange = sum(surplus.values()) - twice
            return (
                f"in step {step + 1} {sum(missing.values())} of the {len(wanted)} samples of the global batch "
                f"were read by no rank, {twice} were read more than once and {strange} are of "
                "no global batch of that step"
            )
    return None


def alike(found: Sequence[Sequence[Batch]], workload: Workload, spec: RunSpec, shard: DataShard) -> bool:
    """Say whether this rank's micro-batches of the first steps are its positions of the global batches.

    Args:
        found: of each step, the micro-batches that were read.
        workload: makes the global batches.
        spec: of the run.
        shard: this rank's.
    """
    for micro_batches, whole in zip(found, whole_batches(workload, spec, len(found)), strict=True):
        for micro, batch in enumerate(micro_batches):
            here = shard.positions(micro)
            for key, tensor in batch.items():
                wanted = whole[key][here.start : here.stop].to(tensor.device)
                if not torch.allclose(tensor.double(), wanted.double(), rtol=TOLERANCE, atol=TOLERANCE):
                    return False
    return True


def is_repeatable(workload: Workload, spec: RunSpec, steps: int) -> bool:
    """Say whether the global batches are the same when they are asked for again."""
    first, second = ([row_fingerprints(batch) for batch in whole_batches(workload, spec, steps)] for _ in range(2))
    return first == second
