"""What the harness adds to a step under ddp, fsdp2 and zero2: ratios to the same step written by hand.

``python tests/benchmarks/strategies.py [ddp|fsdp2|zero2 ...]``. Two ranks of one torchrun world take turns of a
few steps in random order: the measured loop, the bare calls on the same model and optimizer, those again (the
error of the method), and a model, wrapper and optimizer built by hand (another allocation: a per cent).
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time

TURN, ROUNDS, LAUNCHES = 4, 40, 5
WORKLOAD, SIZE = "gpt", "nano"


def engine_of(name: str, world):
    """Return the harness's engine, its workload, spec and an endless stream of its steps."""
    from harness.collectors.convergence import Convergence  # noqa: F401  # imported before anything is timed
    from harness.interfaces import DataShard, Observed
    from harness.loop import steps
    from harness.plan import resolve, workload_traits
    from harness.probe import machine
    from harness.registry import COLLECTORS, OPTIMIZERS, WORKLOADS, strategy
    from harness.spec import RunSpec

    entry, chosen = OPTIMIZERS.get("adamw/foreach"), strategy(name)
    spec = RunSpec(
        workload=WORKLOAD,
        size=SIZE,
        optimizer=entry.name,
        strategy=name,
        world_size=2,
        steps=10**9,
        warmup_steps=0,
    )
    spec = resolve(spec, workload_traits(WORKLOAD), entry, chosen, machine())
    subject = WORKLOADS.get(WORKLOAD)(size=SIZE)
    engine = chosen.start(subject, entry, spec, world)
    shard = DataShard(world.rank, world.size, spec.global_batch, 1, 0)
    collectors = [COLLECTORS.get(each)() for each in spec.collectors]
    for collector in collectors:
        collector.start(Observed(spec, subject.traits, engine, world))
    stream = steps(engine, subject.batches(shard), spec, world.device, collectors)
    return engine, subject, stream, subject.batches(shard), lambda: [list(each.turn()) for each in collectors]


def by_hand(name: str, subject, world):
    """Return model and optimizer as a user would write them; for zero2 DeepSpeed's engine."""
    import torch

    model = subject.build()
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            subject.initialise(label, parameter, 0)
    if name == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (world.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif name == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, foreach=True)
    if name != "zero2":
        return model, optimizer
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0], None


def stepping(model, optimizer, subject, batches):
    """Return a function: a few steps without the harness."""

    def torch_steps() -> None:
        for _ in range(TURN):
            optimizer.zero_grad(set_to_none=True)
            subject.loss(model, next(batches)).backward()
            optimizer.step()

    def deepspeed_steps() -> None:
        for _ in range(TURN):
            model.backward(subject.loss(model, next(batches)))
            model.step()

    return deepspeed_steps if optimizer is None else torch_steps


def launch(name: str) -> None:
    """Run one rank; rank 0 prints the ratios of each round as JSON."""
    import torch
    import torch.distributed as dist

    from harness.interfaces import World

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"), "gloo")
    engine, subject, stream, batches, turn_end = engine_of(name, world)
    if name == "zero2":
        model, optimizer = engine._engine, None
    else:
        model, optimizer = engine._model, engine._optimizer
    hand_model, hand_optimizer = by_hand(name, subject, world)
    bare = stepping(model, optimizer, subject, batches)
    arms = {
        "harness": lambda: list(itertools.islice(stream, TURN)),
        "bare": bare,
        "bare again": bare,
        "by hand": stepping(hand_model, hand_optimizer, subject, batches),
    }
    for arm in arms.values():
        arm()
    turn_end()
    order, draw = list(arms), random.Random(0)  # the same order on every rank
    spent: dict[str, list[float]] = {each: [] for each in arms}
    for _ in range(ROUNDS):
        draw.shuffle(order)
        for each in order:
            dist.barrier()
            start = time.perf_counter()
            arms[each]()
            spent[each].append((time.perf_counter() - start) / TURN)
        turn_end()
    if world.rank == 0:
        ratios = {
            each: hodges_lehmann([a / b for a, b in zip(spent[each], spent["bare"], strict=True)]) for each in arms
        }
        print(json.dumps({**ratios, "step_s": statistics.median(spent["bare"])}))
    sys.stdout.flush()
    os._exit(0)


def hodges_lehmann(values: list[float]) -> float:
    """Return the median of the means of all pairs."""
    return statistics.median((a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2))


def main(names: list[str]) -> None:
    """Launch each strategy's world several times and print the means."""
    for name in names or ["ddp", "fsdp2", "zero2"]:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
        found = []
        for _ in range(LAUNCHES):
            done = subprocess.run([*words, "launch", name], check=True, capture_output=True, text=True)
            found.append(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))))
        step = statistics.median(each["step_s"] for each in found)
        print(f"{name}, {WORKLOAD} {SIZE}, two ranks, step {step * 1e3:.1f} ms, {LAUNCHES} x {ROUNDS} rounds")
        for arm in ("harness", "bare again", "by hand"):
            ratios = [each[arm] for each in found]
            listed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            print(f"    {arm} / bare: {statistics.mean(ratios):.4f}  ({listed})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["launch"]:
        launch(sys.argv[2])
    else:
        main(sys.argv[1:])
