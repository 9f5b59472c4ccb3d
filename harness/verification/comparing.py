"""Compares what an implementation did with its reference, update by update.

At each step the reference starts from the implementation's own parameters, so that errors do not add up there;
its state follows from the gradients alone. The error is max|d - d_ref| / size. The size is the largest update of
the tensor at this step, or what is left of those before, a tenth less each step: where moments cancel, an update
is small and the rounding in it is not. Of tensors with state in few bits, root mean squares stand for maxima.
Where the reference does not move at all, nothing may.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from torch import Tensor

    from harness.references.reference import Reference, State
    from harness.verification.bounds import Bound
    from harness.verification.playing import Step, Trace
    from harness.verification.stream import Group

CODED_FROM = 4096
"""Elements from which on tensors are kept in few bits."""

_FORGETS = 0.9


@dataclass(frozen=True)
class Difference:
    """The error of one update, relative to its size, beside what rounding explains."""

    step: int
    tensor: str
    error: float
    bound: float

    @property
    def ratio(self) -> float:
        """The error in multiples of the bound."""
        return self.error / self.bound


@dataclass(frozen=True)
class Twist:
    """A way to compute the reference wrongly; by default rightly. Every function gets tensor and step.

    Attributes:
        cause: what an implementation that fits it does wrong.
        switches: hyperparameters, and switches that the reference reads.
        gradient: that is used instead.
        factor: on the peak rate, from the step number.
        treated_as: group whose rate and decay are used.
        acts: whether the update is done; ``blind``: nor does the state advance where it is not.
        times: how often a step is done.
        state_of: key of the state used.
        keeps: part of the state that survives saving and loading: ``all``, ``count``, ``moments``, ``none``.
        scale: of every update.
        skips_last: the last element of a tensor stays.
    """

    cause: str
    switches: Mapping[str, Any] = field(default_factory=dict)
    gradient: Callable[[Trace, str, int], Tensor | None] | None = None
    factor: Callable[[int], float] | None = None
    treated_as: Callable[[str], Group] | None = None
    acts: Callable[[str, int], bool] | None = None
    blind: bool = False
    times: int = 1
    state_of: Callable[[str], Hashable] | None = None
    keeps: str = "all"
    scale: float = 1.0
    skips_last: bool = False


AS_WRITTEN = Twist("")


@dataclass(frozen=True)
class Held:
    """What an implementation is held to.

    Attributes:
        reference: the algorithm.
        options: every hyperparameter but the rate, variants included.
        lr: peak rate before a group's scale.
        bound: what rounding explains.
        state_dtype: whose range the state has.
    """

    reference: Reference
    options: Mapping[str, Any]
    lr: float
    bound: Bound
    state_dtype: torch.dtype = torch.float32

    def hyperparameters(self, group: Group, factor: float, switches: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the reference reads for a tensor of the group, at that factor on its peak rate."""
        peak = self.lr * group.lr_scale
        found = {**self.options, **switches, "role": group.role, "lr": peak * factor, "peak_lr": peak}
        if found.get("adamw_lr") is not None:
            found["adamw_lr"] = found["adamw_lr"] * group.lr_scale * factor
        decays = group.decay and group.role != "sparse"
        for name in ("weight_decay", "adamw_weight_decay"):
            found[name] = found.get(name, 0.0) if decays else 0.0
        return found


def compare(held: Held, trace: Trace, twist: Twist = AS_WRITTEN, stop_at: float = math.inf) -> list[Difference]:
    """Return the error of every update of a trace against the reference, twisted or not.

    Args:
        held: the reference and its hyperparameters.
        trace: what was seen.
        twist: how the reference is made wrong.
        stop_at: once an error is this many times its bound, the rest is left out.
    """
    sizes: dict[str, float] = {}
    found = []
    for step, name, update in updates_of(held, trace, twist):
        each = _difference(held, step, name, update, sizes)
        found.append(each)
        if each.ratio > stop_at:
            break
    return found


