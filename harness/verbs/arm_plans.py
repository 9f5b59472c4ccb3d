"""Arms of a live comparison, each planned and proved with its own path, interpreter and environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from harness.errors import InvalidInputError, Problem
from harness.plan import Cell, Plan
from harness.verbs import here
from harness.verbs.placed import Placed
from harness.verification import proofs, shelf
from harness.verification.identity import plain_job
from launch import placing, proving

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

    from harness.comparison.model import Arm
    from harness.machine import Machine
    from harness.store import Store
    from harness.verification.certificate import Certificate
    from harness.verification.identity import Job

MAKES_NO_PROOFS = "its optbench is older and makes no proofs"


class ArmPlans(NamedTuple):
    """What arms became.

    Attributes:
        plan: a cell an arm, in their order.
        machine: this one.
        placed: by arm, what its own place has said; without arms of the driver's code, or of an optbench of
            another version that cannot be asked.
    """

    plan: Plan
    machine: Machine
    placed: dict[int, Placed]


def plan_arms(arms: Sequence[Arm]) -> ArmPlans:
    """Plan every arm: in this process what is the driver's code, elsewhere in a process of the arm's place.

    Raises:
        InvalidInputError: with what is wrong with any of them.
    """
    own = [index for index, arm in enumerate(arms) if not placing.has_own(arm)]
    machine = here.machine(None, [arms[index].spec for index in own])
    placed: dict[int, Placed] = {}
    problems: list[Problem] = []
    for index, arm in enumerate(arms):
        if index in own:
            continue
        same = arm.python is None and not arm.env
        found = _readable(placing.planned(arm, machine.model_dump_json() if same else None))
        if found is None:
            own.append(index)
            continue
        placed[index] = found
        problems += [Problem(f"arm {arm.name}", each) for each in placed[index].problems]
    if problems:
        raise InvalidInputError(problems)
    own.sort()
    if any(
        placing.has_own(arms[index]) for index in own
    ):  # an optbench of another version: this one plans what it names
        machine = here.machine(None, [arms[index].spec for index in own])
    cells: dict[int, Cell] = {index: each.cell for index, each in placed.items() if each.cell is not None}
    if own:
        cells |= dict(zip(own, here.plan([arms[index].spec for index in own], machine).cells, strict=True))
    ordered = [cells[index].model_copy(update={"index": index}) for index in sorted(cells)]
    return ArmPlans(Plan(cells=tuple(ordered)), machine, placed)


def _readable(found: bytes | None) -> Placed | None:
    """Return what a place has said; None: nothing, or what only another version of optbench can read."""
    try:
        return None if found is None else Placed.model_validate_json(found)
    except ValidationError:
        return None


def proofs_in_place(
    arms: Sequence[Arm], plans: ArmPlans, store: Store, told: Callable[[str], None], quiet_s: float
) -> dict[int, dict[str, JsonValue]]:
    """Return, by arm whose code runs elsewhere than the driver's, what is proved of that code.

    Args:
        arms: with specs resolved.
        plans: of theirs.
        store: where certificates lie.
        told: hears of each proof that is made now.
        quiet_s: after so many seconds without one a proof hangs, if not sooner.

    Raises:
        OSError: a certificate cannot be written.
    """
    made: dict[int, dict[str, JsonValue]] = {}
    for index, arm in enumerate(arms):
        if not placing.has_own(arm):
            continue
        if not placing.proves(arm):
            made[index] = {"outcome": "unsupported", "reason": MAKES_NO_PROOFS}
            continue
        known = plans.placed.get(index)
        job = plain_job(plans.plan.cells[index].spec) if known is None else known.job
        if job is not None:
            key = None if known is None or known.key is None else placing.key(arm, known.key)
            made[index] = proofs.of_run(*_certified(arm, job, key, store, told, quiet_s))
    return made


def _certified(
    arm: Arm, job: Job, key: str | None, store: Store, told: Callable[[str], None], quiet_s: float
) -> tuple[str, Certificate]:
    """Return a stored certificate of an arm's code, or one that is made now; without a key none is stored."""
    from harness.verbs.verifying import line

    found = {} if key is None else shelf.find(store, [key])
    if key is not None and key in found:
        return found[key]
    made: list[Certificate] = []
    told(f"proving {job.spec.optimizer} of arm {arm.name}")
    proving.prove([job], lambda _, each: made.append(each), min(proving.QUIET_S, quiet_s), arm=arm)
    certificate = made[0].model_copy(update={"key": key})
    name = shelf.save(store, certificate) if key is not None and certificate.outcome in shelf.BELIEFS else ""
    told(f"arm {arm.name}: {line(certificate)}")
    return name, certificate
