"""Trials over plain tensors: an implementation beside its reference, scenario by scenario."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import UnsupportedError
from harness.hyperparameters import in_groups
from harness.precision import stepped_dtype
from harness.registry import load
from harness.verification import size_trials, sizes
from harness.verification.aliases import alias
from harness.verification.amplifying import amplified
from harness.verification.besides import besides, nonfinite
from harness.verification.bounds import bound
from harness.verification.certificate import Check
from harness.verification.comparing import Difference, Held, Twist, compare, worst
from harness.verification.demands import demand, refused
from harness.verification.diagnosis import diagnose
from harness.verification.entering import on_entry
from harness.verification.playing import Player, RefusedError, Trace, play, stands_still
from harness.verification.scenarios import Scenario, decaying, main, others
from harness.verification.size_causes import named
from harness.verification.sized import judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.interfaces import Optimizer
    from harness.references.reference import Reference
    from harness.spec import RunSpec

NONE_AS_ZERO = Twist(
    "None is treated as a gradient of zeros",
    gradient=lambda trace, name, step: (
        torch.zeros_like(trace.steps[step - 1].before[name])
        if trace.steps[step - 1].gradients[name] is None
        else trace.steps[step - 1].gradients[name]
    ),
)
"""A recorded variant, not a fault."""


def trials(optimizer: Optimizer, spec: RunSpec, reference: Reference | None) -> tuple[list[Check], str | None]:
    """Try an implementation over plain tensors.

    Args:
        optimizer: the implementation.
        spec: its hyperparameters, precision and device.
        reference: what it is held to; None: only the checks that need none are made.

    Returns:
        The checks, and the cause: None unless one is wrong and a known mistake explains it.

    Raises:
        UnsupportedError: it cannot be built over such tensors.
        UndeclaredError: its step needs what its traits do not declare.
    """
    entered = on_entry(optimizer, spec)  # first: what is found while it misses something is no finding
    checks, cause = _tried(optimizer, spec, reference)
    return [*checks, *entered], cause


def _tried(optimizer: Optimizer, spec: RunSpec, reference: Reference | None) -> tuple[list[Check], str | None]:
    if reference is None or (reference.update is None and reference.minimise is None):
        from harness.verification.unreferenced import trials as without

        return without(optimizer, spec)
    if reference.update is None:
        from harness.verification.closures import trials as minimising

        return minimising(optimizer, spec, reference)
    return _Trials(optimizer, spec, reference).all()


class _Trials:
    """The trials of one implementation against its reference."""

    def __init__(self, optimizer: Optimizer, spec: RunSpec, reference: Reference) -> None:
        self.optimizer, self.spec, self.reference = optimizer, spec, reference
        self.checks: list[Check] = []
        self.cause: str | None = None
        self._aliases: dict[str, str] = {}
        """Hyperparameter of the algorithm -> what the instance calls it."""

    def all(self) -> tuple[list[Check], str | None]:
        usual = self._fitting(main(self.optimizer.traits, sizes.compiled(self.optimizer.traits)))
        try:
            trace = play(self.optimizer, usual.spec(self.spec, None), usual)
        except RefusedError as error:
            refused(self.optimizer, self.spec, error)
            where = f"step {error.step} raised {error}"
            return [Check(name=usual.name, verdict="wrong", step=error.step, detail=where)], None
        if stands_still(trace):
            demand(self.optimizer, self.spec, "does nothing")
        self._ask_for_a_rate(trace)
        self.checks += [*self._left_out(), *self._renamed(usual, trace)]
        held = self._held(usual, trace)
        self._judge_main(held, trace)
        self.checks += besides(trace, self.optimizer)
        if self.optimizer.traits.compiled:
            self._judge_compiled(held, trace)
            told = "each would compile for half a minute; foreach, which is compiled here, is tried in all"
            self.checks.append(Check(name="further trials", verdict="not applicable", detail=told))
            return self.checks, self.cause
        fixed = getattr(self.optimizer, "fixed", {})
        for scenario in others(self.optimizer.traits, self._options(self.spec, trace), fixed):
            unknown = [name for name, _ in scenario.options if not self._takes(name)]
            if unknown:
                told = f"its constructor takes no {', '.join(unknown)}"
                self.checks.append(Check(name=scenario.name, verdict="not applicable", detail=told))
                continue
            self._try(self._fitting(scenario), held.lr)
        self.checks.append(nonfinite(self.optimizer, self.spec))
        self.checks.append(amplified(self.optimizer, self.spec))
        self._try_sizes(held.lr)
        return self.checks, self.cause

    @functools.cached_property
    def _parts_decay(self) -> bool:
        """Whether some groups can be left undecayed; those of a user's class may hold no such setting."""
        if hasattr(self.optimizer, "hyperparameters") or "weight_decay" not in self._known():
            return True
        scenario = main(self.optimizer.traits)
        player = Player(self.optimizer, scenario.spec(self.spec, None), scenario)
        return in_groups(player.live, "weight_decay")

    def _fitting(self, scenario: Scenario) -> Scenario:
        return scenario if self._parts_decay else decaying(scenario)

    def _left_out(self) -> list[Check]:
        """Name what cannot be tried."""
        if self._parts_decay:
            return []
        detail = "its groups hold no weight_decay, so that it decays all of them, or none"
        return [Check(name="groups that do not decay", verdict="not applicable", detail=detail)]

    def _renamed(self, usual: Scenario, trace: Trace) -> list[Check]:
        """Find a hyperparameter that the instance calls otherwise, and say so."""
        if hasattr(self.optimizer, "hyperparameters"):
            return []
        plain = self._held(usual, trace)
        self._aliases = alias(
            trace, self._known(), lambda other: replace(plain, options={**plain.options, **other})
        )
        return [
            Check(name="other names", verdict="recorded", detail=f"its {own} is taken for {name}")
            for name, own in self._aliases.items()
        ]

    def _ask_for_a_rate(self, trace: Trace) -> None:
        """Refuse what has no rate that can be read: the reference needs the one that was used."""
        if any(rate is not None for rate in trace.lr.values()):
            return
        name, wanted = self.optimizer.name, f"which {self.reference.algorithm} has to be told"
        if self._takes("lr") and self.spec.lr is None:
            raise UnsupportedError(f"{name} finds its own learning rate, {wanted}: give --lr, or leave --like out")
        raise UnsupportedError(
            f"the parameter groups of {name} hold no number named lr, {wanted}: name the rate lr in its groups, "
            "or leave --like out"
        )

    def _try_sizes(self, lr: float) -> None:
        """Try sizes, counts and layouts, unless something is wrong at any size."""
        if any(check.verdict == "wrong" for check in self.checks):
            told = "left out: it is wrong at any size"
            self.checks.append(Check(name="sizes", verdict="not applicable", detail=told))
            return
        granularity: str = self.optimizer.traits.granularity
        if granularity == "undeclared":
            granularity = load("harness.optimizers.algorithms:ALGORITHMS")[self.reference.algorithm].granularity
        checks, cause = size_trials.trials(
            self.optimizer, self.spec, lambda scenario, trace: self._held(scenario, trace, lr), granularity
        )
        self.checks += checks
        self.cause = self.cause or cause

    def _judge_main(self, held: Held, trace: Trace) -> None:
        found = compare(held, trace)
        saved = trace.scenario.saved_at or trace.scenario.steps
        first = [each for each in found if each.step <= saved]
        self.checks.append(judged("update", first))
        self.checks.append(judged("resumed from a saved state", [each for each in found if each.step > saved]))
        if any(check.verdict == "wrong" for check in self.checks):
            self.cause = diagnose(held, trace, found)

    def _judge_compiled(self, held: Held, trace: Trace) -> None:
        """Judge those tensors of the main trial that are there for their size or layout."""
        names = {each.name for each in sizes.compiled(self.optimizer.traits)}
        check = judged("sizes", [each for each in compare(held, trace) if each.tensor in names])
        if check.verdict == "wrong" and self.cause is None:
            self.cause = named(judge(held, trace), trace.scenario.stage)
        self.checks.append(check.model_copy(update={"detail": sizes.COMPILED_WORDS}))

    def _try(self, scenario: Scenario, lr: float) -> None:
        spec = scenario.spec(self.spec, lr)
        try:
            trace = play(self.optimizer, spec, scenario)
        except Exception as error:
            if scenario.unusual:
                self.checks.append(Check(name=scenario.name, verdict="recorded", detail=f"refused: {error}"))
            elif isinstance(error, RefusedError):
                detail = f"step {error.step} raised {error}"
                self.checks.append(Check(name=scenario.name, verdict="wrong", step=error.step, detail=detail))
            else:
                raise
            return
        held = self._held(scenario, trace, lr)
        found = compare(held, trace)
        check = judged(scenario.name, found)
        if not scenario.judged:
            self.checks.append(check.model_copy(update={"verdict": "recorded"}))
            return
        if check.verdict == "wrong" and scenario.unusual:
            check = self._variant(held, trace) or check
        self.checks.append(check)
        if check.verdict == "wrong" and self.cause is None:
            self.cause = diagnose(held, trace, found)

    def _variant(self, held: Held, trace: Trace) -> Check | None:
        """Return the record of a legitimate treatment of missing gradients, where that explains what was seen."""
        check = judged(trace.scenario.name, compare(held, trace, NONE_AS_ZERO))
        if check.verdict == "passed":
            return check.model_copy(update={"verdict": "recorded", "detail": NONE_AS_ZERO.cause})
        usual = all(each.verdict != "wrong" for each in self.checks)
        absent = [each.name for each in trace.scenario.stage.members if each.kind == "none"]
        if usual and absent and all(not bool(step.moved(name).any()) for step in trace.steps for name in absent):
            plain = judged(trace.scenario.name, compare(held, trace))
            detail = "tensors whose gradients are missing at times share their count of steps with others"
            return plain.model_copy(update={"verdict": "recorded", "detail": detail})
        return None

    def _takes(self, option: str) -> bool:
        """Say whether a hyperparameter can be set; what the algorithm has, a class of the user's may lack."""
        asked = getattr(self.optimizer, "takes", None)
        return True if asked is None else bool(asked(option))

    def _options(self, spec: RunSpec, trace: Trace) -> dict[str, Any]:
        """Return the hyperparameters: what the registry says, or what a class of the user's declares."""
        known = getattr(self.optimizer, "hyperparameters", None)
        if known is not None:
            return dict(known(spec))
        algorithm = self._algorithm()
        found = {**algorithm.options, "lr": algorithm.lr, **trace.defaults}
        found |= {name: trace.defaults[own] for name, own in self._aliases.items()}
        return {**found, "adamw_lr": _companion_rate(trace)} if "adamw_lr" in found else found

    def _algorithm(self) -> Any:
        return load("harness.optimizers.algorithms:ALGORITHMS")[self.reference.algorithm]

    def _known(self) -> dict[str, Any]:
        """Return the algorithm's hyperparameters with their defaults."""
        return dict(self._algorithm().options)

    def _held(self, scenario: Scenario, trace: Trace, lr: float | None = None) -> Held:
        spec = scenario.spec(self.spec, lr)
        variants = getattr(self.optimizer, "variants", {})
        chosen = self._options(spec, trace)
        lr = chosen.pop("lr") if hasattr(self.optimizer, "hyperparameters") else _peak(trace)
        options = {**self.reference.variants, **chosen, **dict(scenario.options), **variants}
        return held(self.optimizer, spec, self.reference, options, lr)


