"""One torchrun world that asks DeepSpeed's engines several things: ``deepspeed_engines.py OUT``.

Each question of QUESTIONS writes what rank 0 found to OUT as JSON.
"""

import contextlib
import functools
import itertools
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from harness import kernels
from harness.errors import UnsupportedError
from harness.interfaces import DataShard, OptimizerTraits, World
from harness.leaving import leave_world
from harness.loop import steps
from harness.plan import resolve
from harness.probe import machine as probed
from harness.registry import OPTIMIZERS, WORKLOADS, strategy
from harness.spec import RunSpec

STEPS, PARTING = 5, 8  # what must part needs longer than what must not
WORKLOAD = {"gpt": "short:ShortGPT", "whole gpt": "gpt"}
STAGES = ("zero0", "zero1", "zero2", "zero3")
GRID = (
    # workload, optimizer, fields, strategies
    ("gpt", "adamw/foreach", {"accumulation": 4, "clip_norm": 0.5}, ("zero2", "zero3-offload")),
    ("gpt", "adamw/deepspeed", {"clip_norm": 0.5}, ("zero0", "zero1")),
    ("gpt", "adam/deepspeed", {"optimizer_options": {"weight_decay": 0.1}}, ("zero2",)),
    ("gpt", "adamw/deepspeed-cpu", {"accumulation": 4}, ("zero0", "zero2-offload")),
    ("gpt", "adam/deepspeed-cpu", {"optimizer_options": {"weight_decay": 0.1}}, ("zero3-offload",)),
    ("gpt", "lion/deepspeed-cpu", {}, ("zero1", "zero3-offload")),
    # The groups' decay and the schedule must survive what DeepSpeed does to torch's Adagrad.
    (
        "gpt",
        "adagrad/foreach",
        {"lr": 1e-3, "optimizer_options": {"weight_decay": 0.1}},
        ("zero2",),
    ),
    ("gpt", "adagrad/deepspeed-cpu", {"lr": 1e-3}, ("zero1", "zero1-offload")),
    ("gpt", "muon/deepspeed", {}, ("zero0", "zero1", "zero2-offload")),
    ("linear_regression", "adamw/forloop", {"accumulation": 4}, ("zero1", "zero3")),
    ("linear_regression", "rmsprop/foreach", {"clip_norm": 0.5}, ("zero0", "zero2", "zero3-offload")),
)

machine = functools.cache(probed)  # a subprocess, hence once


def world():
    return World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"), "gloo")


class Run:
    """An engine under a strategy, and its batches."""

    def __init__(self, name, workload="gpt", entry=None, **fields):
        fields = {"steps": STEPS, "device": "cpu", "global_batch": 8, "schedule": "warmup-cosine", **fields}
        fields.setdefault("optimizer", "adamw/foreach")
        spec = RunSpec(workload=WORKLOAD.get(workload, workload), strategy=name, **fields)
        self.subject = WORKLOADS.get(spec.workload)(size=spec.size, **spec.workload_options)
        self.entry, chosen = entry or OPTIMIZERS.get(spec.optimizer), strategy(name)
        self.world = World(0, 1, 0, torch.device("cpu"), None) if chosen.one_rank else world()
        spec = spec.model_copy(update={"world_size": self.world.size})
        self.spec = resolve(spec, self.subject.traits, self.entry, chosen, machine())
        if entry is None:
            refused = chosen.unsupported(self.spec, self.subject.traits, self.entry.traits, machine())
            assert refused is None, refused
        self.engine = chosen.start(self.subject, self.entry, self.spec, self.world)

    def results(self, first=0, count=None):
        shard = DataShard(self.world.rank, self.world.size, 8, self.spec.accumulation, self.spec.seed)
        batches = itertools.islice(self.subject.batches(shard), first * self.spec.accumulation, None)
        stream = steps(self.engine, batches, self.spec, torch.device("cpu"), [])
        return list(itertools.islice(stream, count))

    def curve(self, first=0, count=None):
        """Return losses (the mean over ranks) and gradient norms."""
        results = self.results(first, count)
        losses = torch.tensor([float(each.loss) for each in results], dtype=torch.float64)
        if self.world.size > 1:
            dist.all_reduce(losses)
        norms = [None if each.grad_norm is None else float(each.grad_norm) for each in results]
        return (losses / self.world.size).tolist(), norms


@contextlib.contextmanager
def running(*words, **fields):
    run = Run(*words, **fields)
    try:
        yield run
    finally:
        run.engine.close()


def grid():
    """Curves under every strategy of GRID, each after its reference."""
    found = []
    for workload, optimizer, fields, names in GRID:
        for name in ("single", *names):
            with running(name, workload, optimizer=optimizer, **fields) as run:
                losses, norms = run.curve()
                run.engine.verify_claims()
            found.append([f"{workload} {optimizer} {fields}", name, losses, norms])
    return found


