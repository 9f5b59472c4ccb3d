"""Compares many tensors with their reference at once: every element has a verdict of its own.

The error of an element is |d - d_ref| / size and its bound as in `harness.verification.comparing`; all tensors
of a trial lie in one vector, so that a thousand cost little more than one. State in few bits is judged block by
block: in the first step, which starts from none, every element, and in later ones the block's root mean square.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.registry import load
from harness.verification.comparing import AS_WRITTEN, CODED_FROM, Difference, round_state, updates_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from harness.references.reference import State
    from harness.verification.bounds import Bound
    from harness.verification.comparing import Held, Twist
    from harness.verification.playing import Step, Trace
    from harness.verification.stream import Member

_FORGETS = 0.9
_BLOCK = 256
"""Elements whose state in few bits shares a scale, at most; what is left over is judged with the block before."""
_GROSS = 0.5
"""Of the block's largest update: what no rounding explains in the first step."""


@dataclass(frozen=True)
class Found:
    """What a trial over many tensors shows.

    Attributes:
        members: the tensors, in the order of the vectors below.
        worst: the update whose error is the most times its bound.
        wrong: elements whose error exceeded their bound in any step.
        still: elements that never moved although the reference moves them.
        starts: where each tensor begins in the vectors, and the end of the last.
    """

    members: tuple[Member, ...]
    worst: Difference
    wrong: Tensor
    still: Tensor
    starts: tuple[int, ...]

    def parts(self, vector: Tensor) -> Iterator[tuple[Member, Tensor]]:
        """Yield each tensor with its part of a vector."""
        for member, first, last in zip(self.members, self.starts, self.starts[1:], strict=False):
            yield member, vector[first:last]


def judge(held: Held, trace: Trace, twist: Twist = AS_WRITTEN) -> Found:
    """Hold every element of a trace to the reference, twisted or not."""
    one_by_one = not _vectorises(held, trace, twist)
    expected = _by_tensor(held, trace, twist) if one_by_one else _joined(held, trace)
    return judged(held.bound, trace.scenario.stage.members, trace.steps, expected)


def judged(
    bound: Bound,
    members: Sequence[Member],
    steps: Sequence[Step],
    expected: Iterable[Mapping[str, Tensor] | Tensor],
) -> Found:
    """Hold every element of some steps to the updates that are expected.

    Args:
        bound: what rounding explains.
        members: the tensors, those of a group side by side.
        steps: what was seen.
        expected: the updates of each step, by tensor or joined in the order of members.
    """
    blocks = _Blocks(members, bound)
    wrong, moved, due = (torch.zeros(blocks.elements, dtype=torch.bool) for _ in range(3))
    worst = Difference(1, members[0].name, 0.0, 1.0)
    for step, wanted in zip(steps, expected, strict=True):
        update = wanted if isinstance(wanted, torch.Tensor) else joined(members, wanted)
        before, after = joined(members, step.before), joined(members, step.after)
        here, ratio, error = blocks.judge(step.number, before, after, update)
        wrong |= here
        moved |= before != after
        due |= update.abs() > blocks.room
        at = int(ratio.argmax())
        each = Difference(step.number, blocks.tensor(at), float(error[at]), float(blocks.allowed[at]))
        worst = max(worst, each, key=lambda found: found.ratio)
    still = due & ~moved
    return Found(tuple(members), worst, wrong, still & wrong, blocks.starts)


def joined(members: Sequence[Member], values: Mapping[str, Tensor | None]) -> Tensor:
    """Return the tensors' values as one vector."""
    parts = []
    for each in members:
        value = values[each.name]
        assert value is not None, "every tensor of these trials has a gradient"
        parts.append(value.reshape(-1))
    return torch.cat(parts)


