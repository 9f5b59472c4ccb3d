"""Trials of an optimizer inside a real engine: every rank drives it over the linear workload.

The gradient of each step is known beforehand (`harness.verification.linear`); the parameters are those that the
forward passes see, whatever the engine does in between. After each step the update is held to the reference's
update from the same parameters.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist

from harness import precision, probe
from harness.errors import UnsupportedError
from harness.rates import number
from harness.registry import load, strategy
from harness.verification import whole_tensors
from harness.verification.certificate import Check
from harness.verification.driving import resumed, settled, simple, stream_of
from harness.verification.engine_causes import ABSENCES, OWN, behaviours
from harness.verification.engine_sizes import sized
from harness.verification.entering import on_entry
from harness.verification.known import RIGHT, differences, norm, updates
from harness.verification.linear import Linear, initial
from harness.verification.plain import held

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.interfaces import Optimizer, World
    from harness.machine import Machine
    from harness.references.reference import Reference
    from harness.spec import RunSpec
    from harness.verification.comparing import Held
    from harness.verification.known import Behaviour, Trial, Values

CLEARER = 100.0
"""A cause is named where it explains all of the error, or all but a hundredth."""
ROUNDINGS = 8
"""Of the gradient on its way: divided, reduced, clipped."""
NORM_BOUND = 1e-4
"""Relative error of a reported gradient norm: added up in float32, squares of bfloat16 gradients too."""


ABSENT = (2, 3)
"""Steps, from 0, in which a parameter has no gradient."""


def trials(
    optimizer: Optimizer,
    spec: RunSpec,
    world: World,
    reference: Reference | None,
    machine: Machine | None = None,
) -> tuple[list[Check], str | None]:
    """Prove an optimizer inside an engine; every rank of the world calls it, and all return the same.

    Args:
        optimizer: registry entry that the engine is started with.
        spec: strategy and optimizer with their options, precision, device, lr; steps, batch and workload are the
            trials' own.
        world: this rank.
        reference: None: only the checks that need none are made.
        machine: that the spec was planned for; None: rank 0 looks.

    Returns:
        Checks, and the cause if one explains what is wrong.

    Raises:
        UnsupportedError: the strategy cannot run that.
        UndeclaredError: its step needs what its traits do not declare.
    """
    refused = _refused(optimizer, settled(spec, world), world, machine)
    if refused is not None:
        raise UnsupportedError(refused)
    entered = on_entry(optimizer, spec)
    made = [
        resumed("update", optimizer, settled(spec, world), world),
        simple("update, accumulated and clipped", optimizer, _clipping(optimizer, spec, world, machine), world),
    ]
    checks = entered + [check for trial in made for check in _of_passes(trial, optimizer, spec)]
    causes: list[str] = []
    if reference is not None and reference.update is not None:
        judge = _Judge(held_to(optimizer, spec, reference), world.rank)
        checks += [check for trial in made for check in judge.checks(trial)]
        if any(check.verdict == "wrong" for check in checks):
            causes = judge.causes(made)
        checks.append(_absent(optimizer, spec, world, judge))
    if whole_tensors.applies(optimizer, spec, is_held=reference is not None and reference.update is not None):
        checks += whole_tensors.checks(optimizer, settled(spec, world), made[0], world.device)
    replicas = _replicas(made, world)
    wrong = any(check.verdict == "wrong" for check in (*checks, replicas))
    if not any(_gathered(wrong, world)):
        known = None if reference is None or reference.update is None else held_to(optimizer, spec, reference)
        check, cause = sized(optimizer, spec, world, known)
        checks.append(check)
        causes += [cause] if cause else []
    return _agreed(_gathered((checks, causes), world), replicas)


def _refused(optimizer: Optimizer, spec: RunSpec, world: World, machine: Machine | None) -> str | None:
    """Return why this cell cannot run, or None; the caller's plan was for another workload.

    Rank 0 decides: where the machine is not given, it may have to probe it.
    """
    reason = None
    if world.rank == 0:
        found, traits = probe.machine() if machine is None else machine, Linear.traits
        reason = (
            precision.unsupported(spec, optimizer.traits, found)
            or strategy(spec.strategy).unsupported(spec, traits, optimizer.traits, found)
            or optimizer.unsupported(spec, traits, found)
        )
    return str(first) if (first := _gathered(reason, world)[0]) is not None else None


def _clipping(optimizer: Optimizer, spec: RunSpec, world: World, machine: Machine | None) -> RunSpec:
    """Return the spec of a trial that clips about half of its steps, none where the strategy refuses to."""
    chosen = settled(spec, world, accumulation=2)
    stream = stream_of(chosen)
    norms = sorted(norm(stream.gradient(step)) for step in range(chosen.steps))
    clipping = chosen.model_copy(update={"clip_norm": round(norms[len(norms) // 2] * 0.7, 3)})
    return chosen if _refused(optimizer, clipping, world, machine) else clipping


def _absent(optimizer: Optimizer, spec: RunSpec, world: World, judge: _Judge) -> Check:
    """Record what becomes of a parameter that takes no part in a few steps."""
    name = "a parameter without a gradient"
    known = strategy(spec.strategy).options
    unused = {"find_unused_parameters": True} if "find_unused_parameters" in known else {}
    chosen = settled(
        spec,
        world,
        steps=len(ABSENT) + 6,
        schedule="constant",
        workload_options={"without": list(ABSENT)},
        strategy_options={**spec.strategy_options, **unused},
    )
    try:
        trial = simple(name, optimizer, chosen, world)
    except Exception as error:  # noqa: BLE001  # an engine may refuse that, in whatever way
        return Check(name=name, verdict="recorded", detail=f"refused: {type(error).__name__}: {error}"[:300])
    for behaviour in ABSENCES:
        check = judge.worst(trial, behaviour)
        if check.verdict == "passed":
            return check.model_copy(update={"verdict": "recorded", "detail": behaviour.cause})
    return judge.worst(trial, ABSENCES[0])


def held_to(optimizer: Optimizer, spec: RunSpec, reference: Reference) -> Held:
    """Return the reference with the hyperparameters that the spec gives the optimizer."""
    hyperparameters = getattr(optimizer, "hyperparameters", None)
    if hyperparameters is not None:
        chosen: dict[str, Any] = hyperparameters(spec)
    else:
        known = load("harness.optimizers.algorithms:ALGORITHMS").get(reference.algorithm)
        own = dict(getattr(optimizer, "settings", _no_settings)(spec))
        own_lr = number(own.pop("lr", None))
        options = {**(known.options if known else {}), **own, **spec.optimizer_options}
        chosen = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        chosen["lr"] = next(rate for rate in (spec.lr, own_lr, known.lr) if rate is not None)
    lr = chosen.pop("lr")
    options = {**reference.variants, **chosen, **getattr(optimizer, "variants", {})}
    return held(optimizer, spec, reference, options, lr)


def _no_settings(_: RunSpec) -> dict[str, Any]:
    return {}


class _Judge:
    """Holds trials to a reference, on one rank."""

    def __init__(self, held: Held, rank: int) -> None:
        self._held, self._bound, self._rank = held, held.bound, rank

    def checks(self, trial: Trial) -> list[Check]:
        """Return what the updates are worth, those after loading apart."""
        rows = list(self._rows(trial, RIGHT))
        at = trial.resumed_at
        found = [_worst(trial.name, rows[:at])]
        if at is not None:
            # The step before loading ends in what the fresh engine starts from.
            found.append(_worst("resumed from a saved state", rows[at - 1 :], first=at))
        return found

    def worst(self, trial: Trial, behaviour: Behaviour) -> Check:
        """Return what the updates are worth if an engine is expected to behave so."""
        return _worst(trial.name, list(self._rows(trial, behaviour)))

    def _rows(self, trial: Trial, behaviour: Behaviour) -> Iterator[dict[str, tuple[float, float]]]:
        """Yield by step and tensor the error of the update and its bound, both relative to the update's size."""
        expected = updates(self._held, trial, self._rank, behaviour)
        for step, row in enumerate(differences(trial, expected)):
            before = trial.values[step]
            yield {name: self._measured(step + 1, before[name], *found) for name, found in row.items()}

    def _measured(self, step: int, before: torch.Tensor, difference: float, size: float) -> tuple[float, float]:
        if size == 0:
            return (0.0 if difference == 0 else math.inf), 1.0
        largest = float(before.abs().max())
        allowed = self._bound.at(step, largest, size, coded=False, matrix=before.ndim >= 2)
        allowed += ROUNDINGS * self._bound.unit
        return difference / size, allowed

    def causes(self, made: Sequence[Trial]) -> list[str]:
        """Return every behaviour that explains all trials, the simplest first."""
        enough = max(1.0, max(self._excess(trial, RIGHT) for trial in made) / CLEARER)
        longest = max(made, key=lambda trial: len(trial.factors))
        ratios: dict[str, float] = {}
        for each in behaviours(self._held.reference, longest):
            ratio = max(self._excess(trial, each, enough) for trial in made)
            ratios[each.cause] = min(ratio, ratios.get(each.cause, math.inf))
        explains = [cause for cause, ratio in ratios.items() if ratio <= 1]
        if explains or not ratios:
            return explains
        best = min(ratios, key=lambda cause: ratios[cause])
        return [best] if ratios[best] <= enough else []

    def _excess(self, trial: Trial, behaviour: Behaviour, enough: float = math.inf) -> float:
        """Return the largest error as a multiple of its bound; infinity once it is more than enough."""
        largest = 0.0
        for row in self._rows(trial, behaviour):
            largest = max(largest, *(_ratio(error, allowed) for error, allowed in row.values()))
            if largest > enough:
                return math.inf
        return largest


