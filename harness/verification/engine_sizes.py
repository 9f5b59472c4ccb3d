"""A trial of a few steps through a real engine whose shards end beside the edges of vectors, blocks and chunks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from harness.verification.certificate import Check
from harness.verification.comparing import Difference
from harness.verification.driving import settled, simple
from harness.verification.known import updates
from harness.verification.linear import ODD_SHAPES
from harness.verification.playing import Step
from harness.verification.size_causes import named
from harness.verification.sized import Found, joined, judged
from harness.verification.stream import Group, Member, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.interfaces import Optimizer, World
    from harness.spec import RunSpec
    from harness.verification.comparing import Held
    from harness.verification.known import Trial

STEPS = 4
"""The last only shows what the one before has done."""
ROUNDINGS = 8
"""Of the gradient on its way: divided, reduced."""
NAME = "sizes"

_SHORT = [shape for name, shape in ODD_SHAPES.items() if "short" in name]
_TRIED = ", ".join(
    " x ".join(f"{each:,}" for each in shape) for name, shape in ODD_SHAPES.items() if "short" not in name
)


def sized(optimizer: Optimizer, spec: RunSpec, world: World, held: Held | None) -> tuple[Check, str | None]:
    """Hold every element of large and of many parameters to the reference; every rank of the world calls it.

    Args:
        optimizer: registry entry that the engine is started with.
        spec: as `harness.verification.engines.trials` gets it.
        world: this rank.
        held: the reference; None: looked at is whether every element moves.

    Returns:
        The check, and the cause if it is wrong.
    """
    if optimizer.traits.compiled:
        told = "left out: a step over many tensors compiles for minutes"
        return Check(name=NAME, verdict="not applicable", detail=told), None
    words = f"parameters of {_TRIED} elements and {len(_SHORT)} of 1 to 7, over {world.size} ranks"
    chosen = settled(spec, world, size="odd", steps=STEPS, warmup_steps=0, schedule="constant")
    trial = simple(NAME, optimizer, chosen, world)
    members = [Member(name, shape) for name, shape in ODD_SHAPES.items()]
    found = _unmoved(members, _steps(trial)) if held is None else _judged(held, trial, world, members)
    if not bool(found.wrong.any()):
        worst = found.worst
        return Check(
            name=NAME,
            verdict="passed",
            error=None if held is None else worst.error,
            bound=None if held is None else worst.bound,
            step=None if held is None else worst.step,
            tensor=None if held is None else worst.tensor,
            detail=words,
        ), None
    cause = named(found, Stage((Group("vector"),), tuple(members)))
    first = next(member.name for member, part in found.parts(found.wrong) if bool(part.any()))
    step = found.worst.step
    return Check(name=NAME, verdict="wrong", step=step, tensor=first, detail=f"{cause}; {words}"), cause


def _judged(held: Held, trial: Trial, world: World, members: Sequence[Member]) -> Found:
    bound = replace(held.bound, held=held.bound.held + ROUNDINGS * held.bound.unit)
    return judged(bound, members, _steps(trial), list(updates(held, trial, world.rank)))


def _steps(trial: Trial) -> list[Step]:
    pairs = zip(trial.values, trial.values[1:], strict=False)
    return [
        Step(
            number,
            1.0,
            {n: v.double().cpu() for n, v in before.items()},
            {},
            {n: v.double().cpu() for n, v in after.items()},
        )
        for number, (before, after) in enumerate(pairs, start=1)
    ]


def _unmoved(members: Sequence[Member], steps: Sequence[Step]) -> Found:
    """Return the elements that never move in tensors of which others do."""
    still = torch.stack([joined(members, s.before) == joined(members, s.after) for s in steps]).all(0)
    starts = [0]
    for each in members:
        starts.append(starts[-1] + math.prod(each.shape))
    found = Found(tuple(members), Difference(1, members[0].name, 0.0, 1.0), still, still, tuple(starts))
    kept = torch.cat([part & (not bool(part.all())) for _, part in found.parts(still)])
    return replace(found, wrong=kept, still=kept)