def held(optimizer: Optimizer, spec: RunSpec, reference: Reference, options: Mapping[str, Any], lr: float) -> Held:
    """Return what an implementation is held to under the spec's precision.

    Args:
        optimizer: the implementation; its traits name the state's dtypes.
        spec: its precision.
        reference: the algorithm.
        options: every hyperparameter but the rate, variants included.
        lr: peak rate before a group's scale.
    """
    dtype = getattr(torch, stepped_dtype(spec.precision))
    traits = optimizer.traits
    kept = dtype if traits.state_follows_parameters and traits.state_dtypes == ("float32",) else torch.float32
    if "bfloat16" in traits.state_dtypes:
        kept = torch.bfloat16
    allowed = bound(dtype, traits.state_dtypes, reference.internal_dtype, options)
    if traits.compiled:  # scalars in tensors of float32: a float would be compiled anew with each value
        allowed = replace(allowed, held=allowed.held * reference.conditioning)
    return Held(reference, options, lr, allowed, kept)


def judged(name: str, differences: Sequence[Difference]) -> Check:
    """Return the verdict on some updates: the worst, beside its bound."""
    found = worst(differences)
    if found is None:
        return Check(name=name, verdict="not applicable", detail="no step was done")
    return Check(
        name=name,
        verdict="passed" if found.ratio <= 1 else "wrong",
        error=found.error,
        bound=found.bound,
        step=found.step,
        tensor=found.tensor,
    )


def _companion_rate(trace: Trace) -> float | None:
    """Return the rate of what is no matrix, which another optimizer may take; None: that of the matrices."""
    stage = trace.scenario.stage
    others = [m.name for m in stage.members if stage.groups[m.group].role == "vector"]
    return next((rate for name in others if (rate := trace.lr.get(name)) is not None), None)


def _peak(trace: Trace) -> float:
    """Return the rate of a group that is not scaled."""
    stage = trace.scenario.stage
    for name, rate in trace.lr.items():
        group = stage.groups[stage.member(name).group]
        if rate is not None:
            return rate / group.lr_scale
    return 1.0
