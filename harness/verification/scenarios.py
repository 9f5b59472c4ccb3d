"""What is tried: tensors, gradients, rates and options, made to part what is right from what is nearly right."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.verification.stream import Group, Member, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.interfaces import OptimizerTraits
    from harness.spec import RunSpec
    from harness.verification.stream import Kind

STEPS = 50
SAVED_AT = 30
"""The step after which state goes into a fresh instance."""

QUANTISED = frozenset({"uint8", "int8", "uint4", "int4", "float8_e4m3fn", "float8_e5m2"})
"""State dtypes of few bits: only tensors of thousands of elements are kept in them."""


@dataclass(frozen=True)
class Scenario:
    """One trial.

    Attributes:
        name: of its check.
        stage: tensors and groups.
        steps: how many.
        saved_at: the step after which state is saved and loaded into a fresh instance; None: never.
        options: hyperparameters that differ from the spec's.
        rate: factor on the spec's learning rate, at its peak.
        scheduled: the rate changes every step, and abruptly in the middle.
        unusual: an implementation may refuse it.
        judged: a difference from the reference is wrong; otherwise it is recorded.
    """

    name: str
    stage: Stage
    steps: int = STEPS
    saved_at: int | None = None
    options: tuple[tuple[str, Any], ...] = ()
    rate: float = 1.0
    scheduled: bool = True
    unusual: bool = False
    judged: bool = True

    def factor(self, step: int) -> float:
        """Return the factor on the peak rate at a step, from 1: a cosine from 1 to 0.4, halved half-way."""
        if not self.scheduled:
            return 1.0
        cosine = 0.7 + 0.3 * math.cos(math.pi * (step - 1) / self.steps)
        return cosine / 2 if step > self.steps // 2 else cosine

    def spec(self, spec: RunSpec, lr: float | None) -> RunSpec:
        """Return the spec with this scenario's hyperparameters; lr: the spec's or the algorithm's."""
        options = {**spec.optimizer_options, **dict(self.options)}
        rate = spec.lr if self.rate == 1.0 or lr is None else lr * self.rate
        return spec.model_copy(update={"optimizer_options": options, "lr": rate})


_GROUPS = (Group("matrix"), Group("vector", decay=False), Group("matrix", lr_scale=0.5))


def main(traits: OptimizerTraits, more: Sequence[Member] = ()) -> Scenario:
    """Return the trial of everything usual at once: groups, shapes, magnitudes, a schedule, saving and loading.

    Args:
        traits: of the implementation.
        more: further tensors.
    """
    stage = _stage(traits)
    return Scenario("update", replace(stage, members=(*stage.members, *more)), saved_at=SAVED_AT)


def _main_groups(traits: OptimizerTraits) -> tuple[Group, ...]:
    """Return the groups; those that minimise all parameters as one vector know one learning rate."""
    groups = tuple(replace(group, lr_scale=1.0) for group in _GROUPS) if traits.closure else _GROUPS
    return _alike(groups) if _knows_no_groups(traits) else groups


def _knows_no_groups(traits: OptimizerTraits) -> bool:
    """Say whether the constructor gets names or a model, and treats all parameters alike."""
    return traits.takes in {"named_parameters", "model"}


