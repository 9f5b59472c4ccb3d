"""The known gradient of the linear workload, as the ranks share it, and what a reference makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from harness.interfaces import DataShard
from harness.parameter_groups import role
from harness.verification.comparing import round_state
from harness.verification.linear import SIZES, Linear, coefficients
from harness.verification.stream import Group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

    from harness.references.reference import State
    from harness.verification.comparing import Held

    Values = dict[str, Tensor]
    """Parameter name -> float64."""

FORGETS = 0.9
"""What is left after a step of the size that an error is measured by."""
CLIP_EPSILON = 1e-6
"""Added to the norm that is divided by, as torch.nn.utils.clip_grad_norm_ and DeepSpeed do."""


@dataclass(frozen=True)
class Stream:
    """The gradients of a run of the linear workload.

    Attributes:
        seed: of the run.
        ranks: that share a global batch.
        accumulation: micro-batches a step and rank.
        global_batch: samples a step.
        clip_norm: as asked of the engine.
        without: steps, from 0, in which the parameter ``spare`` has no gradient.
        size: of the workload.
    """

    seed: int
    ranks: int
    accumulation: int
    global_batch: int
    clip_norm: float | None = None
    without: tuple[int, ...] = ()
    size: str = "small"
    _known: dict[int, Values] = field(default_factory=dict, repr=False, compare=False)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The parameters."""
        return SIZES[self.size]

    def shard(self, rank: int) -> DataShard:
        """Return what a rank reads."""
        return DataShard(rank, self.ranks, self.global_batch, self.accumulation, self.seed)

    def shares(self, step: int) -> Values:
        """Return each micro-batch's and rank's own gradient: shape (accumulation, ranks, *shape); step from 0."""
        if step not in self._known:
            shapes = self.shapes
            drawn = {n: coefficients(self.seed, step, n, self.global_batch, shapes[n]) for n in shapes}
            self._known[step] = {
                name: each.reshape(self.accumulation, self.ranks, -1, *shapes[name]).mean(2)
                for name, each in drawn.items()
            }
        return self._known[step]

    def gradient(self, step: int) -> Values:
        """Return the gradient of a step's loss over its global batch, before clipping."""
        return {name: each.mean((0, 1)) for name, each in self.shares(step).items()}


def norm(gradient: Values) -> float:
    """Return the L2 norm over all tensors."""
    return math.sqrt(sum(float(each.square().sum()) for each in gradient.values()))


def clipped(gradient: Values, limit: float | None, by: float | None = None) -> Values:
    """Return the gradient scaled so that a norm is at most ``limit``.

    Args:
        gradient: of all tensors.
        limit: None: as it is.
        by: the norm that is held against the limit; None: the gradient's own.
    """
    if limit is None:
        return gradient
    factor = min(1.0, limit / ((norm(gradient) if by is None else by) + CLIP_EPSILON))
    return {name: each * factor for name, each in gradient.items()}


@dataclass
class Trial:
    """What an engine did on a stream.

    Attributes:
        name: of its check.
        stream: the gradients.
        factors: on the peak rate, by step.
        values: of the parameters before each step, and after the last: one more than factors.
        passes: by step, the values that each forward pass saw.
        norms: that the engine reported, by step.
        resumed_at: the step, from 0, before which everything was loaded into a fresh engine; None: never.
    """

    name: str
    stream: Stream
    factors: list[float]
    values: list[Values] = field(default_factory=list)
    passes: list[list[Values]] = field(default_factory=list)
    norms: list[float | None] = field(default_factory=list)
    resumed_at: int | None = None


def asked(trial: Trial, step: int, rank: int) -> Values:
    """Return the gradient that a right engine steps with."""
    del rank
    return clipped(trial.stream.gradient(step), trial.stream.clip_norm)


def at_rate(trial: Trial, step: int) -> float:
    """Return the factor on the peak rate that a right engine steps with."""
    return trial.factors[step]


@dataclass(frozen=True)
class Behaviour:
    """What an engine might do.

    Attributes:
        cause: in words; empty: what it should.
        gradient: (trial, step, rank) -> what the optimizer gets, tensors left out where they are not stepped on;
            None: the step is left out.
        factor: (trial, step) -> on the peak rate.
        switches: of the reference.
        forgets: state is lost where the trial resumes.
    """

    cause: str
    gradient: Callable[[Trial, int, int], Values | None] = asked
    factor: Callable[[Trial, int], float] = at_rate
    switches: Mapping[str, Any] = field(default_factory=dict)
    forgets: bool = False


RIGHT = Behaviour("")


def updates(held: Held, trial: Trial, rank: int, behaviour: Behaviour = RIGHT) -> Iterator[Values]:
    """Yield each step's update from the values that the engine stepped from, had it behaved so.

    Args:
        held: the reference, which has an ``update``, and its hyperparameters.
        trial: whose values and gradients are taken.
        rank: whose behaviour is asked about.
        behaviour: what is assumed.
    """
    assert held.reference.update is not None, "an algorithm that evaluates the loss has no linear trial"
    shapes = trial.stream.shapes
    states: dict[str, State] = {name: {} for name in shapes}
    for step in range(len(trial.factors)):
        if behaviour.forgets and step == trial.resumed_at:
            states = {name: {} for name in shapes}
        gradient = behaviour.gradient(trial, step, rank)
        before = trial.values[step]
        if gradient is None:
            yield {name: torch.zeros_like(value) for name, value in before.items()}
            continue
        factor = behaviour.factor(trial, step)
        moved = {}
        for name in shapes:
            g = gradient.get(name)
            if g is None:
                moved[name] = torch.zeros_like(before[name])
                continue
            h = held.hyperparameters(_group(name, shapes[name]), factor, behaviour.switches)
            moved[name] = held.reference.update(before[name], g, states[name], h) - before[name]
            round_state(states[name], held.state_dtype)
        yield moved


def _group(name: str, shape: tuple[int, ...]) -> Group:
    kind = role(name, len(shape), Linear.traits)
    return Group(kind, decay=kind != "vector")


def differences(trial: Trial, expected: Iterable[Values]) -> Iterator[dict[str, tuple[float, float]]]:
    """Yield by step and tensor the largest difference from the expected update, and the size of the latter.

    The size is what is left of the steps before, where that is larger: moments cancel, the rounding in them does
    not. Of what should not move at all it is 0.
    """
    sizes = dict.fromkeys(trial.stream.shapes, 0.0)
    for step, wanted in enumerate(expected):
        row = {}
        for name, update in wanted.items():
            done = trial.values[step + 1][name] - trial.values[step][name]
            largest = float(update.abs().max())
            sizes[name] = max(largest, sizes[name] * FORGETS)
            row[name] = (float((done - update).abs().max()), sizes[name] if largest else 0.0)
        yield row
