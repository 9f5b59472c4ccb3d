"""What engines commonly do wrong, as behaviours that the reference can imitate."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from harness.verification.known import Behaviour, Trial, asked, clipped, norm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from harness.references.reference import Reference
    from harness.verification.known import Values

OWN = "gradients are not averaged over the ranks: each steps with its own"


def _without(trial: Trial, step: int, rank: int) -> Values:
    gradient = dict(asked(trial, step, rank))
    if step in trial.stream.without:
        del gradient["spare"]
    return gradient


def _as_zero(trial: Trial, step: int, rank: int) -> Values:
    gradient = dict(asked(trial, step, rank))
    if step in trial.stream.without:
        gradient["spare"] = torch.zeros_like(gradient["spare"])
    return gradient


def _as_before(trial: Trial, step: int, rank: int) -> Values:
    gradient, last = dict(asked(trial, step, rank)), step
    while last in trial.stream.without:
        last -= 1
    gradient["spare"] = asked(trial, last, rank)["spare"]
    return gradient


ABSENCES = (
    Behaviour("left alone", _without),
    Behaviour("stepped on with a gradient of zero", _as_zero),
    Behaviour(
        "stepped on with its last gradient once more: no model should have such parameters here", _as_before
    ),
)
"""What engines do with a parameter that has no gradient. The last is what DeepSpeed's stage 3 does (0.19), which
keeps its partition of each gradient until another one is written over it."""


def behaviours(reference: Reference, trial: Trial) -> Iterator[Behaviour]:
    """Yield every behaviour that is tried, what is simple first.

    Args:
        reference: whose own mistakes come last.
        trial: the longest one; where it stands still tells which steps were left out.
    """
    yield Behaviour("nothing happens: the step moves no parameter", _left_out)
    yield Behaviour("the gradient is zero when the step is taken (zero_grad between backward and step)", _zero)
    yield from _left_out_at_times(trial)
    yield from _left_out_tensors(trial)
    if trial.stream.ranks > 1:
        yield from _reduction()
    yield from _accumulation()
    yield from _clipping()
    yield from _rates()
    yield Behaviour("the optimizer's state is lost on load", forgets=True)
    for cause, switches in reference.mistakes.items():
        yield Behaviour(cause, switches=switches)


def _left_out(trial: Trial, step: int, rank: int) -> None:
    del trial, step, rank


def _zero(trial: Trial, step: int, rank: int) -> Values:
    del rank
    return {name: torch.zeros_like(each) for name, each in trial.stream.gradient(step).items()}


def _left_out_at_times(trial: Trial) -> Iterator[Behaviour]:
    """Yield that steps are left out in which nothing moves, in words those of the first engine."""
    steps = [step + 1 for step in range(trial.resumed_at or len(trial.factors)) if _stood_still(trial, step)]
    gaps = {later - earlier for earlier, later in itertools.pairwise([0, *steps])}
    if len(steps) > 1 and len(gaps) == 1:
        yield Behaviour(f"every {_ordinal(gaps.pop())} step is left out", _moving_only)
    elif steps:
        yield Behaviour(f"the step is left out at times: in step {', '.join(map(str, steps))}", _moving_only)


def _moving_only(trial: Trial, step: int, rank: int) -> Values | None:
    return None if _stood_still(trial, step) else asked(trial, step, rank)


def _left_out_tensors(trial: Trial) -> Iterator[Behaviour]:
    still = [
        name
        for name, first in trial.values[0].items()
        if all(torch.equal(first, values[name]) for values in trial.values)
    ]
    if not still or len(still) == len(trial.values[0]):
        return

    def before(trial: Trial, step: int, rank: int) -> Values:
        del rank
        some = {name: each for name, each in trial.stream.gradient(step).items() if name not in still}
        return clipped(some, trial.stream.clip_norm)

    def after(trial: Trial, step: int, rank: int) -> Values:
        return {name: each for name, each in asked(trial, step, rank).items() if name not in still}

    yield Behaviour(f"these tensors are left out: {', '.join(still)}", before)
    yield Behaviour(f"these tensors are left out: {', '.join(still)}", after)


def _stood_still(trial: Trial, step: int) -> bool:
    before, after = trial.values[step], trial.values[step + 1]
    return all(torch.equal(value, after[name]) for name, value in before.items())


def _ordinal(number: int) -> str:
    words = {1: "single", 2: "second", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth", 7: "seventh"}
    return words.get(number, f"{number}th")


def _made(of: Callable[[Tensor], Tensor]) -> Callable[[Trial, int, int], Values]:
    """Return a gradient made of each tensor's shares, then clipped as asked."""

    def gradient(trial: Trial, step: int, rank: int) -> Values:
        del rank
        made = {name: of(each) for name, each in trial.stream.shares(step).items()}
        return clipped(made, trial.stream.clip_norm)

    return gradient