def _worst(name: str, rows: Sequence[dict[str, tuple[float, float]]], first: int = 1) -> Check:
    """Return the check whose error comes closest to its bound, or exceeds it most."""
    placed = [(e, b, step, tensor) for step, row in enumerate(rows, start=first) for tensor, (e, b) in row.items()]
    error, allowed, step, tensor = max(placed, key=lambda each: _ratio(each[0], each[1]))
    verdict = "passed" if error <= allowed else "wrong"
    return Check(name=name, verdict=verdict, error=error, bound=allowed, step=step, tensor=tensor)


def _ratio(error: float, allowed: float) -> float:
    return math.inf if math.isnan(error) else error / allowed


def _of_passes(trial: Trial, optimizer: Optimizer, spec: RunSpec) -> list[Check]:
    """Return the checks that need no reference."""
    suffix = ", accumulated" if trial.stream.accumulation > 1 else ""
    found = [_initial(f"initial values{suffix}", trial, spec.seed)]
    changed = [
        (step, name)
        for step, passes in enumerate(trial.passes, start=1)
        for later in passes[1:]
        for name, value in passes[0].items()
        if not torch.equal(value, later[name])
    ]
    if trial.stream.accumulation > 1 and not optimizer.traits.closure:
        found.append(_flag("parameters stand still within a step", changed))
        found.append(_norms(trial))
    still = [_alike(trial.values[step], trial.values[step + 1]) for step in range(len(trial.factors))]
    found.append(_moving(f"every step moves parameters{suffix}", still))
    return found


