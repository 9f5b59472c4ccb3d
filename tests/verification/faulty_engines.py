"""Engines with one fault each, as strategies out of tree: ``faulty_engines:NotAveraged``."""

from __future__ import annotations

import os

import torch
from torch import distributed as dist

from harness.interfaces import StepResult
from harness.strategies.fsdp2 import FSDP2
from harness.strategies.replicas import data_parallel
from harness.strategies.sharding import ShardedEngine
from harness.strategies.stepped import LocalShards
from harness.strategies.torch import _DDP, DDP
from harness.strategies.torch_engine import TorchEngine


def rank():
    return int(os.environ["RANK"])


class Replicas(DDP):
    """DDP with an engine of its own, here the sound one."""

    name = "replicas"
    engine = TorchEngine
    wrapped = True

    def start(self, workload, optimizer, spec, world):
        options = {**self.options, **spec.strategy_options}
        wrap = (lambda model: data_parallel(model, world, options, _DDP)) if self.wrapped else None
        return self.engine(workload, optimizer, spec, world, wrap=wrap)


class NotAveraged(Replicas):
    wrapped = False


class _Scaled(TorchEngine):
    factor = 1.0

    def _update(self, loss):
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(self.factor)
        return super()._update(loss)


class _Doubled(_Scaled):
    factor = 2.0


class _Halved(_Scaled):
    factor = 0.5


class Summed(Replicas):
    engine = _Doubled


class AveragedTwice(Replicas):
    engine = _Halved


class _OnlyRankZero(TorchEngine):
    def _update(self, loss):
        for parameter in self._parameters:
            dist.broadcast(parameter.grad, 0)
        return super()._update(loss)


class OnlyRankZero(Replicas):
    engine, wrapped = _OnlyRankZero, False


class _Seeded(TorchEngine):
    def __init__(self, workload, optimizer, spec, world, wrap):
        super().__init__(workload, optimizer, spec.model_copy(update={"seed": spec.seed + rank()}), world, wrap)


class _Averaging(_Seeded):
    """Averages gradients itself, so that nobody makes parameters alike."""

    def _update(self, loss):
        for parameter in self._parameters:
            dist.all_reduce(parameter.grad)
            parameter.grad /= self._world.size
        return super()._update(loss)


class SeededDifferently(Replicas):
    engine, wrapped = _Averaging, False


class _Skipping(TorchEngine):
    def left_out(self):
        return False

    def _step(self, loss):
        if not self.left_out():
            super()._step(loss)


class _OneRankSkips(_Skipping):
    def left_out(self):
        return rank() == 1 and self._steps == 5


class OneRankSkipsAStep(Replicas):
    engine = _OneRankSkips


class _EverySecond(_Skipping):
    def left_out(self):
        return self._steps % 2 == 0


class EverySecondStepDoesNothing(Replicas):
    engine = _EverySecond


class _EverySeventh(_Skipping):
    def left_out(self):
        return self._steps % 7 == 0


class EverySeventhStepDoesNothing(Replicas):
    engine = _EverySeventh


class _Never(_Skipping):
    def left_out(self):
        return True


class StepDoesNothing(Replicas):
    engine = _Never


class _ZeroGrad(TorchEngine):
    def _update(self, loss):
        for parameter in self._parameters:
            parameter.grad.zero_()
        return super()._update(loss)


class ZeroGradBeforeStep(Replicas):
    engine = _ZeroGrad


class _PerMicroBatch(TorchEngine):
    """Forward and backward written out, for faults between them."""

    def _forward_backward(self, micro_batches, mark):
        self._forget_gradients()
        total = None
        for index, batch in enumerate(micro_batches):
            self.before(index)
            loss = self._workload.loss(self._model, batch)
            self._backward(loss * self.share(index, len(micro_batches)))
            total = loss.detach() if total is None else total + loss.detach()
        return total / len(micro_batches)

    def before(self, index):
        pass

    def share(self, index, count):
        return 1 / count


class _LastOnly(_PerMicroBatch):
    def before(self, index):
        self._forget_gradients()

    def share(self, index, count):
        return 1.0


class LastMicroBatchOnly(Replicas):
    engine = _LastOnly


class _Undivided(_PerMicroBatch):
    def share(self, index, count):
        return 1.0


class MicroBatchesSummed(Replicas):
    engine = _Undivided


class _OffByOne(_PerMicroBatch):
    def share(self, index, count):
        return 1 / count if index < count - 1 or count == 1 else 0.0


