"""Trials about size, count and layout of an implementation that has a reference."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from harness.errors import UnsupportedError
from harness.verification import sizes
from harness.verification.certificate import Check, Verdict
from harness.verification.layouts import overwritten
from harness.verification.playing import RefusedError, play
from harness.verification.size_causes import elements, named
from harness.verification.sized import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from harness.interfaces import Optimizer, OptimizerTraits
    from harness.spec import RunSpec
    from harness.verification.comparing import Held
    from harness.verification.playing import Player, Trace
    from harness.verification.scenarios import Scenario
    from harness.verification.sizes import Tried
    from harness.verification.stream import Member

BUDGET_S = 6.0
"""Of CPU time for what depends on whole tensors; sizes and counts that would take more are left out, and named."""

STATE_PER_ELEMENT = 64
"""State of more than so many numbers an element grows with the square of a length: longer tensors are left out."""

THREADS = 2
"""Of the computation: kernels cut long tensors between threads."""

DECLARED: Mapping[str, str] = MappingProxyType(
    {
        "alike": "it declares that gradients lie as their parameters do, without gaps",
        "contiguous": "it declares that parameters and gradients are contiguous",
    }
)
"""What `OptimizerTraits.strides` says."""


@dataclass
class Outcome:
    """What became of one trial.

    Attributes:
        verdict: of its check.
        words: what was tried, or what is wrong.
        error, bound, step, tensor: of the worst update.
        cause: in terms of places.
    """

    verdict: Verdict
    words: str | None = None
    error: float | None = None
    bound: float | None = None
    step: int | None = None
    tensor: str | None = None
    cause: str | None = None


@dataclass
class _Line:
    """The check of some trials, from cheap to dear."""

    name: str
    outcomes: list[Outcome] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    left_out: list[Tried] = field(default_factory=list)

    @property
    def cause(self) -> str | None:
        """Of the longest that is wrong: it shows the most."""
        return next((each.cause for each in reversed(self.outcomes) if each.verdict == "wrong"), None)

    def check(self) -> Check:
        """Return the verdict on all of them."""
        worst = max(self.outcomes, key=_badness)
        words = [worst.words] if worst.words else []
        words.append(merged(self.tried))
        if self.left_out:
            words.append(f"not tried, for what it would cost: {merged(self.left_out)}")
        return Check(
            name=self.name,
            verdict=worst.verdict,
            error=worst.error,
            bound=worst.bound,
            step=worst.step,
            tensor=worst.tensor,
            detail="; ".join(filter(None, words)),
        )


def _badness(outcome: Outcome) -> tuple[int, float]:
    order = ("not applicable", "passed", "recorded", "wrong")
    ratio = outcome.error / outcome.bound if outcome.error is not None and outcome.bound else 0.0
    return order.index(outcome.verdict), ratio


def merged(tried: Sequence[Tried]) -> str:
    """Return in words what some trials try, those of one kind together."""
    kinds: dict[str, list[str]] = {}
    for each in tried:
        for kind, which in each.words.items():
            kinds.setdefault(kind, []).append(which)
    return "; ".join(f"{kind} {', '.join(which)}" for kind, which in kinds.items())


def trials(
    optimizer: Optimizer, spec: RunSpec, hold: Callable[[Scenario, Trace], Held], granularity: str
) -> tuple[list[Check], str | None]:
    """Try an implementation on many sizes, counts and layouts.

    Args:
        optimizer: the implementation.
        spec: its hyperparameters, precision and device.
        hold: returns what a trace is held to.
        granularity: what an update depends on.

    Returns:
        The checks, and the cause of the first that is wrong.
    """
    return tried_all(granularity, _Referenced(optimizer, spec, hold).outcome)


def tried_all(
    granularity: str, outcome: Callable[[Tried], tuple[Outcome, float]]
) -> tuple[list[Check], str | None]:
    """Try every size, count and layout that its cost allows.

    Args:
        granularity: what an update depends on.
        outcome: tries one; returns what became of it, and how many numbers of state an element had.
    """
    ladders = [[each] for each in sizes.element_wise()]
    budget = float("inf")
    if granularity != "element":
        ladders, budget = sizes.by_cost(matrices=granularity != "tensor"), BUDGET_S
        ladders = [*ladders[:-1], *([each] for each in ladders[-1])]
    lines = [_climb(ladder, outcome, budget / len(ladders)) for ladder in filter(None, ladders)]
    causes = [line.cause for line in lines if line.cause]
    return [line.check() for line in _by_name(lines)], next(iter(causes), None)


def _by_name(lines: Sequence[_Line]) -> list[_Line]:
    """Return a line a name."""
    found: dict[str, _Line] = {}
    for each in lines:
        line = found.setdefault(each.name, _Line(each.name))
        line.outcomes += each.outcomes
        line.tried += each.tried
        line.left_out += each.left_out
    return list(found.values())


def _climb(ladder: Sequence[Tried], outcome: Callable[[Tried], tuple[Outcome, float]], budget_s: float) -> _Line:
    """Try one after the other while the next is expected to fit into the budget."""
    line = _Line(ladder[0].scenario.name)
    left = budget_s
    rates: list[float] = []  # CPU seconds an element
    for number, each in enumerate(ladder):
        growth = max(1.0, rates[-1] / rates[-2]) if len(rates) > 1 else 1.0
        if rates and rates[-1] * growth * each.elements > left:
            line.left_out += ladder[number:]
            break
        started = time.process_time()
        try:
            made, state = outcome(each)
        except UnsupportedError as error:  # it cannot be built over such tensors: of others it can
            made, state = Outcome("not applicable", str(error)), 0.0
        took = time.process_time() - started
        line.outcomes.append(made)
        line.tried.append(each)
        if state > STATE_PER_ELEMENT:
            line.left_out += ladder[number + 1 :]
            break
        left -= took
        rates.append(took / each.elements)
    return line


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads, or as many as there are cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, len(os.sched_getaffinity(0))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Referenced:
    """Holds trials to a reference."""

    def __init__(self, optimizer: Optimizer, spec: RunSpec, hold: Callable[[Scenario, Trace], Held]) -> None:
        self._optimizer, self._spec, self._hold = optimizer, spec, hold

    def outcome(self, tried: Tried) -> tuple[Outcome, float]:
        """Return what became of a trial, and its state's numbers an element."""
        refused: list[str] = []
        given = len(tried.scenario.stage.members)
        tried = sizes.suited(tried, self._optimizer.traits)
        if tried.scenario.unusual:
            tried, refused = accepted(self._optimizer, self._spec, tried)
            if len(refused) == given:
                return Outcome("recorded", f"refused: {refused[0]}"), 0.0
        try:
            trace, written = watched(self._optimizer, self._spec, tried.scenario)
        except RefusedError as error:
            return Outcome("wrong", f"step {error.step} raised {error}", step=error.step), 0.0
        made = written or self._judged(tried, trace)
        if made.verdict == "wrong":
            made = as_declared(made, tried, self._optimizer.traits, lambda less: self.outcome(less)[0])
        if refused and made.verdict in {"passed", "recorded"}:
            made.words = "; ".join(filter(None, [made.words, f"refused: {', '.join(refused)}"]))
        return made, trace.state_elements[-1] / tried.elements

    def _judged(self, tried: Tried, trace: Trace) -> Outcome:
        held = self._hold(tried.scenario, trace)
        found = judge(held, trace)
        worst = found.worst
        made = Outcome("passed", None, worst.error, worst.bound, worst.step, worst.tensor)
        if not bool(found.wrong.any()):
            return made
        made.cause = named(found, tried.scenario.stage, held, trace)
        made.words, made.verdict = made.cause, "wrong"
        return made


