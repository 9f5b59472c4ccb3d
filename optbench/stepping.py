"""A training step of a real engine in this process, for a benchmark to call."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.machine import Machine

STEPS_WITHOUT_END = 10**9


@functools.cache
def _machine(optimizers: tuple[str, ...], workloads: tuple[str, ...]) -> Machine:
    from harness import probe

    return probe.machine(list(optimizers), list(workloads), lambda _: None)


def built(fields: dict[str, Any]) -> tuple[Callable[[], float | None] | None, dict[str, Any], str]:
    """Return a step of a new engine, what to note of it, and why there is none where it cannot run here.

    Args:
        fields: of the spec; strategy ``single``.

    Raises:
        InvalidInputError: a name, size or option is unknown.
    """
    from harness import kernels
    from harness.plan import out_of_tree, plan
    from harness.spec import RunSpec

    endless = {"steps": STEPS_WITHOUT_END, "warmup_steps": 0, "schedule": "constant", "strategy": "single"}
    asked = RunSpec.model_validate({"device": "cpu", **fields, **endless})
    optimizers, workloads = out_of_tree([asked])
    machine = _machine(tuple(optimizers), tuple(workloads))
    cell = plan([asked], machine).cells[0]
    if cell.unsupported is not None:
        return None, {}, cell.unsupported
    failed = [text for text in kernels.ensure(cell.kernels, lambda _: None, "cpu").values() if text is not None]
    if failed:
        return None, {}, "; ".join(failed)
    return (*_engine(cell.spec), "")


def _engine(spec: Any) -> tuple[Callable[[], float | None], dict[str, Any]]:
    import torch

    from harness import contract
    from harness.interfaces import DataShard, World
    from harness.loop import steps
    from harness.registry import OPTIMIZERS, WORKLOADS, strategy
    from harness.seeding import seed_generators

    seed_generators(spec.seed)
    device = torch.device("cpu") if spec.device == "cpu" else torch.accelerator.current_accelerator()
    assert device is not None, "the plan has found it"
    world = World(0, 1, 0, device, None)
    workload = contract.construct(WORKLOADS.get(spec.workload), spec)
    engine = strategy(spec.strategy).start(workload, OPTIMIZERS.get(spec.optimizer), spec, world)
    shard = DataShard(0, 1, spec.global_batch or 1, spec.accumulation, spec.seed)
    stream = steps(engine, workload.batches(shard), spec, device, [])

    def step() -> float | None:
        result = next(stream)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return None if result.loss is None else float(result.loss)

    about = {
        "workload": spec.workload,
        "size": spec.size,
        "optimizer": spec.optimizer,
        "precision": spec.precision,
        "global_batch": spec.global_batch,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return step, about