class AccumulationOffByOne(Replicas):
    engine = _OffByOne


class _Uncleared(TorchEngine):
    def _forget_gradients(self):
        pass


class NeverCleared(Replicas):
    engine = _Uncleared


class _LocalClipping(ShardedEngine):
    def _build(self):
        model = super()._build()
        self._norm_group = None
        return model


class ClippedByTheShard(FSDP2):
    name = "clipped-by-the-shard"

    def start(self, workload, optimizer, spec, world):
        return _LocalClipping(workload, optimizer, spec, world, {**self.options, **spec.strategy_options})


class _ClippedBefore(_Averaging):
    def __init__(self, workload, optimizer, spec, world, wrap):
        TorchEngine.__init__(self, workload, optimizer, spec, world, wrap)

    def _update(self, loss):
        self._clip()
        for parameter in self._parameters:
            dist.all_reduce(parameter.grad)
            parameter.grad /= self._world.size
        self._optimizer.step()
        return StepResult(loss)


class ClippedBeforeAveraging(Replicas):
    engine, wrapped = _ClippedBefore, False


class ClippedAtOneUnasked(Replicas):
    """What DeepSpeed does where its config says nothing of clipping."""

    def start(self, workload, optimizer, spec, world):
        return super().start(
            workload, optimizer, spec.model_copy(update={"clip_norm": spec.clip_norm or 1.0}), world
        )


class NotClipped(Replicas):
    def start(self, workload, optimizer, spec, world):
        return super().start(workload, optimizer, spec.model_copy(update={"clip_norm": None}), world)


class _Deaf(TorchEngine):
    def set_lr(self, factor):
        if self._steps == 0:
            super().set_lr(factor)


class StaleRate(Replicas):
    engine = _Deaf


class _Late(TorchEngine):
    due = None

    def set_lr(self, factor):
        super().set_lr(factor if self.due is None else self.due)
        self.due = factor


class RateOneStepLate(Replicas):
    engine = _Late


class _SavedRate(TorchEngine):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._factor = 1.0


class RateStaleAfterLoading(Replicas):
    engine = _SavedRate


class _Forgetful(TorchEngine):
    def load_state_dict(self, state):
        fresh = self._real_optimizer.state_dict()
        super().load_state_dict({**state, "optimizer": fresh})


class StateLostOnLoad(Replicas):
    engine = _Forgetful


class _Dropping(TorchEngine):
    def _update(self, loss):
        dict(self._module.named_parameters())["head.weight"].grad = None
        return super()._update(loss)


class GradientDropped(Replicas):
    engine = _Dropping


class _Drifting(TorchEngine):
    """Rank 1 rounds its copy of the parameters."""

    def _step(self, loss):
        super()._step(loss)
        if rank() == 1:
            with torch.no_grad():
                for parameter in self._parameters:
                    parameter.copy_(parameter.bfloat16())


class OneRankRounds(Replicas):
    engine = _Drifting


class _PastAChunk(ShardedEngine):
    """Steps the first chunk of each shard alone."""

    def _step(self, loss):
        shards = [parameter.to_local().detach().view(-1) for parameter in self._parameters]
        kept = [shard[65_536:].clone() for shard in shards]
        super()._step(loss)
        for shard, values in zip(shards, kept, strict=True):
            shard[65_536:] = values


class PastAChunkOfTheShard(FSDP2):
    name = "past-a-chunk-of-the-shard"

    def start(self, workload, optimizer, spec, world):
        return _PastAChunk(workload, optimizer, spec, world, {**self.options, **spec.strategy_options})


class _ManyTensors(TorchEngine):
    """Steps no more tensors than a launch holds."""

    def _step(self, loss):
        kept = [(parameter, parameter.detach().clone()) for parameter in self._parameters[110:]]
        super()._step(loss)
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


class PastALaunch(Replicas):
    engine = _ManyTensors


class Raises(Replicas):
    def start(self, workload, optimizer, spec, world):
        raise ValueError("broken on purpose")


class _ShardsForTensors(ShardedEngine):
    def _build(self):
        model = super()._build()
        self._stepped = LocalShards(model.named_parameters())
        return model


class ShardsForTensors(FSDP2):
    """Hands out shards as plain tensors, whatever the optimizer does with them."""

    name = "shards-for-tensors"

    def start(self, workload, optimizer, spec, world):
        return _ShardsForTensors(workload, optimizer, spec, world, {**self.options, **spec.strategy_options})
