"""Trains a line with an optimizer of `holders` and tells what is held, and what nobody claims.

``python held_state.py NAME…`` prints a JSON object: name -> [held, unclaimed], in bytes. In a process of its own
no other test's tensors are live.
"""

from __future__ import annotations

import gc
import json
import sys

import torch

from harness.checks.fingerprint import forget
from harness.collectors.memory import Memory, occupied
from harness.interfaces import DataShard, World
from harness.registry import OPTIMIZERS, WORKLOADS, strategy
from harness.spec import RunSpec
from harness.tracing.reading import Traced
from harness.tracing.recording import record

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"), backend=None)


class Trained:
    """A line after three steps."""

    def __init__(self, optimizer: str) -> None:
        spec = RunSpec(workload="linear_regression", optimizer=optimizer, global_batch=4, device="cpu")
        self.workload = WORKLOADS.get("linear_regression")()
        self.engine = strategy("single").start(self.workload, OPTIMIZERS.get(optimizer), spec, ALONE)
        self.batches = iter(self.workload.batches(DataShard(0, 1, 4, 1, 0)))
        for _ in range(3):
            self.engine.train_step([next(self.batches)], lambda _: None)

    def held(self) -> int:
        return occupied(self.engine.tensors())["state"]

    def unclaimed(self) -> int:
        gc.collect()
        forget()
        trace = record(self.engine, self.batches, 1, ALONE, [self.workload, self.batches], lambda: 1)
        (reading,) = Memory().traced(Traced(trace, None, ALONE, 0))
        return reading.value


if __name__ == "__main__":
    found = {}
    for name in sys.argv[1:]:
        trained = Trained(f"holders:{name}")
        found[name] = [trained.held(), trained.unclaimed()]
    print(json.dumps(found))
