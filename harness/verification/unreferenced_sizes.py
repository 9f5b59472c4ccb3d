"""Sizes, counts and layouts of what has no reference: held to the same optimizer over small, contiguous tensors.

An optimizer that steps every element by itself must do the same to a long tensor as to pieces of it, one whose
tensors do not depend on each other the same to a long list as to short ones, and any the same whatever the layout.
Where an algorithm amplifies rounding by itself, a run whose gradients differ in their last digits shows how much
that is, and the difference is held to that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from harness.errors import UnsupportedError
from harness.precision import stepped_dtype
from harness.seeding import seed_generators
from harness.verification import sizes
from harness.verification.bounds import bound
from harness.verification.comparing import Difference
from harness.verification.playing import Player, RefusedError, Step
from harness.verification.scenarios import Scenario
from harness.verification.size_causes import elements, named
from harness.verification.size_trials import Outcome, accepted, as_declared, tried_all, watched
from harness.verification.sized import Found, joined, judged
from harness.verification.stream import Group, Member, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from harness.interfaces import Optimizer
    from harness.spec import RunSpec
    from harness.verification.certificate import Check
    from harness.verification.layouts import Layout
    from harness.verification.playing import Trace
    from harness.verification.sizes import Tried

_LOOSER = 8.0
"""Times the bound of a comparison with float64: two ways of float32 are compared here."""
_PERTURBED = 2.0**-20
"""Relative change of the control's gradients."""
_AMPLIFIED = 16.0
"""Times what a change in the last digits of the gradients makes is what another order of sums may make."""
_BLIND = 0.25
"""Where rounding alone changes updates by so much of their size, a comparison shows nothing."""
_WINDOW = 24
"""Elements of the pieces that are looked at: at the ends of a tensor and around the edges of chunks."""
_NEAR = 1e-3
"""Of what a tensor moved: what does not tell two runs apart, where it is asked what an update depends on."""
_ASKED = 8
"""Tensors that stand still as a whole, and are asked whether they do so alone."""
_LIST = 24
"""Tensors in the short lists that a long one is held to."""


def trials(optimizer: Optimizer, spec: RunSpec, *, draws: bool, moves_all: bool) -> tuple[list[Check], str | None]:
    """Try an implementation on many sizes, counts and layouts, without a reference.

    Args:
        optimizer: the implementation.
        spec: its hyperparameters, precision and device.
        draws: its steps depend on random numbers: nothing is compared then.
        moves_all: it moves every element within a few steps.
    """
    granularity: str = optimizer.traits.granularity
    if granularity == "undeclared":
        granularity = _found(optimizer, spec)
    alone = _Alone(optimizer, spec, granularity, draws=draws, moves_all=moves_all)
    # What has declared nothing is climbed with care: state may grow with the square of a length.
    climbed = granularity if optimizer.traits.granularity != "undeclared" else "matrix"
    return tried_all(climbed, alone.outcome)


def _found(optimizer: Optimizer, spec: RunSpec) -> str:
    """Return what an update seems to depend on: the element, the tensor (or a matrix), or the whole model."""
    # What depends on others shows where these are of another size.
    a, b = Member("a", (33,), kind="spread"), Member("b", (7,), 1, kind="large")
    together = _moves(optimizer, spec, [a, b])
    if together is None:
        return "model"
    alone = [_moves(optimizer, spec, [each]) for each in (a, b)]
    if any(each is None or not _near(each[0], whole) for each, whole in zip(alone, together, strict=True)):
        return "model"
    whole, halves = Member("c", (33,), place=0), (Member("c1", (16,), place=0), Member("c2", (17,), place=16))
    one, two = _moves(optimizer, spec, [whole], tilted=True), _moves(optimizer, spec, halves, tilted=True)
    return "element" if one and two and _near(torch.cat(two), one[0]) else "matrix"


def _near(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= _NEAR * other.abs().max())


def _moves(
    optimizer: Optimizer, spec: RunSpec, members: Sequence[Member], *, tilted: bool = False
) -> list[Tensor] | None:
    """Return by how much small tensors have moved after a few steps; None: it does not step them.

    Args:
        optimizer: the implementation.
        spec: its hyperparameters, precision and device.
        members: in groups 0 and 1.
        tilted: elements drawn from the 16th on have gradients a thousand times as large.
    """
    stage = Stage((Group("vector"), Group("vector", lr_scale=0.5)), tuple(members))
    steeper = {each.name for each in members if each.name == "c2"} if tilted else set()

    def change(name: str, gradient: Tensor | None) -> Tensor | None:
        if gradient is None or not tilted:
            return gradient
        if name in steeper:
            return gradient * 1000
        return torch.cat([gradient[:16], gradient[16:] * 1000])

    try:
        steps = _run(optimizer, spec, Scenario("pieces", stage, 3, scheduled=False), change)
    except (RefusedError, UnsupportedError):
        return None
    return [steps[-1].after[each.name] - steps[0].before[each.name] for each in members]