class _Blocks:
    """The blocks in which tensors are judged: a tensor each, or 256 elements where state is in few bits.

    Attributes:
        elements: of all tensors.
        starts: of the tensors.
        allowed: bound of each block at the latest step.
        room: what each element may be off by at the latest step.
    """

    def __init__(self, members: Sequence[Member], bound: Bound) -> None:
        self._members, self._bound = members, bound
        counts, self._owner = [], []
        starts = [0]
        for number, each in enumerate(members):
            size = math.prod(each.shape)
            coded = bound.codes > 0 and size >= CODED_FROM
            pieces = [_BLOCK] * (size // _BLOCK - 1) + [_BLOCK + size % _BLOCK] if coded else [size]
            counts += pieces
            self._owner += [number] * len(pieces)
            starts.append(starts[-1] + size)
        self.starts, self.elements = tuple(starts), starts[-1]
        self._counts = torch.tensor(counts)
        self._block = torch.arange(len(counts)).repeat_interleave(self._counts, output_size=self.elements)
        self._coded = torch.tensor([bound.codes > 0 and self._size(n) >= CODED_FROM for n in self._owner])
        self._few = bool(self._coded.any())
        self._matrix = torch.tensor([len(members[n].shape) >= 2 for n in self._owner])
        self._sizes = torch.zeros(len(counts), dtype=torch.float64)
        self.allowed, self.room = self._sizes, torch.zeros(0)

    def _size(self, number: int) -> int:
        return self.starts[number + 1] - self.starts[number]

    def tensor(self, block: int) -> str:
        """Return the name of the tensor that a block belongs to."""
        return self._members[self._owner[block]].name

    def judge(self, step: int, before: Tensor, after: Tensor, update: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which elements are wrong in a step, and of each block the error in bounds, and in sizes."""
        largest = self._measured(update, step)
        if step == 2:  # measured otherwise from here on
            self._sizes = torch.where(self._coded, 0.0, self._sizes)
        self._sizes = torch.maximum(largest, self._sizes * _FORGETS)
        furthest = torch.maximum(self._largest(before), self._largest(after))
        own = torch.where(self._sizes > 0, 2 * self._bound.parameter_unit * furthest / self._sizes, 0.0)
        self.allowed = self._computing(step) + own
        difference = after - before - update
        error = self._measured(difference, step) / self._sizes
        still = largest == 0  # where the reference does not move, nothing may
        error = torch.where(still, torch.where(self._largest(difference) == 0, 0.0, torch.inf), error)
        error = torch.where(error.isnan(), torch.inf, error)
        allowed = torch.where(still, 0.0, self.allowed * self._sizes)
        self.room = self._spread(allowed)
        beyond = ~(difference.abs() <= self.room)
        if step > 1 and self._few:
            whole = self._spread(error > self.allowed)
            beyond = torch.where(self._spread(self._coded), whole, beyond)
        return beyond, error / self.allowed, error

    def _computing(self, step: int) -> Tensor:
        plain, bound = self._bound.computing(step, coded=False), self._bound
        few = _GROSS if step == 1 else bound.codes
        return plain + bound.iterated * self._matrix + torch.where(self._coded, few, 0.0)

    def _measured(self, vector: Tensor, step: int) -> Tensor:
        if step == 1 or not self._few:
            return self._largest(vector)
        squares = torch.segment_reduce(vector.square(), "mean", lengths=self._counts)
        return torch.where(self._coded, squares.sqrt(), self._largest(vector))

    def _largest(self, vector: Tensor) -> Tensor:
        return torch.segment_reduce(vector.abs(), "max", lengths=self._counts)

    def _spread(self, each: Tensor) -> Tensor:
        return each[self._block]


def _vectorises(held: Held, trace: Trace, twist: Twist) -> bool:
    """Say whether the reference steps every element by itself, so that tensors of a group may be one vector."""
    algorithm = load("harness.optimizers.algorithms:ALGORITHMS").get(held.reference.algorithm)
    dense = not any(each.sparse for each in trace.scenario.stage.members)
    return dense and twist is AS_WRITTEN and algorithm is not None and algorithm.granularity == "element"


def _by_tensor(held: Held, trace: Trace, twist: Twist) -> Iterator[dict[str, Tensor]]:
    """Yield each step's updates by tensor."""
    for _, same in itertools.groupby(updates_of(held, trace, twist), key=lambda each: each[0].number):
        yield {name: update for _, name, update in same}


def _joined(held: Held, trace: Trace) -> Iterator[Tensor]:
    """Yield each step's updates joined; the tensors of a group are one to the reference."""
    assert held.reference.update is not None, "closures are tried apart"
    stage = trace.scenario.stage
    groups = [
        (group, [each for each in stage.members if each.group == number])
        for number, group in enumerate(stage.groups)
    ]
    states: list[State] = [{} for _ in groups]
    for step in trace.steps:
        parts = []
        for (group, members), state in zip(groups, states, strict=True):
            if not members:
                continue
            p, g = joined(members, step.before), joined(members, step.gradients)
            h = held.hyperparameters(group, step.factor, {})
            parts.append(held.reference.update(p, g, state, h) - p)
            round_state(state, held.state_dtype)
        yield torch.cat(parts)
