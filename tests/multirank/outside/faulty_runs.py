"""Strategies, a workload and a collector that make a run wrong in one way each, at full speed."""

from __future__ import annotations

import threading
import time

import torch

from harness.collectors.timing import Timing
from harness.interfaces import Phase
from harness.strategies.fsdp2 import FSDP2
from harness.strategies.torch import DDP, Single
from workloads.linear_regression import LinearRegression


class SkipsOnOneRank(DDP):
    """Rank 1 leaves one update out."""

    name = "skips-on-one-rank"

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        update, done = engine._update, []

        def skipping(loss):
            done.append(1)
            if world.rank == 1 and len(done) == 13:
                engine._step = lambda loss: None
            result = update(loss)
            vars(engine).pop("_step", None)
            return result

        engine._update = skipping
        return engine


class SeededDifferently(DDP):
    """Each rank starts from numbers of its own."""

    name = "seeded-differently"

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        own = torch.Generator().manual_seed(spec.seed + world.rank)
        with torch.no_grad():
            for _, parameter in engine._module.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=own) * 0.02)
        return engine


class ShardsSeededDifferently(FSDP2):
    """Each rank makes its shard of another model."""

    name = "shards-seeded-differently"

    def start(self, workload, optimizer, spec, world):
        return super().start(workload, optimizer, spec.model_copy(update={"seed": world.rank}), world)


class NotAveraged(DDP):
    """Every rank trains on its own gradients."""

    name = "not-averaged"

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        engine._model = engine._module
        return engine


class ForgetsGradients(DDP):
    """The commonest mistake: zero_grad() between backward() and step()."""

    name = "forgets-gradients"
    set_to_none = True

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        step = engine._step

        def forgetful(loss):
            engine._optimizer.zero_grad(set_to_none=self.set_to_none)
            step(loss)

        engine._step = forgetful
        return engine


class ZeroesGradients(ForgetsGradients):
    """The same with zeros left behind, over which weight decay still moves parameters."""

    name = "zeroes-gradients"
    set_to_none = False


class KeepsGradients(DDP):
    """Every step takes the gradients of the first one."""

    name = "keeps-gradients"

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        step, kept = engine._step, []

        def stale(loss):
            if not kept:
                kept.extend(p.grad.clone() for p in engine._targets)
            for parameter, first in zip(engine._targets, kept, strict=True):
                parameter.grad.copy_(first)
            step(loss)

        engine._step = stale
        return engine


class DoesNothing(Single):
    """No step ever updates."""

    name = "does-nothing"
    after = 0

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        step, done = engine._step, []

        def idle(loss):
            done.append(1)
            if len(done) <= self.after:
                step(loss)

        engine._step = idle
        return engine


class StopsInTheEnd(DoesNothing):
    """Nothing is updated once the warm-up is over."""

    name = "stops-in-the-end"
    after = 4


class ReturnsEarly(Single):
    """The update goes on in a thread when the step has returned."""

    name = "returns-early"

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        step, running = engine._step, []

        def late(loss):
            time.sleep(0.01)
            step(loss)

        def early(loss):
            for thread in running:
                thread.join()
            running[:] = [threading.Thread(target=late, args=(loss,))]
            running[0].start()

        engine._step = early
        return engine


class EndsBeforeTheStep(Single):
    """The engine says that the step is over and goes on working."""

    name = "ends-before-the-step"

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        train_step = engine.train_step

        def marking(phase, mark):
            mark(Phase.END if phase is Phase.BACKWARD else phase)

        engine.train_step = lambda batches, mark: train_step(batches, lambda phase: marking(phase, mark))
        return engine


class ForgetfulClock(Timing):
    """Leaves the optimizer's part out of the step."""

    def mark(self, phase, step):
        super().mark(Phase.END if phase in {Phase.OPTIMIZER, Phase.BACKWARD} else phase, step)


class SameForAll(LinearRegression):
    """Every rank reads what rank 0 should read."""

    def batches(self, shard):
        from dataclasses import replace

        return super().batches(replace(shard, rank=0))


class Jumps(LinearRegression):
    """The ranks read the right samples of the wrong step."""

    def batches(self, shard):
        stream = super().batches(shard)
        for _ in range(3 * shard.accumulation * (shard.world_size > 1)):
            next(stream)
        return stream
