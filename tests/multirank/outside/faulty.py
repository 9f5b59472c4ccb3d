"""An out-of-tree workload that goes wrong on request, and optimizers that do."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

import torch
from torch import nn

from harness.interfaces import Target, WorkloadSize, WorkloadTraits
from harness.strategies.torch import DDP


class Faulty:
    """Learns y = 3x; in step ``step`` (from 1) rank ``rank`` meets its ``fault``."""

    traits = WorkloadTraits(
        summary="goes wrong on request",
        source="this test",
        sizes={
            "one": WorkloadSize(
                parameters=2,
                global_batch=8,
                target=Target(metric="validation_loss", value=0.5, better="lower"),
            ),
            "huge": WorkloadSize(parameters=10**12, global_batch=8),
        },
        default_size="one",
        metrics={"validation_loss": "lower"},
        options={"fault": "none", "step": 3, "rank": 1},
    )

    def __init__(self, size=None, data=None, *, fault="none", step=3, rank=1):
        self.fault, self.step, self.rank = fault, step, rank
        self.seen, self.size = 0, size

    def build(self):
        return nn.Linear(10**6, 10**6, bias=False) if self.size == "huge" else nn.Linear(1, 1)

    def initialise(self, name, tensor, seed):
        tensor.zero_()

    def batches(self, shard):
        step = 0
        while True:
            for micro in range(shard.accumulation):
                x = torch.tensor([[p / shard.global_batch + step % 3] for p in shard.positions(micro)])
                yield {"x": x, "y": 3 * x, "sample": torch.tensor(list(shard.positions(micro)))}
            step += 1

    def loss(self, model, batch):
        if batch["x"].device.type == "meta":
            return model(batch["x"]).mean()
        self.seen += 1
        if self.seen == self.step and int(os.environ.get("RANK", "0")) == self.rank:
            getattr(self, self.fault)()
        loss = ((model(batch["x"]) - batch["y"]) ** 2).mean()
        poisoned = self.fault == "nan" and self.seen >= self.step and int(os.environ["RANK"]) == self.rank
        return loss * float("nan") if poisoned else loss

    def evaluate(self, model):
        x = torch.linspace(0, 1, 16)[:, None]
        return {"validation_loss": float(((model(x) - 3 * x) ** 2).mean())}

    def none(self):
        pass

    def nan(self):
        pass

    def raises(self):
        raise ValueError("the model broke on purpose")

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def segv(self):
        ctypes.string_at(0)

    def hang(self):
        if not os.environ.get("FAULTY_HANG_ONCE"):  # a resumed sweep runs the same cell: this time it goes through
            time.sleep(3600)

    def eats_memory(self):
        self.eaten = [bytearray(b"x") * 2**26 for _ in range(512)]

    def exits(self):
        os._exit(7)

    def exits_quietly(self):
        os._exit(0)

    def calls_sys_exit(self):
        sys.exit(0)

    def is_told_to_end(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    def torchrun_is_told_to_end(self):
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)

    def leaves_a_thread(self):
        threading.Thread(target=time.sleep, args=(3600,)).start()
        sys.stdout = None  # nor must this rank's own standard output be needed to end it

    def fork_and_hang(self):
        if os.fork() == 0:  # a grandchild that leaves session and group must not outlive the run either
            os.setsid()
            time.sleep(3600)
        time.sleep(3600)

    def out_of_memory(self):
        raise torch.OutOfMemoryError("as an accelerator's allocator raises it")


class RaisesInConstructor(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        raise RuntimeError("no luck with this constructor")


class NotAnOptimizer:
    def __init__(self, params):
        pass


class Halving(torch.optim.Optimizer):
    """Plain gradient descent, written outside."""

    def __init__(self, params, lr=0.01, damping=1.0):
        super().__init__(params, {"lr": lr, "damping": damping})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-group["lr"] * group["damping"])


class OwnNameForTheRate(torch.optim.SGD):
    def __init__(self, params, learning_rate=0.1):
        super().__init__(params, lr=learning_rate)


class BrokenCollector:
    """Raises between turns."""

    def start(self, observed):
        pass

    def mark(self, phase, step):
        pass

    def observe(self, step, result):
        pass

    def turn(self):
        raise RuntimeError("the collector broke on purpose")

    def evaluated(self, step, train_time_s, values):
        pass

    def stop(self):
        return ()


class Replicas(DDP):
    """A strategy from outside."""

    name = "replicas"