def _run(
    optimizer: Optimizer,
    spec: RunSpec,
    scenario: Scenario,
    change: Callable[[str, Tensor | None], Tensor | None] | None = None,
) -> list[Step]:
    """Return the steps of a scenario, its gradients changed.

    Raises:
        RefusedError: the implementation raised.
    """
    seed_generators(0)
    player, steps = Player(optimizer, spec, scenario), []
    for number in range(1, scenario.steps + 1):
        gradients = player.gradients(number)
        if change is not None:
            gradients = {name: change(name, gradient) for name, gradient in gradients.items()}
        before = player.values()
        try:
            player.step(number, gradients)
        except Exception as error:
            raise RefusedError(error, number) from error
        steps.append(Step(number, 1.0, before, {}, player.values()))
    return steps


def _perturbed(_name: str, gradient: Tensor | None) -> Tensor | None:
    """Change a gradient in its last digits, up and down in turns."""
    if gradient is None or gradient.is_sparse:
        return gradient
    signs = torch.ones(gradient.numel(), dtype=gradient.dtype, device=gradient.device)
    signs[1::2] = -1
    return gradient * (1 + _PERTURBED * signs.view(gradient.shape))


class _Alone:
    """Holds an implementation to itself."""

    def __init__(
        self, optimizer: Optimizer, spec: RunSpec, granularity: str, *, draws: bool, moves_all: bool
    ) -> None:
        self._optimizer, self._spec, self._granularity = optimizer, spec, granularity
        self._draws, self._moves_all = draws, moves_all
        allowed = bound(
            getattr(torch, stepped_dtype(spec.precision)), optimizer.traits.state_dtypes, "float64", {}
        )
        self._bound = replace(allowed, unit=allowed.unit * _LOOSER, parameter_unit=2 * allowed.parameter_unit)

    def outcome(self, tried: Tried) -> tuple[Outcome, float]:
        """Return what became of a trial, and its state's numbers an element."""
        tried = sizes.suited(tried, self._optimizer.traits)
        # State is saved and loaded in a check of its own; here the steps are compared with those of other tensors.
        tried = replace(tried, scenario=replace(tried.scenario, saved_at=None))
        given = len(tried.scenario.stage.members)
        refused: list[str] = []
        if tried.scenario.unusual:
            tried, refused = accepted(self._optimizer, self._spec, tried)
            if len(refused) == given:
                return Outcome("recorded", f"refused: {refused[0]}"), 0.0
        try:
            seed_generators(0)
            trace, written = watched(self._optimizer, self._spec, tried.scenario)
            made = written or self._judged(tried, trace)
        except RefusedError as error:
            return Outcome("wrong", f"step {error.step} raised {error}", step=error.step), 0.0
        if made.verdict == "wrong":
            made = as_declared(made, tried, self._optimizer.traits, lambda less: self.outcome(less)[0])
        if refused and made.verdict in {"passed", "recorded"}:
            made.words = "; ".join(filter(None, [made.words, f"refused: {', '.join(refused)}"]))
        return made, trace.state_elements[-1] / tried.elements

    def _judged(self, tried: Tried, trace: Trace) -> Outcome:
        stage = trace.scenario.stage
        bad = [name for name, value in trace.steps[-1].after.items() if not bool(value.isfinite().all())]
        if bad and not self._compared_to_finite(tried, bad):
            return Outcome("recorded", "parameters are not finite, nor are those of contiguous tensors")
        if bad:
            cause = f"{bad[0]}: parameters are not finite"
            return Outcome("wrong", cause, tensor=bad[0], cause=cause)
        still = self._standing(tried, trace)
        if self._moves_all and bool(still.wrong.any()):
            why = named(still, stage)
            return Outcome("wrong", why, tensor=_first(still), cause=why)
        if self._draws:
            return Outcome("recorded", "its steps draw random numbers: looked at is whether every element moves")
        return self._compared(tried, trace)

    def _standing(self, tried: Tried, trace: Trace) -> Found:
        """Return which elements never move, but for those of tensors that stand still alone, too.

        A gradient that is made to have mean zero along a dimension is zero where that has one element.
        """
        found = _never_moved(trace)
        if bool(found.wrong.all()):
            return replace(found, wrong=torch.zeros_like(found.wrong), still=torch.zeros_like(found.wrong))
        entire = [member for member, part in found.parts(found.wrong) if bool(part.all())]
        # By a draw of numbers it may leave out a tensor, and another one alone.
        if entire and (self._draws or not any(self._moves_alone(tried, each) for each in entire[:_ASKED])):
            names = {each.name for each in entire}
            kept = [part & (member.name not in names) for member, part in found.parts(found.wrong)]
            found = replace(found, wrong=torch.cat(kept), still=torch.cat(kept))
        return found

    def _moves_alone(self, tried: Tried, member: Member) -> bool:
        scenario = sizes.suited(sizes.only(tried, [_plain(member)]), self._optimizer.traits).scenario
        try:
            steps = _run(self._optimizer, self._spec, scenario)
        except (RefusedError, UnsupportedError):
            return False
        return any(bool(each.moved(member.name).any()) for each in steps)

    def _compared_to_finite(self, tried: Tried, names: Sequence[str]) -> bool:
        """Say whether the same values in contiguous tensors stay finite."""
        if not tried.scenario.unusual or tried.scenario.name == "sizes":
            return True
        after = self._updates(tried, self._pieces(tried))[-1].after
        return all(bool(after[name].isfinite().all()) for name in names if name in after)

    def _compared(self, tried: Tried, trace: Trace) -> Outcome:
        """Hold what was seen to the same optimizer over small contiguous tensors."""
        lists = self._pieces(tried)
        if not lists:
            return Outcome("passed", f"looked at is whether every element moves: it steps by {self._granularity}")
        members = sorted((each.member for listed in lists for each in listed), key=lambda each: each.group)
        seen = [_cut(step, [each for listed in lists for each in listed]) for step in trace.steps]
        try:
            expected = self._updates(tried, lists)
            found = judged(self._bound, members, seen, [_moved(each) for each in expected])
            worst = found.worst
            made = Outcome("passed", None, worst.error, worst.bound, worst.step, worst.tensor)
            if not bool(found.wrong.any()):
                return made if worst.error else Outcome("passed", "equal to the last bit")
            changed = self._updates(tried, lists, _perturbed)
        except (RefusedError, UnsupportedError) as error:
            return Outcome("recorded", f"nothing to compare with, small tensors alone raise {error}")
        control = judged(self._bound, members, changed, [_moved(each) for each in expected]).worst
        if control.error > _BLIND or worst.error <= _AMPLIFIED * control.error:
            words = f"rounding alone changes its updates by {control.error:.1e} of their size"
            return replace(made, verdict="recorded", words=words)
        same = tried.scenario.name.endswith(("layouts", "otherwise"))  # the same tensors: nothing else differs
        undeclared = self._optimizer.traits.granularity == "undeclared"
        if undeclared and not same and not _clear(found, lists):
            words = (
                "differs from small tensors alone, as where an update depends on all of a tensor or of the model"
            )
            return replace(made, verdict="recorded", words=words)
        made.cause = self._named(found, trace, tried)
        return replace(made, verdict="wrong", words=made.cause)

    def _pieces(self, tried: Tried) -> list[list[_Piece]]:
        """Return the small tensors that stand for those of a trial, a list an optimizer; none: nothing does."""
        members = [each for each in tried.scenario.stage.members if each.place is not None]
        if tried.scenario.name == "sizes":
            cut = [piece for each in members for piece in _windows(each)] if self._granularity == "element" else []
            return [cut] if cut else []
        whole = [_Piece(_plain(each), each.name, 0) for each in members]
        if tried.scenario.unusual:
            return [whole]
        if self._granularity == "model":
            return []
        return [whole[start : start + _LIST] for start in range(0, len(whole), _LIST)]

    def _updates(
        self,
        tried: Tried,
        lists: Sequence[Sequence[_Piece]],
        change: Callable[[str, Tensor | None], Tensor | None] | None = None,
    ) -> list[Step]:
        """Return the steps of all lists, each stepped by an optimizer of its own, as if they were one's."""
        merged: list[Step] = []
        for listed in lists:
            stage = Stage(tried.scenario.stage.groups, tuple(each.member for each in listed))
            alone = replace(tried, scenario=replace(tried.scenario, stage=stage))
            scenario = sizes.suited(alone, self._optimizer.traits).scenario
            steps = _run(self._optimizer, self._spec, scenario, change)
            merged = [_both(one, other) for one, other in zip(merged, steps, strict=True)] if merged else steps
        return merged

    def _named(self, found: Found, trace: Trace, tried: Tried) -> str | None:
        """Name the cause; pieces are put back into their tensors first."""
        stage = trace.scenario.stage
        if tried.scenario.name != "sizes":
            own = {each.name: each for each in stage.members}
            return named(replace(found, members=tuple(own[each.name] for each in found.members)), stage)
        places = {each.name: each for each in stage.members}
        wrong: dict[str, list[int]] = {}
        for member, part in found.parts(found.wrong):
            owner, _, start = member.name.rpartition(" from ")
            wrong.setdefault(owner, []).extend(int(start) + place for place in part.nonzero().view(-1).tolist())
        listed = [(name, sorted(set(each))) for name, each in wrong.items() if each]
        name, numbers = min(listed, key=lambda each: math.prod(places[each[0]].shape))
        length, first = math.prod(places[name].shape), numbers[0] + 1
        more = f"; {len(listed):,} of {len(wrong):,} tensors are concerned" if len(wrong) > 1 else ""
        where = f"element number {first:,} of {elements(length)} moves otherwise than in a tensor of {_WINDOW}"
        return f"{where}{more}"