def _own(trial: Trial, step: int, rank: int) -> Values:
    own = {name: each[:, rank].mean(0) for name, each in trial.stream.shares(step).items()}
    return clipped(own, trial.stream.clip_norm)


def _reduction() -> Iterator[Behaviour]:
    yield Behaviour("only rank 0's gradient is used", _made(lambda each: each[:, 0].mean(0)))
    yield Behaviour(OWN, _own)
    yield Behaviour("gradients are summed over the ranks, not averaged", _made(lambda each: each.sum(1).mean(0)))
    yield Behaviour(
        "gradients are averaged twice: 1/N^2 over N ranks", _made(lambda each: each.mean((0, 1)) / each.shape[1])
    )
    yield Behaviour("the last rank's gradient is dropped", _made(lambda each: each[:, :-1].mean((0, 1))))
    yield Behaviour(
        "the last rank's gradient counts as zero",
        _made(lambda each: each[:, :-1].sum(1).mean(0) / each.shape[1]),
    )


def _accumulation() -> Iterator[Behaviour]:
    yield Behaviour("only the last micro-batch's gradient is used", _made(lambda each: each[-1].mean(0)))
    yield Behaviour("only the first micro-batch's gradient is used", _made(lambda each: each[0].mean(0)))
    yield Behaviour("gradients of micro-batches are summed, not averaged", _made(lambda each: each.sum(0).mean(0)))
    yield Behaviour(
        "gradients of micro-batches are averaged twice", _made(lambda each: each.mean((0, 1)) / each.shape[0])
    )
    yield Behaviour(
        "accumulation is off by one: the last micro-batch is left out",
        _made(lambda each: each[: max(1, len(each) - 1)].sum(0).mean(0) / len(each)),
    )
    yield Behaviour(
        "accumulation is off by one: the first micro-batch is left out",
        _made(lambda each: each[min(1, len(each) - 1) :].sum(0).mean(0) / len(each)),
    )
    yield Behaviour("the step uses the gradient of the step before", _of_the_step_before)
    yield Behaviour("gradients are never cleared: they add up over the steps", _uncleared)


def _of_the_step_before(trial: Trial, step: int, rank: int) -> Values | None:
    return asked(trial, step - 1, rank) if step else None


def _uncleared(trial: Trial, step: int, rank: int) -> Values:
    """Add a step's gradient to what clipping has left of those before, in the same engine."""
    del rank
    added = trial.stream.gradient(_first(trial, step))
    for each in range(_first(trial, step), step):
        left, more = clipped(added, trial.stream.clip_norm), trial.stream.gradient(each + 1)
        added = {name: left[name] + more[name] for name in more}
    return clipped(added, trial.stream.clip_norm)


def _first(trial: Trial, step: int) -> int:
    """Return the first step of the engine that takes this one."""
    return 0 if trial.resumed_at is None or step < trial.resumed_at else trial.resumed_at