def as_declared(
    made: Outcome, tried: Tried, traits: OptimizerTraits, again: Callable[[Tried], Outcome]
) -> Outcome:
    """Return what is wrong, or its record where all is right that lies as an implementation declares it must.

    Args:
        made: what is wrong.
        tried: the trial.
        traits: of the implementation.
        again: tries some of the tensors.
    """
    less = sizes.within(tried, traits)
    if len(less.scenario.stage.members) == len(tried.scenario.stage.members):
        return made
    if less.scenario.stage.members:
        kept = again(less)
        if kept.verdict == "wrong":
            return kept
    return replace(made, verdict="recorded", words=f"{DECLARED[traits.strides]}; here {made.cause}")


def accepted(optimizer: Optimizer, spec: RunSpec, tried: Tried) -> tuple[Tried, list[str]]:
    """Return the trial of those tensors that the implementation steps at all, and what it says of the others."""

    def alone(*members: Member) -> Tried:
        return sizes.suited(sizes.only(tried, members), optimizer.traits)

    try:
        play(optimizer, spec, _short(tried.scenario))
    except RefusedError:
        taken, refused = [], []
        for each in tried.scenario.stage.members:
            try:
                play(optimizer, spec, _short(alone(each).scenario))
            except (RefusedError, UnsupportedError) as error:
                refused.append(f"{each.name} ({str(error).partition(chr(10))[0][:120]})")
            else:
                taken.append(each)
        return alone(*taken), refused
    return tried, []


def _short(scenario: Scenario) -> Scenario:
    return replace(scenario, steps=1, saved_at=None)


def watched(optimizer: Optimizer, spec: RunSpec, scenario: Scenario) -> tuple[Trace, Outcome | None]:
    """Play a scenario and look, after each step, at what lies around its tensors in memory.

    Returns:
        What was seen, and the outcome where something was written there.

    Raises:
        RefusedError: the implementation raised.
    """
    written: list[Outcome] = []

    def see(player: Player, step: int) -> None:
        if step not in (1, scenario.steps):  # loading replaces parameters between the two
            return
        for name, parameter in player.parameters.items():
            place = None if written else overwritten(parameter)
            if place is not None:
                where = "before its start" if place < 0 else "past its end or between its elements"
                cause = f"memory around a tensor of {elements(parameter.numel())} is overwritten, {where}"
                written.append(Outcome("wrong", cause, step=step, tensor=name, cause=cause))

    with threads(THREADS if scenario.name == "sizes" else torch.get_num_threads()):
        trace = play(optimizer, spec, scenario, see)
    return trace, written[0] if written else None