def precisions():
    found = []
    for precision in ("bf16", "bf16-master", "bf16-pure"):
        for optimizer, names in (
            ("adamw/foreach", STAGES if precision == "bf16-master" else ("zero1", "zero3")),
            ("adamw/deepspeed", ("zero0",)),  # flattened there, where others are not
            ("adamw/deepspeed-cpu", ("zero2-offload", "zero3-offload")),
        ):
            for name in ("single", *names):
                with running(name, optimizer=optimizer, precision=precision, clip_norm=0.5) as run:
                    losses, norms = run.curve()
                    dtypes = run.engine.facts()["dtypes"]
                found.append([f"{precision} {optimizer}", name, losses, norms, dtypes])
    options = {"grad_accum_dtype": "fp32"}
    for name in ("single", "zero1", "zero2"):
        more = {} if name == "single" else {"strategy_options": options}
        with running(name, precision="bf16-master", accumulation=4, **more) as run:
            wrapper = run.engine.facts().get("optimizer_wrapper_class")
            found.append(["fp32 accumulation", name, *run.curve(), wrapper])
    return found


def restored():
    """Losses of three steps, again after restoring, and in another engine."""
    found = {}
    for name in ("zero0", "zero1", "zero3", "zero2-offload"):
        with running(name) as run, running(name) as other:
            run.results(0, 3)
            state = run.engine.state_dict()
            curves = [run.curve(3, 3)[0]]
            for each in (run, other):
                each.engine.load_state_dict(state)
                curves.append(each.curve(3, 3)[0])
        found[name] = curves
    return found


def held():
    """What each rank holds, and what the config and the facts say."""
    found = {}
    for name in (*STAGES, "zero3-offload"):
        with running(name, "whole gpt") as run:
            run.results(0, 2)
            mine = {}
            for category, tensor in run.engine.tensors():
                if tensor.numel() > 1:
                    mine[category] = mine.get(category, 0) + tensor.numel()
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, mine)
            with run.engine.evaluating() as model:
                training = model.training
                values = run.subject.evaluate(model)
            found[name] = {"ranks": ranks, "facts": run.engine.facts(), "training": training, "values": values}
    return found


class Elementwise(torch.optim.AdamW):
    pass


class Lamb(torch.optim.Optimizer):
    """You et al. 2020, arXiv:1904.00962, algorithm 2, without bias correction."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                one, two = group["betas"]
                state["m"].lerp_(p.grad, 1 - one)
                state["v"].mul_(two).addcmul_(p.grad, p.grad, value=1 - two)
                update = state["m"] / (state["v"].sqrt() + group["eps"]) + group["weight_decay"] * p
                ratio = p.norm() / update.norm()
                ratio = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, torch.ones_like(ratio))
                p.sub_(group["lr"] * ratio * update)


class Shaped(torch.optim.SGD):
    """Reads the second dimension of everything but vectors; a flat tensor has none."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad / (p.grad.shape[1] if p.numel() > 1000 else 1))


class Early(torch.optim.SGD):
    """Makes its state when constructed."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["seen"] = torch.zeros_like(p)


def undeclared():
    """What becomes of classes that declare nothing."""
    found = {}
    for kind in (Elementwise, Lamb, Shaped, Early):
        for name in ("single", "zero0", "zero1", "zero3"):
            try:
                with running(name, optimizer=f"deepspeed_engines:{kind.__name__}", lr=1e-3) as run:
                    told = run.curve()[0]
            except UnsupportedError as error:
                told = str(error)
            found[f"{kind.__name__} {name}"] = told
    return found


class _Forced:
    """An optimizer that says it is element-wise, whatever it is."""

    def __init__(self, name):
        real = OPTIMIZERS.get(name)
        self.name, self.target, self.build, self.disproved = name, real.target, real.build, real.disproved
        self.traits = OptimizerTraits(algorithm="claimed", granularity="element")


def red():
    """Curves of what the comparison must detect: clipping left to DeepSpeed, and LAMB on flat partitions."""
    import deepspeed

    found = {}
    with running("single", steps=PARTING) as run:
        found["single"] = run.curve()[0]
    real = deepspeed.initialize

    def forgetful(*words, config=None, **named):
        return real(*words, config={k: v for k, v in config.items() if k != "gradient_clipping"}, **named)

    deepspeed.initialize = forgetful
    for name in STAGES:
        with running(name, steps=PARTING) as run:
            found[f"{name} without gradient_clipping"] = run.curve()[0]
    deepspeed.initialize = real
    lamb = {"optimizer": "deepspeed_engines:Lamb", "lr": 1e-2, "steps": PARTING}
    for name in ("single", "zero0", "zero1"):
        with running(name, entry=_Forced(lamb["optimizer"]), **lamb) as run:
            found[f"lamb {name}"] = run.curve()[0]
    return found


QUESTIONS = (grid, precisions, restored, held, undeclared, red)


def main(out):
    sys.modules["deepspeed_engines"] = sys.modules["__main__"]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    assert set(kernels.ensure(["fused_adam", "cpu_adam", "cpu_lion", "cpu_adagrad"], print, "cpu").values()) == {
        None
    }
    for question in QUESTIONS:
        found = question()
        if dist.get_rank() == 0:
            (out / f"{question.__name__}.json").write_text(json.dumps(found), encoding="utf-8")
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
