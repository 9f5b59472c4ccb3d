"""Plans an arm in a process of the arm's own place: ``python -m harness.verbs.placed ASKED OUT``.

ASKED: a JSON `Asked`. OUT: gets a JSON `Placed`. Started by `launch.placing` with the arm's interpreter, import
path and environment, so that what is planned, and proved afterwards, is the arm's code.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from harness import probe, user_path
from harness.errors import InvalidInputError
from harness.machine import Machine  # noqa: TC001  # pydantic reads the annotation
from harness.plan import Cell, out_of_tree
from harness.registry import OPTIMIZERS
from harness.spec import RunSpec  # noqa: TC001  # likewise
from harness.verbs import here
from harness.verification.identity import Job, key, plain_job
from launch.placing import UNREAD

if TYPE_CHECKING:
    from collections.abc import Sequence


class Asked(BaseModel):
    """What is to be planned."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    spec: RunSpec
    machine: Machine | None = None
    """What the driver knows, without out-of-tree code; None: this interpreter's own is looked at."""


class Placed(BaseModel):
    """What an arm's place says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    cell: Cell | None = None
    """None: the arm cannot be planned; see `problems`."""
    job: Job | None = None
    """The proof that a run of it rests on; None: there is none over plain tensors of one rank."""
    key: str | None = None
    """What a certificate of the job holds for, the place left out."""
    problems: tuple[str, ...] = ()


def placed(asked: Asked) -> Placed:
    """Plan an arm with what this process can import."""
    optimizers, workloads = out_of_tree([asked.spec])
    try:
        known = probe.machine() if asked.machine is None else asked.machine
        machine = probe.extended(known, optimizers, workloads)
        (cell,) = here.plan([asked.spec], machine).cells
    except InvalidInputError as error:
        return Placed(problems=tuple(map(str, error.problems)))
    if cell.unsupported is not None or OPTIMIZERS.get(cell.spec.optimizer).traits.owns_reduction:
        return Placed(cell=cell)
    job = plain_job(cell.spec)
    return Placed(cell=cell, job=job, key=key(job, machine))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="harness.verbs.placed", description="Plan an arm in its own place.")
    parser.add_argument("asked", type=Path)
    parser.add_argument("out", type=Path)
    words = parser.parse_args(arguments)
    user_path.extend()
    try:
        asked = Asked.model_validate_json(words.asked.read_bytes())
    except ValidationError:
        return UNREAD
    words.out.write_text(placed(asked).model_dump_json(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
