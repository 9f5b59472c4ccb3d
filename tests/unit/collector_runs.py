"""A real, small training run with collectors, in this process, for the tests of collectors."""

import torch

from harness.interfaces import DataShard, Observed, World
from harness.loop import steps, turns
from harness.plan import resolve
from harness.registry import OPTIMIZERS, WORKLOADS, strategy
from harness.spec import RunSpec


def train(*collectors, optimizer="adamw/foreach", workload="linear_regression", local_rank=0, **fields):
    """Train and return name -> the values reported: (value,) or the series, with the steps of a series."""
    from harness.inspection import constructors
    from harness.machine import Machine

    entry = OPTIMIZERS.get(optimizer)
    machine = Machine(
        hostname="here", system="", cpu="", cores=1, memory_bytes=1, python="", torch=torch.__version__,
        constructors=constructors([entry.target], {}),
    )  # fmt: skip
    world = World(rank=local_rank, size=1, local_rank=local_rank, device=torch.device("cpu"), backend=None)
    trained = WORKLOADS.get(workload)()
    chosen = strategy("single")
    asked = RunSpec(
        workload=workload, optimizer=optimizer, device="cpu", **{"steps": 6, "turn_steps": 2, **fields}
    )
    spec = resolve(asked, trained.traits, entry, chosen, machine)
    engine = chosen.start(trained, entry, spec, world)
    observed = Observed(spec=spec, workload=trained.traits, engine=engine, world=world)
    for collector in collectors:
        collector.start(observed)
    batches = trained.batches(DataShard(0, 1, spec.global_batch, spec.accumulation, spec.seed))
    readings = []
    for _ in turns(steps(engine, batches, spec, world.device, collectors), spec, lambda: None):
        for collector in collectors:
            readings += collector.turn()
    for collector in collectors:
        readings += collector.turn()  # as after the last evaluation
        readings += collector.stop()
    engine.close()
    return gather(readings)


def gather(readings):
    found = {}
    for reading in readings:
        if reading.series is None:
            assert reading.info.name not in found, "one value of the run"
            found[reading.info.name] = reading.value
        else:
            found.setdefault(reading.info.name, []).extend(zip(reading.steps, reading.series, strict=True))
    return found
