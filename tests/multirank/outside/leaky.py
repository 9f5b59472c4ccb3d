"""A strategy of somebody else's whose engine keeps 10 MiB a step and does one all-reduce more."""

from __future__ import annotations

import torch
import torch.distributed as dist

from harness.strategies.torch import DDP

KEPT_BYTES = 10 << 20
SENT_ELEMENTS = 1 << 18


class Leaky(DDP):
    name = "leaky"

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        train_step, kept = engine.train_step, []

        def leaking(micro_batches, mark):
            result = train_step(micro_batches, mark)
            kept.append(torch.ones(KEPT_BYTES // 4))
            dist.all_reduce(torch.ones(SENT_ELEMENTS, dtype=torch.float64))
            return result

        engine.train_step = leaking
        return engine


class LeaksWhatItSends(DDP):
    """What went through a collective and is kept is no buffer of it."""

    name = "leaks-what-it-sends"

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        train_step, kept = engine.train_step, []

        def leaking(micro_batches, mark):
            result = train_step(micro_batches, mark)
            kept.append(torch.ones(KEPT_BYTES // 4))
            dist.all_reduce(kept[-1])
            return result

        engine.train_step = leaking
        return engine


class BreaksLater(DDP):
    """Fails on one rank in the first step after the measured ones."""

    name = "breaks-later"

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        train_step, done = engine.train_step, []

        def breaking(micro_batches, mark):
            done.append(1)
            if len(done) > spec.steps and world.rank == 1:
                raise RuntimeError("not one step more")
            return train_step(micro_batches, mark)

        engine.train_step = breaking
        return engine