def _clipping() -> Iterator[Behaviour]:
    yield Behaviour("gradients are not clipped", lambda trial, step, _rank: trial.stream.gradient(step))
    yield Behaviour(
        "gradients are clipped at 1.0, which nobody asked for",
        lambda trial, step, _rank: clipped(trial.stream.gradient(step), trial.stream.clip_norm or 1.0),
    )
    yield Behaviour("gradients are clipped at 1.0 whatever was asked for", _clipped_at_one)
    yield Behaviour("clipped by each rank's own norm before gradients are averaged", _clipped_before)
    yield Behaviour("clipped by the norm of each rank's own gradient instead of the global norm", _clipped_by_own)
    yield Behaviour("clipped by the norm of each rank's shard instead of the global norm", _clipped_by_shard)
    yield Behaviour("clipped tensor by tensor instead of by the global norm", _clipped_by_tensor)


def _clipped_at_one(trial: Trial, step: int, rank: int) -> Values:
    del rank
    return clipped(trial.stream.gradient(step), 1.0)


def _clipped_before(trial: Trial, step: int, rank: int) -> Values:
    del rank
    shares, stream = trial.stream.shares(step), trial.stream
    each_rank = [
        clipped({name: each[:, rank].mean(0) for name, each in shares.items()}, stream.clip_norm)
        for rank in range(stream.ranks)
    ]
    return {name: torch.stack([own[name] for own in each_rank]).mean(0) for name in shares}


def _clipped_by_own(trial: Trial, step: int, rank: int) -> Values:
    own = {name: each[:, rank].mean(0) for name, each in trial.stream.shares(step).items()}
    return clipped(trial.stream.gradient(step), trial.stream.clip_norm, norm(own))


def _clipped_by_shard(trial: Trial, step: int, rank: int) -> Values:
    """Cut every tensor along dimension 0, as FSDP2 does."""
    del rank
    ranks, gradient = trial.stream.ranks, trial.stream.gradient(step)
    pieces = [
        {name: each.tensor_split(_cuts(each.shape[0], ranks))[rank] for name, each in gradient.items()}
        for rank in range(ranks)
    ]
    held = [clipped(piece, trial.stream.clip_norm) for piece in pieces]
    return {name: torch.cat([piece[name] for piece in held]) for name in gradient}


def _cuts(rows: int, ranks: int) -> tuple[int, ...]:
    each = -(-rows // ranks)
    return tuple(min(rows, each * rank) for rank in range(1, ranks))


def _clipped_by_tensor(trial: Trial, step: int, rank: int) -> Values:
    del rank
    gradient = trial.stream.gradient(step)
    return {name: clipped({name: each}, trial.stream.clip_norm)[name] for name, each in gradient.items()}


def _rates() -> Iterator[Behaviour]:
    yield Behaviour(
        "lr is stale: each step uses the rate of the step before",
        factor=lambda trial, step: trial.factors[max(_first(trial, step), step - 1)],
    )
    yield Behaviour(
        "lr is stale: it stays at its first value", factor=lambda trial, step: trial.factors[_first(trial, step)]
    )
    yield Behaviour("the schedule is ignored: lr stays at its peak", factor=lambda _trial, _step: 1.0)
    yield Behaviour("lr is stale after loading: it stays at the saved rate", factor=_saved_rate)
    yield Behaviour(
        "lr is stale after loading: it stays at the saved rate until it changes", factor=_until_changed
    )


def _saved_rate(trial: Trial, step: int) -> float:
    at = trial.resumed_at
    return trial.factors[step if at is None or step < at else at - 1]


def _until_changed(trial: Trial, step: int) -> float:
    """Return the saved rate for as long as the one asked for is what a fresh engine begins with."""
    at = trial.resumed_at
    if at is None or any(each != 1.0 for each in trial.factors[at : step + 1]):
        return trial.factors[step]
    return _saved_rate(trial, step)