def _moving(name: str, still: Sequence[bool]) -> Check:
    """Judge steps without any change: fewer than all may be the algorithm's own, or lost in rounding."""
    steps = [step for step, each in enumerate(still, start=1) if each]
    if len(steps) == len(still):
        return Check(name=name, verdict="wrong", step=1, detail="none does")
    if steps:
        return Check(name=name, verdict="recorded", step=steps[0], detail=f"{len(steps)} of {len(still)} do not")
    return Check(name=name, verdict="passed")


def _alike(some: Values, others: Values) -> bool:
    return all(torch.equal(value, others[name]) for name, value in some.items())


def _flag(name: str, faults: Sequence[tuple[int, str]]) -> Check:
    if not faults:
        return Check(name=name, verdict="passed")
    step, tensor = faults[0]
    return Check(name=name, verdict="wrong", step=step, tensor=tensor)


def _initial(name: str, trial: Trial, seed: int) -> Check:
    seen, shapes = trial.passes[0][0], trial.stream.shapes
    differing = [each for each in shapes if not torch.equal(seen[each].cpu(), initial(each, seed, shapes[each]))]
    return _flag(name, [(1, each) for each in differing])


def _norms(trial: Trial) -> Check:
    """Hold the reported norm to the known gradient's, which tells of a factor that the update may be blind to."""
    name = "gradient norm"
    told = [(step, each) for step, each in enumerate(trial.norms) if each is not None]
    if not told:
        return Check(name=name, verdict="not applicable", detail="the engine reports none")
    errors = [(abs(each / norm(trial.stream.gradient(step)) - 1), step) for step, each in told]
    error, step = max(errors)
    verdict = "passed" if error <= NORM_BOUND else "wrong"
    return Check(name=name, verdict=verdict, error=error, bound=NORM_BOUND, step=step + 1)


