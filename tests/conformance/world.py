"""One torchrun world that trains many cells, one after the other: ``world.py CELLS OUT``.

CELLS: a JSON list of resolved specs, each with ``patch``, the name of what is changed for it in PATCHES.
OUT: a folder; each rank appends a JSON line a cell to ``rank-N.jsonl``. A cell that has no line when the world has
ended is the one that ended it.
"""

import contextlib
import gc
import json
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from harness import contract
from harness.collectors.memory import local_parts
from harness.errors import UnsupportedError
from harness.interfaces import DataShard, World
from harness.leaving import leave_world
from harness.loop import steps
from harness.model_facts import units_of
from harness.registry import OPTIMIZERS, WORKLOADS, strategy
from harness.spec import RunSpec

HANG_S = 60


def newton_schulz_in_fp32(gradient, ns_coefficients, ns_steps, eps):
    """torch's Newton-Schulz iteration without its rounding to bfloat16."""
    a, b, c = ns_coefficients
    x = gradient.float()
    transposed = x.size(0) > x.size(1)
    x = x.T if transposed else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x


@contextlib.contextmanager
def muon_in_fp32():
    from torch.optim import _muon

    kept = _muon._zeropower_via_newtonschulz
    _muon._zeropower_via_newtonschulz = newton_schulz_in_fp32
    try:
        yield
    finally:
        _muon._zeropower_via_newtonschulz = kept


@contextlib.contextmanager
def unclipped_config_left_out():
    """Leaves ``gradient_clipping`` out of DeepSpeed's config, as most tutorials do."""
    import deepspeed

    real = deepspeed.initialize

    def initialize(*words, config=None, **named):
        config = {key: value for key, value in (config or {}).items() if key != "gradient_clipping"}
        return real(*words, config=config, **named)

    deepspeed.initialize = initialize
    try:
        yield
    finally:
        deepspeed.initialize = real


@contextlib.contextmanager
def one_ulp_in_gradients():
    """Changes the last bit of every element of every gradient, up or down by a draw."""
    from harness.strategies.torch_engine import TorchEngine

    real = TorchEngine._build
    generator = torch.Generator().manual_seed(7)

    def nudged(gradient):
        signs = torch.randint(0, 2, gradient.shape, generator=generator) * 2 - 1
        return gradient * (1 + signs * torch.finfo(gradient.dtype).eps)

    def build(self):
        model = real(self)
        for parameter in model.parameters():
            parameter.register_hook(nudged)
        return model

    TorchEngine._build = build
    try:
        yield
    finally:
        TorchEngine._build = real


@contextlib.contextmanager
def other_draws():
    """Leaves torch's generator elsewhere, for optimizers that draw numbers."""
    torch.manual_seed(7)
    yield


PATCHES = {
    None: contextlib.nullcontext,
    "one-ulp": one_ulp_in_gradients,
    "other-draws": other_draws,
    "muon-fp32": muon_in_fp32,
    "no-clipping-entry": unclipped_config_left_out,
}


def train(spec, world):
    """Return losses (the mean over ranks), gradient norms and what is held at the end."""
    workload = contract.construct(WORKLOADS.get(spec.workload), spec)
    engine = strategy(spec.strategy).start(workload, OPTIMIZERS.get(spec.optimizer), spec, world)
    try:
        shard = DataShard(world.rank, world.size, spec.global_batch, spec.accumulation, spec.seed)
        batches = contract.checked(workload.batches(shard), shard)
        losses, norms = [], []
        for number, result in enumerate(steps(engine, batches, spec, world.device, []), start=1):
            losses.append(result.loss)
            norms.append(result.grad_norm)
            if number == spec.warmup_steps:
                engine.verify_claims()
        mean = torch.stack([loss.detach().float().reshape(()) for loss in losses])
        if world.size > 1:
            dist.all_reduce(mean)
        with engine.evaluating() as model:
            evaluated = dict(workload.evaluate(model))
        held, elements = {}, {}
        for category, tensor in engine.tensors():
            for part in local_parts(tensor):
                held[category] = held.get(category, 0) + part.numel() * part.element_size()
                if part.numel() > 1:
                    elements[category] = elements.get(category, 0) + part.numel()
        found = engine.facts()
        return {
            "losses": (mean / world.size).tolist(),
            "norms": [None if norm is None else float(norm) for norm in norms],
            "evaluated": {key: float(value) for key, value in evaluated.items()},
            "held_bytes": held,
            "elements": elements,
            "predicted": predicted(spec, workload, world),
            "optimizer": found.get("optimizer"),
        }
    finally:
        engine.close()


def predicted(spec, workload, world):
    """Return what the strategy's own rule says of this rank, or None where it has none."""
    from harness.interfaces import Predicts

    chosen = strategy(spec.strategy)
    if not isinstance(chosen, Predicts):
        return None
    with torch.device("meta"):
        model = workload.build()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    blocks = units_of(model, workload.traits.blocks).names
    found = chosen.predict(shapes, spec, OPTIMIZERS.get(spec.optimizer).traits, world, blocks)
    return {"held_bytes": dict(found.held_bytes), "payload_bytes": dict(found.payload_bytes)}


def tried(cell, world):
    patch = PATCHES[cell.pop("patch", None)]
    spec = RunSpec.model_validate(cell)
    if OPTIMIZERS.get(spec.optimizer).traits.compiled:
        torch.compiler.reset()  # a run has a process of its own: what was compiled before must not count
    try:
        alone = World(0, 1, 0, world.device, None) if strategy(spec.strategy).one_rank else world
        if spec.optimizer.partition("/")[2].startswith("deepspeed") or spec.strategy.startswith("zero"):
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        torch.manual_seed(spec.seed)
        with patch():
            return {"outcome": "completed", **train(spec, alone)}
    except UnsupportedError as error:
        return {"outcome": "unsupported", "reason": str(error)}
    except Exception as error:  # noqa: BLE001  # a fault of the cell's, told in its line
        traceback.print_exc()
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}


def main(cells, out):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=HANG_S))
    world = World(rank, size, rank, torch.device("cpu"), "gloo")
    with (out / f"rank-{rank}.jsonl").open("a", encoding="utf-8") as lines:
        for cell in json.loads(cells.read_text(encoding="utf-8")):
            started = time.monotonic()
            found = tried(cell, world)
            found["took_s"] = time.monotonic() - started
            print(json.dumps(found), file=lines, flush=True)
            if found["outcome"] == "failed":
                os._exit(1)  # perhaps alone, and the others wait in a collective: the next cell needs a new world
            gc.collect()
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
