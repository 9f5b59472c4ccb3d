"""One torchrun world that asks PyTorch's engines several things: ``torch_engines.py OUT``.

Rank 0 writes what each question of QUESTIONS found to OUT as JSON.
"""

import copy
import functools
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from harness.collectors.memory import occupied
from harness.interfaces import DataShard, WorkloadSize, WorkloadTraits, World
from harness.leaving import leave_world
from harness.loop import steps
from harness.plan import resolve
from harness.probe import machine as probed
from harness.registry import OPTIMIZERS, WORKLOADS, strategy
from harness.spec import RunSpec

STEPS, SCHEDULED = 5, 6
WORKLOAD = {"gpt": "short:ShortGPT"}
SHARDED = ("fsdp2", "hsdp")
DISTRIBUTED = ("ddp", *SHARDED, "zero-redundancy")


machine = functools.cache(probed)


def whole(values):
    """Return a mean over ranks."""
    found = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found)
    return (found / dist.get_world_size()).tolist()


def world():
    return World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"), "gloo")


def spec_of(name, workload="gpt", **fields):
    fields = {"optimizer": "adamw/foreach", "steps": STEPS, "device": "cpu", "global_batch": 8, **fields}
    return RunSpec(workload=WORKLOAD.get(workload, workload), strategy=name, **fields)


class Run:
    """An engine under a strategy, and its batches."""

    def __init__(self, name, subject=None, **fields):
        spec = spec_of(name, **fields)
        self.subject = subject or WORKLOADS.get(spec.workload)(size=spec.size, **spec.workload_options)
        entry, chosen = OPTIMIZERS.get(spec.optimizer), strategy(name)
        self.world = World(0, 1, 0, torch.device("cpu"), None) if chosen.one_rank else world()
        spec = spec.model_copy(update={"world_size": self.world.size})
        self.spec = resolve(spec, self.subject.traits, entry, chosen, machine())
        if name != "apex-distributed":  # its double works on CPUs, where a plan refuses the real one
            refused = chosen.unsupported(self.spec, self.subject.traits, entry.traits, machine())
            assert refused is None, refused
        self.engine = chosen.start(self.subject, entry, self.spec, self.world)
        shard = DataShard(
            self.world.rank, self.world.size, self.spec.global_batch, self.spec.accumulation, self.spec.seed
        )
        self.stream = steps(self.engine, self.subject.batches(shard), self.spec, torch.device("cpu"), [])

    def losses(self, count=STEPS):
        return whole([float(next(self.stream).loss) for _ in range(count)])

    def results(self, count=STEPS):
        return [next(self.stream) for _ in range(count)]


def losses_of_options():
    """Curves with an option of the strategy, by name."""
    single = functools.partial(Run, "single")
    found = {
        "single": single().losses(),
        "single in backward": single(strategy_options={"optimizer_in_backward": True}).losses(),
        "single in backward, accumulated": single(
            strategy_options={"optimizer_in_backward": True}, accumulation=2
        ).losses(),
        "muon": single(optimizer="muon/forloop").losses(),
        "muon in backward": single(
            optimizer="muon/forloop", strategy_options={"optimizer_in_backward": True}
        ).losses(),
    }
    for option, value in {
        "gradient_as_bucket_view": True,
        "static_graph": True,
        "find_unused_parameters": True,
    }.items():
        found[f"ddp {option}"] = Run("ddp", strategy_options={option: value}).losses()
    found["ddp fp16"] = Run("ddp", strategy_options={"comm_hook": "fp16"}).losses()
    power = {"comm_hook": "powersgd", "powersgd_rank": 4, "powersgd_start_iter": 2}
    found["ddp powersgd"] = Run("ddp", strategy_options=power).losses()
    for name in SHARDED:
        for kept in (True, False):
            found[f"{name} reshard {kept}"] = Run(name, strategy_options={"reshard_after_forward": kept}).losses()
        found[f"{name} in backward"] = Run(
            name, strategy_options={"optimizer_in_backward": True}, accumulation=2
        ).losses()
    found["fsdp2 reduced in bf16"] = Run("fsdp2", strategy_options={"reduce_dtype": "bfloat16"}).losses()
    found["zero-redundancy as view"] = Run(
        "zero-redundancy", strategy_options={"parameters_as_bucket_view": True}
    ).losses()
    return found


