"""Which samples a rank reads."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from harness.interfaces import DataShard


def sample_numbers(shard: DataShard) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield step and global sample numbers of each micro-batch of one rank, without end.

    A global sample number is ``step * global_batch + position``: what a sample holds derives from it, so the
    sequence of global batches is the same at any world size and accumulation.
    """
    for step in itertools.count():
        first = step * shard.global_batch
        for micro in range(shard.accumulation):
            positions = shard.positions(micro)
            yield step, np.arange(first + positions.start, first + positions.stop, dtype=np.int64)