def _alike(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    return tuple(replace(group, lr_scale=1.0, decay=True) for group in groups)


def decaying(scenario: Scenario) -> Scenario:
    """Return a scenario in which every group decays."""
    groups = tuple(replace(group, decay=True) for group in scenario.stage.groups)
    return replace(scenario, stage=replace(scenario.stage, groups=groups))


def _stage(traits: OptimizerTraits) -> Stage:
    groups = _main_groups(traits)
    members = [
        Member("matrix", (9, 7)),
        Member("twin", (9, 7)),
        Member("conv", (4, 3, 2)),
        Member("spread", (8, 6), kind="spread"),
        Member("small", (5, 3), kind="small"),
        Member("vector", (33,), 1),
        Member("one", (1,), 1),
        Member("scalar", (), 1),
        Member("half", (5, 11), 2),
    ]
    if QUANTISED & set(traits.state_dtypes):
        members.append(Member("block", (64, 64)))
    if traits.sparse_gradients == "only":
        groups = (*groups, Group("sparse"))
        members.append(Member("rows", (8, 3), 3, sparse=True))
    return Stage(groups, tuple(members))


def others(traits: OptimizerTraits, options: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[Scenario]:
    """Return the further trials.

    Args:
        traits: of the implementation.
        options: its hyperparameters.
        fixed: those that it knows one value of only.
    """
    stage = _stage(traits)
    found = []
    if "weight_decay" in options and "weight_decay" not in fixed:
        # A decay of the updated parameter differs from the right one by lr x decay of an update.
        changed: dict[str, Any] = {"weight_decay": 0.1}
        if "adamw_weight_decay" in options:
            changed["adamw_weight_decay"] = 0.2
        found.append(Scenario("decay and a large rate", stage, 20, None, tuple(changed.items()), 10.0))
    if "maximize" in options and "maximize" not in fixed:
        found.append(Scenario("maximise", stage, 10, None, (("maximize", not options["maximize"]),)))
    found.append(Scenario("gradients of all sizes", _sizes("zero", "at times zero", "tiny", "large"), 20))
    # A product of two such gradients is no float32: what an implementation makes of it is its own affair.
    found.append(Scenario("gradients of 1e-25", _sizes("faint"), 10, unusual=True, judged=False))
    found.append(Scenario("gradients of None", _absent(), 20, 10, unusual=True))
    found.append(Scenario("an empty tensor", _empty(), 3, unusual=True))
    if traits.sparse_gradients == "yes":
        rows = Stage(
            (Group("sparse"),), (Member("rows", (8, 3), sparse=True), Member("more", (5, 2), sparse=True))
        )
        found.append(Scenario("sparse gradients", rows, 20, 10))
    if traits.sparse_gradients == "only":
        found = [replace(each, stage=_with_sparse(each.stage)) for each in found]
    if _knows_no_groups(traits):
        found = [replace(each, stage=replace(each.stage, groups=_alike(each.stage.groups))) for each in found]
    return found


def _sizes(*kinds: Kind) -> Stage:
    matrices = [Member(f"{kind} matrix".replace(" ", "-"), (4, 6), kind=kind) for kind in kinds]
    vectors = [Member(f"{kind} vector".replace(" ", "-"), (6,), 1, kind=kind) for kind in kinds]
    return Stage(_GROUPS[:2], (*matrices, *vectors))


def _absent() -> Stage:
    return Stage(
        _GROUPS[:2],
        (
            Member("present", (4, 6)),
            Member("at-times", (4, 6), kind="at times none"),
            Member("never", (4, 6), kind="none"),
            Member("vector", (6,), 1, kind="at times none"),
        ),
    )


def _empty() -> Stage:
    return Stage(_GROUPS[:2], (Member("matrix", (4, 6)), Member("empty", (0, 6)), Member("nothing", (0,), 1)))


def _with_sparse(stage: Stage) -> Stage:
    if any(group.role == "sparse" for group in stage.groups):
        return stage
    rows = Member("rows", (8, 3), len(stage.groups), sparse=True)
    return Stage((*stage.groups, Group("sparse")), (*stage.members, rows))


def small(traits: OptimizerTraits) -> Scenario:
    """Return a scenario of two tensors, for what needs few steps."""
    stage = Stage(_GROUPS[:2], (Member("matrix", (4, 6)), Member("vector", (6,), 1)))
    return Scenario("small", _with_sparse(stage) if traits.sparse_gradients == "only" else stage)


def unreferenced(traits: OptimizerTraits) -> Scenario:
    """Return the trial of what has no reference: ordinary gradients, several groups, state saved and loaded."""
    members = (
        Member("matrix", (9, 7)),
        Member("conv", (4, 3, 2)),
        Member("vector", (33,), 1),
        Member("half", (5, 11), 2),
        Member("last", (6, 5), 2),
    )
    stage = Stage(_main_groups(traits), members)
    return Scenario("unreferenced", stage, 20, 14)


def minimised(steps: int) -> Scenario:
    """Return the trial of what minimises a loss within its steps: a constant rate, a few parameters."""
    members = (Member("matrix", (4, 3)), Member("vector", (5,), 1), Member("scalar", (), 1))
    return Scenario("minimised", Stage(_GROUPS[:2], members), steps, scheduled=False)
