"""Makes proofs over plain tensors, one after the other: ``python -m harness.verification.prove JOBS OUT``.

JOBS: a JSON list of `Job`. OUT: gets a JSON line a job, the proof's `Certificate`; a job without a line when the
process has ended is the one that ended it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from harness import world as ranks
from harness.errors import OptbenchError, UndeclaredError, UnsupportedError
from harness.garbage import collection_paused
from harness.registry import OPTIMIZERS
from harness.spec import suggest
from harness.verification.certificate import Certificate
from harness.verification.identity import Job, user_sources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from harness.references.reference import Reference
    from harness.verification.certificate import Check


def main(arguments: Sequence[str] | None = None) -> int:
    """Make every proof asked for; a failure becomes a line."""
    parser = argparse.ArgumentParser(
        prog="harness.verification.prove", description="Make proofs over plain tensors, one after the other."
    )
    parser.add_argument("jobs", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    ranks.begin()
    with collection_paused():
        import torch
        import torch._dynamo  # torch.optim's constructors import it

    torch.set_num_threads(1)
    with options.out.open("a", encoding="utf-8") as lines:
        for each in json.loads(options.jobs.read_text(encoding="utf-8")):
            print(proved(Job.model_validate(each)).model_dump_json(), file=lines, flush=True)
    return 0


def proved(job: Job) -> Certificate:
    """Return the certificate of one job over plain tensors."""
    started = time.monotonic()
    spec = job.spec
    optimizer = OPTIMIZERS.get(spec.optimizer)
    checks: Sequence[Check] = ()
    reason: str | None
    cause = held_to = None
    undeclared = False
    try:
        from harness.verification.plain import trials

        ranks.arithmetic(spec)
        if optimizer.traits.compiled:
            _compile_as_alone()

        held_to = reference(optimizer.traits.algorithm, job.like)
        checks, cause = trials(optimizer, spec, held_to)
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


def _compile_as_alone() -> None:
    """Forget what was compiled for other proofs, and let every instance and shape of this one be compiled too.

    Past dynamo's limit a step silently runs uncompiled, or fails since its flags were chosen for compiling.
    """
    import torch
    from torch._dynamo import config

    torch.compiler.reset()
    for name in ("recompile_limit", "accumulated_recompile_limit", "cache_size_limit"):
        if hasattr(config, name):
            setattr(config, name, 4096)


def reference(algorithm: str, like: str | None) -> Reference | None:
    """Return the reference of an algorithm, or of the one that the user holds it to.

    Raises:
        OptbenchError: there is none for what the user named.
    """
    from harness.references.table import REFERENCES
    from harness.references.table import reference as known

    found = known(like or algorithm)
    if like and found is None:
        raise OptbenchError(f"--like {like}: is no algorithm with a reference; {suggest(like, list(REFERENCES))}")
    return found


def verdict(checks: Sequence[Check]) -> tuple[str, str | None]:
    """Return the outcome of some checks, and which failed."""
    wrong = [check for check in checks if check.verdict == "wrong"]
    if not wrong:
        return "passed", None
    return "wrong", "; ".join(f"{check.name}: {_said(check)}" for check in wrong[:3])


def _said(check: Check) -> str:
    words = [] if check.detail is None else [check.detail]
    if check.error is not None and check.bound is not None:
        words.append(f"off by {check.error:.1e} of the update, bound {check.bound:.1e}")
    if check.step is not None:
        words.append(f"step {check.step}" + (f", tensor {check.tensor}" if check.tensor else ""))
    return ", ".join(words)


def certificate(
    job: Job,
    outcome: str,
    reason: str | None,
    cause: str | None,
    checks: Sequence[Check],
    held_to: Reference | None,
    took_s: float,
) -> Certificate:
    """Return the certificate of what was found."""
    import torch

    spec = job.spec
    optimizer = OPTIMIZERS.get(spec.optimizer)
    variants: dict[str, JsonValue] = {}
    if held_to is not None:
        variants = {**held_to.variants, **getattr(optimizer, "variants", {})}
    return Certificate.model_validate(
        {
            "optimizer": spec.optimizer,
            "strategy": spec.strategy,
            "precision": spec.precision,
            "world_size": spec.world_size or 1,
            "options": spec.optimizer_options,
            "like": job.like,
            "reference": None if held_to is None else f"{held_to.algorithm}: {held_to.source}",
            "variants": {name: _plain(value) for name, value in variants.items()},
            "outcome": outcome,
            "reason": reason,
            "cause": cause,
            "checks": [check.model_dump() for check in checks],
            "subject": {
                "class": optimizer.target,
                "torch": torch.__version__,
                "device": spec.device or "cpu",
                "sources": user_sources(sys.modules.values()),
            },
            "took_s": took_s,
            "made_unix_s": time.time(),
        }
    )


def _plain(value: object) -> JsonValue:
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads that the code under test left must not keep a proof from ending