def updates_of(held: Held, trace: Trace, twist: Twist = AS_WRITTEN) -> Iterator[tuple[Step, str, Tensor]]:
    """Yield, step by step, what the reference, twisted or not, adds to each tensor."""
    states: dict[Hashable, State] = defaultdict(dict)
    for step in trace.steps:
        for member in trace.scenario.stage.members:
            yield step, member.name, _update(held, trace, step, member.name, twist, states)
        if step.number == trace.scenario.saved_at and twist.keeps != "all":
            _lose(states, twist.keeps)


def worst(differences: Sequence[Difference]) -> Difference | None:
    """Return the update whose error is the most times its bound."""
    return max(differences, key=lambda each: each.ratio, default=None)


def _update(
    held: Held, trace: Trace, step: Step, name: str, twist: Twist, states: dict[Hashable, State]
) -> Tensor:
    """Return what the reference adds to one tensor."""
    p = step.before[name]
    gradient = twist.gradient(trace, name, step.number) if twist.gradient else step.gradients[name]
    acts = twist.acts is None or twist.acts(name, step.number)
    if gradient is None or p.numel() == 0 or (twist.blind and not acts):
        return torch.zeros_like(p)
    stage = trace.scenario.stage
    group = twist.treated_as(name) if twist.treated_as else stage.groups[stage.member(name).group]
    factor = twist.factor(step.number) if twist.factor else step.factor
    h = held.hyperparameters(group, factor, twist.switches)
    state = states[twist.state_of(name) if twist.state_of else name]
    assert held.reference.update is not None, "closures are tried apart"
    after = p
    for _ in range(twist.times):
        after = held.reference.update(after, gradient, state, h)
        round_state(state, twist.switches.get("state_dtype", held.state_dtype))
    update = (after - p) * twist.scale if acts else torch.zeros_like(p)
    if twist.skips_last:
        update = update.clone()
        update.view(-1)[-1] = 0.0
    return update


def _difference(held: Held, step: Step, name: str, update: Tensor, sizes: dict[str, float]) -> Difference:
    seen = step.moved(name)
    if seen.numel() == 0:
        return Difference(step.number, name, 0.0, 1.0)
    coded, matrix = held.bound.codes > 0 and seen.numel() >= CODED_FROM, seen.ndim >= 2
    # In few bits a small element keeps no digit, and may even change its sign: the mean over all tells more.
    measure = _root_mean_square if coded else _largest
    largest, error = measure(update), measure(seen - update)
    size = sizes[name] = max(largest, sizes.get(name, 0.0) * _FORGETS)
    furthest = max(float(step.before[name].abs().max()), float(step.after[name].abs().max()))
    allowed = held.bound.at(step.number, furthest, size, coded=coded, matrix=matrix)
    if math.isnan(error):
        return Difference(step.number, name, math.inf, allowed)
    if largest == 0.0:
        return Difference(step.number, name, 0.0 if error == 0.0 else math.inf, allowed)
    return Difference(step.number, name, error / size, allowed)


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def round_state(state: State, dtype: torch.dtype) -> None:
    """Round state to its dtype: all of it to a narrow one, to float32 only what lies outside of its range."""
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float64:
            continue
        if dtype == torch.float32:
            limits = torch.finfo(torch.float32)
            outside = (value.abs() < limits.tiny) | (value.abs() > limits.max)
            state[key] = torch.where(outside, value.float().double(), value)
        else:
            state[key] = value.to(dtype).double()


def _lose(states: dict[Hashable, State], keeps: str) -> None:
    """Forget state as a careless ``load_state_dict`` does; counts are the integers of a state."""
    for state in states.values():
        for key in list(state):
            counts = isinstance(state[key], (int, float))
            if keeps == "none" or (keeps == "moments" and counts) or (keeps == "count" and not counts):
                del state[key]