def grid():
    """Losses and norms under each strategy of three workloads, by optimizer, accumulation and clipping."""
    found = []
    cells = [
        ("gpt", {}, "adamw/foreach"),
        ("cnn", {"global_batch": 16}, "sgd-momentum/forloop"),
        ("linear_regression", {}, "adamw/forloop"),
    ]
    for workload, fields, optimizer in cells:
        for accumulation, clip_norm in ((1, None), (4, 0.3)):
            more = {**fields, "optimizer": optimizer, "clip_norm": clip_norm, "steps": SCHEDULED}
            more |= {"schedule": "warmup-cosine"}
            for name in ("single", *DISTRIBUTED):
                micro = 1 if name == "single" else accumulation
                results = Run(name, workload=workload, accumulation=micro, **more).results(SCHEDULED)
                norms = [None if each.grad_norm is None else float(each.grad_norm) for each in results]
                losses = whole([float(each.loss) for each in results])
                found.append([workload, optimizer, accumulation, clip_norm, name, losses, norms])
    return found


def continuations():
    """Losses of four steps, and of the same four again after everything was restored."""
    found = {}
    for name in ("single", *DISTRIBUTED):
        for precision in ("fp32", "bf16-pure", "bf16-master"):
            run = Run(name, precision=precision, steps=20)
            run.losses(3)
            state = copy.deepcopy(run.engine.state_dict())
            batches = [
                next(run.subject.batches(DataShard(run.world.rank, run.world.size, 8, 1, seed)))
                for seed in range(4)
            ]
            first, again = (_replayed(run.engine, batches) for _ in range(2) if _restored(run.engine, state))
            found[f"{name} {precision}"] = [first, again]
    return found


def _restored(engine, state):
    engine.load_state_dict(copy.deepcopy(state))
    return True


def _replayed(engine, batches):
    return [float(engine.train_step([batch], lambda _phase: None).loss) for batch in batches]


def half_precision():
    """Fp16 on the CPU, which the plan refuses for its slowness: scaling, clipping, and a step with an overflow."""
    found = {}
    for name in ("single", *DISTRIBUTED):
        # Of short sequences the gradients, scaled by the first scale, overflow of their own accord.
        options = {"precision": "fp16", "clip_norm": 0.5, "steps": 20, "workload_options": {"sequence_length": 64}}
        chosen = Run(name, **options)
        losses = [float(each.loss) for each in chosen.results(5)]
        norm = float(chosen.results(1)[0].grad_norm)
        before = [local(p).clone() for p in parameters(chosen.engine)]
        gradient = next(p for p in parameters(chosen.engine) if p.ndim == 2)

        def spoil(grad, rank=chosen.world.rank):
            return torch.full_like(grad, float("inf")) if rank == 0 else grad

        scale = chosen.engine.facts()["loss_scale"]
        hook = spoilable(chosen.engine, gradient).register_hook(spoil)
        result = chosen.results(1)[0]
        hook.remove()
        moved = any(not torch.equal(a, local(b)) for a, b in zip(before, parameters(chosen.engine), strict=True))
        after = chosen.results(1)[0]
        found[name] = {
            "losses": whole(losses),
            "norm": norm,
            "skipped": result.skipped,
            "moved": moved,
            "next_skipped": after.skipped,
            "scale_ratio": chosen.engine.facts()["loss_scale"] / scale,
        }
    return found


def parameters(engine):
    return [p for p in engine._module.parameters() if p.requires_grad]


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def spoilable(engine, parameter):
    """Return a parameter whose gradient hook fires in backward: FSDP2's are made afresh, so a module's output."""
    return parameter if not hasattr(parameter, "to_local") else _Output(engine._module)


class _Output:
    """Registers a hook on the gradient of the model's output."""

    def __init__(self, module):
        self._module = module

    def register_hook(self, hook):
        def forward_hook(_module, _inputs, output):
            output.register_hook(hook)

        return self._module.register_forward_hook(forward_hook)


class Odd(nn.Module):
    """Buffers of both kinds, and a parameter that nothing trains."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5)
        self.frozen = nn.Parameter(torch.empty(3), requires_grad=False)
        self.register_buffer("kept", torch.empty(3))
        self.register_buffer("derived", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return self.layer(x * self.frozen + self.kept + self.derived)


class OddWorkload:
    traits = WorkloadTraits(
        summary="odd tensors",
        source="this test",
        sizes={"one": WorkloadSize(parameters=20, global_batch=8)},
        default_size="one",
        blocks=("layer",),
    )

    def __init__(self, model=Odd):
        self._model = model

    def build(self):
        return self._model()

    def initialise(self, name, tensor, seed):
        values = torch.arange(tensor.numel(), dtype=torch.float32) / 10 + len(name) / 100
        tensor.copy_(values.view(tensor.shape))

    def batches(self, shard):
        step = 0
        while True:
            for micro in range(shard.accumulation):
                x = torch.tensor([[p / 8, step / 9, 1.0] for p in shard.positions(micro)])
                yield {"x": x}
            step += 1

    def loss(self, model, batch):
        return model(batch["x"]).float().square().mean()

    def evaluate(self, model):
        return {"out": float(model(torch.ones(2, 3)).float().sum())}


class Tied(Odd):
    """One tensor under two names."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 5)
        self.head.weight = self.layer.weight

    def forward(self, x):
        return super().forward(x) + self.head(x)


