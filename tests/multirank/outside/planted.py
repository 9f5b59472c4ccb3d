"""One small change each to what a step does, of the kinds that a gate on counts must name."""

from __future__ import annotations

import gc
import os
from collections import deque

import torch
import torch.distributed as dist

from harness.strategies.torch import DDP
from workloads.linear_regression import LinearRegression

PLANTED = "PLANTED_OPERATOR" in os.environ
"""The code has changed since its baseline was written."""


class Plain(torch.optim.Optimizer):
    """Momentum SGD; the others differ from it in one place."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})
        self.done = 0
        self.kept = []
        self.set_up()

    def set_up(self):
        """Do nothing."""

    def momentum(self, p):
        return torch.zeros_like(p)

    def before(self, p):
        """Do nothing."""

    def update(self, p, state, lr):
        if "momentum" not in state:
            state["momentum"] = self.momentum(p)
        state["momentum"].mul_(0.9).add_(p.grad)
        self.before(p)
        p.add_(state["momentum"], alpha=-lr)
        if PLANTED:
            p.neg()

    @torch.no_grad()
    def step(self, closure=None):
        self.done += 1
        for group in self.param_groups:
            for p in group["params"]:
                self.update(p, self.state[p], group["lr"])
        self.after()

    def after(self):
        """Do nothing."""


class OneMoreOperator(Plain):
    def before(self, p):
        p.mul_(1.0)


class AnotherOperator(Plain):
    def update(self, p, state, lr):
        state.setdefault("momentum", self.momentum(p)).mul_(0.9).add_(p.grad)
        p.sub_(state["momentum"], alpha=lr)


class AnotherOverload(Plain):
    def before(self, p):
        p.add_(0)


class EverySecondStep(Plain):
    def after(self):
        if self.done % 2:
            self.param_groups[0]["params"][0].neg().abs()


class Synchronises(Plain):
    def before(self, p):
        assert float(p.grad.sum()) < 1e9


class DoubleState(Plain):
    def momentum(self, p):
        return torch.zeros_like(p, dtype=torch.float64)


class MoreState(Plain):
    def before(self, p):
        if "more" not in self.state[p]:
            self.state[p]["more"] = torch.zeros_like(p)


class LargerTemporary(Plain):
    def before(self, p):
        torch.empty(p.numel() * 100)


class SmallTemporary(Plain):
    def before(self, p):
        torch.empty(1)


class OneMoreImport(Plain):
    def set_up(self):
        import chunked_by_nobody_else  # noqa: F401


class OnOneRankOnly(Plain):
    def before(self, p):
        if dist.get_rank() == 1:
            p.mul_(1.0)


class Compiled(Plain):
    """Compiled without a backend: graphs are made and counted, and nothing is built."""

    def set_up(self):
        self.number = 1.0
        self.update = torch.compile(self.update, backend="eager", dynamic=False)


class BreaksItsGraph(Compiled):
    def before(self, p):
        torch._dynamo.graph_break()


class Recompiles(Compiled):
    def before(self, p):
        p.mul_(self.number)

    def after(self):
        self.number = min(self.number + 1.0, 3.0)


class OneMoreGraph(Compiled):
    def set_up(self):
        super().set_up()
        self.kept_norm = torch.compile(lambda p: p.norm(), backend="eager", dynamic=False)

    def after(self):
        self.kept_norm(self.param_groups[0]["params"][0])


class NotCompiled(Compiled):
    def set_up(self):
        """Leave it as it is."""


class MoreWork(LinearRegression):
    """The loss is looked at twice."""

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return loss + 0.0 * loss.detach()


class InDoubles(LinearRegression):
    def loss(self, model, batch):
        return super().loss(model, {**batch, "x": batch["x"].double().float()})


class LargerActivations(LinearRegression):
    def loss(self, model, batch):
        torch.cat([batch["x"]] * 64)
        return super().loss(model, batch)


class Sending(DDP):
    """Something more is sent after each step."""

    def start(self, workload, optimizer, spec, world):
        engine = super().start(workload, optimizer, spec, world)
        train_step = engine.train_step

        def sending(micro_batches, mark):
            result = train_step(micro_batches, mark)
            self.send(engine, world)
            return result

        engine.train_step = sending
        return engine


class DoubledAllReduce(Sending):
    name = "doubled-all-reduce"

    def send(self, engine, world):
        for _, tensor in engine.tensors():
            if tensor.shape == (1, 1):
                dist.all_reduce(tensor.detach().clone())
                return


class WiderAllReduce(Sending):
    name = "wider-all-reduce"

    def send(self, engine, world):
        dist.all_reduce(torch.ones(2, dtype=torch.float64))


class Broadcasts(Sending):
    name = "broadcasts"

    def send(self, engine, world):
        dist.broadcast(torch.ones(4), 0)


class Gathers(Sending):
    name = "gathers"

    def send(self, engine, world):
        dist.all_gather_into_tensor(torch.empty(4), torch.ones(2))


class Raises(Plain):
    def after(self):
        if self.done == 3:
            raise ArithmeticError("planted in step 3")


class KeepsATensor(Plain):
    def after(self):
        self.kept.append(torch.ones(3, 5))


class KeepsATensorNowAndThen(Plain):
    def after(self):
        if self.done % 4 == 0:
            self.kept.append(torch.ones(7))


class Note:
    """What one step leaves behind."""


class KeepsAnObject(Plain):
    def after(self):
        self.kept.append(Note())


class KeepsNumbers(Plain):
    def after(self):
        # Over so short a run Python's own housekeeping frees about two blocks a step.
        self.kept += [self.done + share / 16 for share in range(1, 16)]


class KeepsMemory(Plain):
    """Bytes that neither torch nor Python's collector counts."""

    def after(self):
        self.kept.append(b"x" * (1 << 18))


class SlowsDown(Plain):
    """Takes about ten times as long at its end as after a third: more than a core's speed varies."""

    def after(self):
        a = torch.ones(100, 100)
        for _ in range(self.done * self.done // 10):
            a = a @ a * 0.01


class WarmsUp(Plain):
    """Takes more at first, and a bounded number for as long as it runs."""

    def set_up(self):
        self.last = deque(maxlen=5)

    def after(self):
        if self.done < 15:
            self.kept.append(torch.ones(1000))
        self.last.append(torch.ones(11))
        if self.done % 7 == 0:
            gc.collect()
