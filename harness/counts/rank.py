"""One rank that counts: ``torchrun --nproc-per-node N -m harness.counts.rank JOBS OUT``.

JOBS: a JSON list of `Job` for N ranks. OUT: a folder that gets ``rank-R.jsonl``, a `RankResult` a job, one
a line; a job without a line when the world has ended is the one that ended it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness import contract, launching
from harness import world as ranks
from harness.counts.compiling import Compilations
from harness.counts.model import Job, RankResult
from harness.counts.profiling import profiled
from harness.counts.sampling import long_run
from harness.interfaces import DataShard
from harness.leaving import leave_world
from harness.loop import on_device
from harness.registry import OPTIMIZERS, WORKLOADS, strategy
from harness.schedule import factor
from harness.seeding import seed_generators
from harness.verification import entering

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.counts.model import RankCounts
    from harness.interfaces import Engine, Workload, World
    from harness.spec import RunSpec

WARM_UP = 6
"""Steps before those that are counted: state is made in the first, DDP forms its buckets after it, and a step that
is compiled for changing numbers has seen some."""

LAST_WORD_S = 3
"""torchrun ends every rank as soon as one has failed: so long another may take to say why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Count every job, together with the other ranks; end at one that fails."""
    parser = argparse.ArgumentParser(prog="harness.counts.rank", description="One rank that counts.")
    parser.add_argument("jobs", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    ranks.begin()
    jobs = [Job.model_validate(each) for each in json.loads(options.jobs.read_text(encoding="utf-8"))]
    gc.freeze()  # what imports made stays: no look at what is alive, and no collection, needs to walk it
    for job in jobs:
        try:
            result = counted(job, ranks.enter(job.spec))
        except Exception as error:  # noqa: BLE001  # whatever the code under test raises is told
            traceback.print_exc()
            launching.announce_failure(ranks.number("RANK", 0), f"{type(error).__name__}: {error}")
            time.sleep(LAST_WORD_S)
            return 1
        path = options.out / f"rank-{ranks.number('RANK', 0)}.jsonl"
        with path.open("a", encoding="utf-8") as lines:
            print(result.model_dump_json(), file=lines, flush=True)
    leave_world()
    return 0


def counted(job: Job, world: World) -> RankResult:
    """Set up a job's engine, train some steps, count, and go on for as long as drift is to be seen.

    Raises:
        UndeclaredError: the optimizer needs what its traits do not declare.
        Exception: whatever workload, strategy or optimizer raises.
    """
    spec = job.spec
    entering.require(OPTIMIZERS.get(spec.optimizer), spec)
    seed_generators(spec.seed)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # what an earlier job of this process compiled must not count
    before, compilations = set(sys.modules), Compilations()
    workload = contract.construct(WORKLOADS.get(spec.workload), spec)
    engine = strategy(spec.strategy).start(workload, OPTIMIZERS.get(spec.optimizer), spec, world)
    imports = Counter(name.partition(".")[0] for name in set(sys.modules) - before)
    step = _stepper(engine, workload, spec, world, compilations)
    for _ in range(WARM_UP):
        step()
    counts: RankCounts = {
        **profiled(step, engine, world),
        "graphs": dict(compilations.graphs()),
        "graph_breaks": dict(compilations.breaks()),
        "recompiles": dict(compilations.recompiles()),
        "imports": dict(sorted(imports.items())),
    }
    drift = long_run(step, job.drift_steps, world.device) if job.drift_steps else None
    engine.close()
    gc.collect()
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    return RankResult(torch=torch.__version__, device=device, counts=counts, drift=drift)


def _stepper(
    engine: Engine, workload: Workload, spec: RunSpec, world: World, compilations: Compilations
) -> Callable[[], None]:
    """Return what trains one step, as the measured loop does."""
    shard = DataShard(world.rank, world.size, spec.global_batch or 1, spec.accumulation, spec.seed)
    batches = contract.checked(workload.batches(shard), shard)
    done = [0]

    def step() -> None:
        engine.set_lr(factor(spec.schedule, min(done[0], spec.steps - 1), spec.steps))
        micro_batches = [on_device(next(batches), world.device) for _ in range(spec.accumulation)]
        engine.train_step(micro_batches, _unmarked)
        compilations.look()
        done[0] += 1

    return step


def _unmarked(_phase: object) -> None:
    """Mark no phase: only counts are of interest."""


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code or any(not each.daemon for each in threading.enumerate() if each is not threading.main_thread()):
        os._exit(code)  # threads that the code under test left must not keep the rank from ending