def odd_models():
    """Losses and an evaluation of a model with buffers of both kinds, a frozen parameter and a tied one."""
    found = {}
    for model in (Odd, Tied):
        for name in ("single", *DISTRIBUTED):
            if model is Tied and name in SHARDED:
                continue  # FSDP2 knows tied parameters within one group only
            for precision in ("fp32", "bf16-pure", "bf16-master"):
                run = Run(name, OddWorkload(model), workload="cnn", precision=precision, lr=0.1)
                losses = run.losses()
                with run.engine.evaluating() as lent:
                    out = run.subject.evaluate(lent)["out"]
                found[f"{model.__name__} {name} {precision}"] = [*losses, out]
    return found


def facts():
    """What engines say of themselves."""
    found = {}
    for name, fields in {
        "fsdp2": {"precision": "bf16-master"},
        "hsdp": {},
        "zero-redundancy": {"optimizer": "sgd-momentum/fused", "precision": "bf16-master"},
        "fsdp2 fused sgd": {"optimizer": "sgd-momentum/fused"},
    }.items():
        run = Run(name.split()[0], **fields)
        run.losses(3)
        run.engine.set_lr(0.5)
        found[name] = run.engine.facts()
    return found


def switched():
    """An optimizer with train and eval modes: what evaluation sees must be the same on every rank."""
    found = {}
    for name in ("single", *DISTRIBUTED):
        for precision in ("fp32", "bf16-master"):
            run = Run(name, optimizer="torch_engines:Averaging", lr=0.1, precision=precision, steps=20)
            run.losses(5)
            with run.engine.evaluating() as lent:
                value = float(run.subject.evaluate(lent)["validation_loss"])
            found[f"{name} {precision}"] = [value, *run.losses(3)]
    return found


class Averaging(torch.optim.Optimizer):
    """SGD that is evaluated at the mean of its iterates."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self._training, self._count = True, 0

    @torch.no_grad()
    def step(self, closure=None):
        assert self._training
        self._count += 1
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                mean = state.setdefault("mean", torch.zeros_like(p))
                p.add_(p.grad, alpha=-group["lr"])
                mean.lerp_(p, 1 / self._count)

    @torch.no_grad()
    def _swap(self, training):
        if self._training is not training:
            self._training = training
            for p, state in self.state.items():
                kept = p.clone()
                p.copy_(state["mean"])
                state["mean"].copy_(kept)

    def eval(self):
        self._swap(training=False)

    def train(self):
        self._swap(training=True)


def apex_distributed():
    """Losses, norms and what is held of the engine around DistributedFusedAdam, over a double of it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "apex_double"))
    found = {}
    for precision in ("fp32", "bf16-master"):
        for accumulation, clip_norm in ((1, None), (4, 0.3)):
            for name, optimizer in (("single", "adamw/forloop"), ("apex-distributed", "adamw/apex-distributed")):
                micro = 1 if name == "single" else accumulation
                more = {"clip_norm": clip_norm, "precision": precision, "schedule": "warmup-cosine"}
                run = Run(name, optimizer=optimizer, accumulation=micro, **more)
                results = run.results()
                losses = whole([float(each.loss) for each in results])
                norms = [None if each.grad_norm is None else float(each.grad_norm) for each in results]
                found[f"{name} {precision} {accumulation}"] = {
                    "losses": losses,
                    "norms": norms,
                    "held": occupied(run.engine.tensors()),
                    "optimizer": run.engine.facts()["optimizer"],
                }
    run = Run("apex-distributed", optimizer="adamw/apex-distributed")
    run.losses(3)
    state = copy.deepcopy(run.engine.state_dict())
    shards = [DataShard(run.world.rank, run.world.size, 8, 1, seed) for seed in range(4)]
    batches = [next(run.subject.batches(shard)) for shard in shards]
    found["continued"] = [_replayed(run.engine, batches) for _ in range(2) if _restored(run.engine, state)]
    return found


QUESTIONS = (
    losses_of_options,
    grid,
    continuations,
    half_precision,
    odd_models,
    facts,
    switched,
    apex_distributed,
)


def main(out, names):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for question in QUESTIONS:
        if not names or question.__name__ in names:
            found = question()
            if dist.get_rank() == 0:
                (out / f"{question.__name__}.json").write_text(json.dumps(found), encoding="utf-8")
    assert "deepspeed" not in sys.modules, "no strategy of torch's needs it"
    dist.barrier()  # a rank that leaves first would break off connections that the other still closes
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