@dataclass(frozen=True)
class _Piece:
    """A small tensor, and which part of which tensor it stands for."""

    member: Member
    owner: str
    start: int


def _windows(member: Member) -> list[_Piece]:
    """Return pieces of a tensor: its ends, and what lies around the edges of chunks."""
    length = math.prod(member.shape)
    around = [edge - _WINDOW // 2 for edge in (256, 1024, 4096, 32_768, 65_536, 131_072)]
    starts = sorted({0, max(0, length - _WINDOW), *(each for each in around if each + _WINDOW <= length)})
    assert member.place is not None, "asked of those with a place"
    return [
        _Piece(
            Member(
                f"{member.name} from {start}",
                (min(_WINDOW, length - start),),
                member.group,
                place=member.place + start,
            ),
            member.name,
            start,
        )
        for start in starts
    ]


def _plain(member: Member) -> Member:
    """Return the tensor as a contiguous one, with contiguous gradients of the same values."""
    same: Layout | None = "repeated" if member.gradient_layout == "expanded" else None
    return replace(member, layout="contiguous", gradient_layout=same)


def _cut(step: Step, pieces: Sequence[_Piece]) -> Step:
    """Return the step of whole tensors as one of pieces."""

    def part(values: Mapping[str, Tensor], piece: _Piece) -> Tensor:
        length = math.prod(piece.member.shape)
        return values[piece.owner].reshape(-1)[piece.start : piece.start + length].reshape(piece.member.shape)

    before = {each.member.name: part(step.before, each) for each in pieces}
    return Step(step.number, 1.0, before, {}, {each.member.name: part(step.after, each) for each in pieces})


def _moved(step: Step) -> dict[str, Tensor]:
    return {name: step.moved(name) for name in step.before}


def _both(one: Step, other: Step) -> Step:
    return Step(one.number, 1.0, {**one.before, **other.before}, {}, {**one.after, **other.after})


def _clear(found: Found, lists: Sequence[Sequence[_Piece]]) -> bool:
    """Say whether most tensors are right, and parts of each of the others: no statistic of a tensor does that."""
    owners = {each.member.name: each.owner for listed in lists for each in listed}
    right: dict[str, list[bool]] = {}
    for member, part in found.parts(found.wrong):
        right.setdefault(owners[member.name], []).append(not bool(part.any()))
    wrong = [each for each in right.values() if not all(each)]
    pieces = any(len(each) > 1 for each in right.values())
    return 2 * len(wrong) <= len(right) and (not pieces or all(any(each) for each in wrong))


def _never_moved(trace: Trace) -> Found:
    """Return which elements never moved, as if they were wrong."""
    members = trace.scenario.stage.members
    still = torch.stack([joined(members, _moved(step)) == 0 for step in trace.steps]).all(0)
    starts = [0]
    for each in members:
        starts.append(starts[-1] + math.prod(each.shape))
    return Found(members, Difference(1, members[0].name, 0.0, 1.0), still, still, tuple(starts))


def _first(found: Found) -> str:
    return next(member.name for member, part in found.parts(found.wrong) if bool(part.any()))
