"""Makes proofs inside real engines, one after the other, in one world of ranks.

``torchrun --nproc-per-node N -m harness.verification.world JOBS OUT``. JOBS: a JSON list of `Job` for N ranks.
OUT: rank 0 appends a JSON line a job, the proof's `Certificate`. A job without a line when the world has ended is
the one that ended it; one whose line says ``failed`` ended it too, and those after it need a new world.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness import world as ranks
from harness.errors import OptbenchError, UndeclaredError, UnsupportedError
from harness.interfaces import World
from harness.machine import Machine
from harness.registry import OPTIMIZERS, strategy
from harness.verification.engines import trials
from harness.verification.identity import Job
from harness.verification.prove import certificate, reference, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.verification.certificate import Certificate, Check

HANG_S = 150
"""A collective that takes longer waits for a rank that will not come."""

LAST_WORD_S = 3
"""torchrun ends every rank as soon as one has failed: so long rank 0 may take to write the line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make every proof asked for, with the other ranks; end the world at one that failed."""
    parser = argparse.ArgumentParser(
        prog="harness.verification.world",
        description="Make proofs inside real engines, one after the other, in one world of ranks.",
    )
    parser.add_argument("jobs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--machine", type=Path, help="what this machine can run, as JSON; default: it is looked at"
    )
    options = parser.parse_args(arguments)
    ranks.begin()
    torch.set_num_threads(1)
    jobs = [Job.model_validate(each) for each in json.loads(options.jobs.read_text(encoding="utf-8"))]
    if not jobs:
        return 0
    known = None if options.machine is None else Machine.model_validate_json(options.machine.read_bytes())
    world = ranks.join(jobs[0].spec.device, timeout=timedelta(seconds=HANG_S))
    for job in jobs:
        made = proved(job, world, known)
        if world.rank == 0:
            with options.out.open("a", encoding="utf-8") as lines:
                print(made.model_dump_json(), file=lines, flush=True)
        if made.outcome == "failed":
            if world.rank != 0:
                time.sleep(LAST_WORD_S)
            return 1  # perhaps this rank alone, and the others wait in a collective: the next needs a new world
        gc.collect()
    return 0


def proved(job: Job, world: World, machine: Machine | None = None) -> Certificate:
    """Return the certificate of one job; on all ranks the same, unless one of them failed.

    Args:
        job: what to prove.
        world: of all ranks.
        machine: that the job was planned for; None: rank 0 looks.
    """
    started = time.monotonic()
    optimizer = OPTIMIZERS.get(job.spec.optimizer)
    checks: Sequence[Check] = ()
    reason: str | None
    cause = held_to = None
    undeclared = False
    if optimizer.traits.compiled:
        torch.compiler.reset()  # a run has a process of its own: what was compiled before must not count
    try:
        held_to = reference(optimizer.traits.algorithm, job.like)
        ranks.arithmetic(job.spec)
        alone = strategy(job.spec.strategy).one_rank
        mine = World(0, 1, 0, world.device, None) if alone else world
        checks, cause = trials(optimizer, job.spec, mine, held_to, machine)
        outcome, reason = verdict(checks)
    except UnsupportedError as error:
        outcome, reason = "unsupported", str(error)
        undeclared = isinstance(error, UndeclaredError)
    except Exception as error:  # noqa: BLE001  # whatever the code under test raises is its own row
        traceback.print_exc()
        outcome = "failed"
        reason = str(error) if isinstance(error, OptbenchError) else f"{type(error).__name__}: {error}"
    made = certificate(job, outcome, reason, cause, checks, held_to, time.monotonic() - started)
    return made.model_copy(update={"undeclared": undeclared})


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that the code under test left must not keep a proof from ending