def _replicas(made: Sequence[Trial], world: World) -> Check:
    """Compare the bits of what every rank's forward passes saw."""
    name = "replicas are identical"
    if world.size == 1:
        return Check(name=name, verdict="not applicable", detail="one rank")
    sums = [
        zlib.crc32(b"".join(value.contiguous().cpu().numpy().tobytes() for value in passes[0].values()))
        for trial in made
        for passes in trial.passes
    ]
    everyone = _gathered(sums, world)
    apart = [index for index, found in enumerate(zip(*everyone, strict=True)) if len(set(found)) > 1]
    if not apart:
        return Check(name=name, verdict="passed")
    where = "before the first step" if apart[0] == 0 else None
    return Check(name=name, verdict="wrong", step=max(1, apart[0]), detail=where)


def _gathered(mine: Any, world: World) -> list[Any]:
    if world.size == 1 or world.backend is None:
        return [mine]
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, mine)
    return everyone


def _agreed(everyone: Sequence[tuple[list[Check], list[str]]], replicas: Check) -> tuple[list[Check], str | None]:
    """Return of each check the worst rank's, and a cause that fits every rank that found something wrong."""
    checks = [_worst_of(same) for same in zip(*(checks for checks, _ in everyone), strict=True)]
    return [*checks, replicas], _common_cause(everyone, replicas)


def _worst_of(same: Sequence[Check]) -> Check:
    wrong = [rank for rank, check in enumerate(same) if check.verdict == "wrong"]
    worst = max(same, key=lambda check: (check.verdict == "wrong", _ratio(check.error or 0.0, check.bound or 1.0)))
    if 0 < len(wrong) < len(same):
        ranks = ", ".join(map(str, wrong))
        return worst.model_copy(update={"detail": f"on rank {ranks} of {len(same)}"})
    return worst


def _common_cause(everyone: Sequence[tuple[list[Check], list[str]]], replicas: Check) -> str | None:
    wrong = [rank for rank, (checks, _) in enumerate(everyone) if any(c.verdict == "wrong" for c in checks)]
    differ = replicas.verdict == "wrong"
    if differ and replicas.detail is not None:
        return "ranks start from different parameters: they are seeded differently"
    if not wrong:
        return None
    fitting = [cause for cause in everyone[wrong[0]][1] if all(cause in everyone[rank][1] for rank in wrong)]
    if differ and OWN in fitting:
        return OWN
    if not differ:
        fitting = [cause for cause in fitting if cause != OWN]
    if not fitting:
        return None
    partial = len(wrong) < len(everyone)
    return f"on rank {', '.join(map(str, wrong))} alone: {fitting[0]}" if partial else fitting[0]
