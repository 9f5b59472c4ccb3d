"""The gradients that reach the optimizer in the first steps: are there any, and are they new?"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from harness.checks.fingerprint import combined
from harness.tracing.extents import local_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


Strides = Literal["contiguous", "alike", "any"]
"""How parameters and gradients lie in memory: `harness.interfaces.OptimizerTraits.strides`."""

_LOOSER: tuple[Strides, ...] = ("contiguous", "alike", "any")


@dataclass(frozen=True)
class Entered:
    """What an optimizer took in one step: what entered it, or what its closure made.

    Attributes:
        tensors: gradients that there were.
        bits: fingerprint of them.
        zero: all their elements are 0.
        found: fingerprints of the gradients, not all zero, that a step with a closure found on entry.
        left: fingerprints of those that such a step left behind, as it made or changed them.
        lying: how they and their parameters lay in memory, the loosest that was seen.
    """

    tensors: int = 0
    bits: int = 0
    zero: bool = True
    found: frozenset[int] = frozenset()
    left: frozenset[int] = frozenset()
    lying: Strides = "contiguous"


class GradientWatch:
    """Looks at every gradient just before an optimizer takes it, whatever wraps the optimizer, until closed.

    Of a step without a closure these are the gradients on entry; of one with a closure, those after each
    evaluation, and apart from them what it finds on entry and leaves behind. A gradient cannot be judged after a
    step: it is the optimizer's right to consume it.
    """

    def __init__(self) -> None:
        self.steps: list[Entered] = []
        self._handles: list[Any] = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]

    def next_step(self) -> None:
        """Count what comes for a further step."""
        self.steps.append(Entered())

    def close(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(
        self, optimizer: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not _has_closure(arguments, named):
            self._look(optimizer, self._add)
            return None
        self._look(optimizer, lambda gradients: self._note("found", gradients))
        watched = functools.partial(self._watched, optimizer)
        return (
            tuple(watched(each) if _is_closure(each) else each for each in arguments),
            {name: watched(each) if _is_closure(each) else each for name, each in named.items()},
        )

    def _watched(self, optimizer: Optimizer, closure: Callable[..., Any]) -> Callable[..., Any]:
        """Return a closure that does the same, after which the gradients are looked at."""

        @functools.wraps(closure)
        def evaluated(*arguments: Any, **named: Any) -> Any:
            loss = closure(*arguments, **named)
            self._look(optimizer, self._add)
            return loss

        return evaluated

    def _after(self, optimizer: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if _has_closure(arguments, named):
            self._look(optimizer, lambda gradients: self._note("left", gradients))

    def _look(self, optimizer: Optimizer, take: Callable[[list[Tensor]], None]) -> None:
        if not self.steps or not self._handles or torch.compiler.is_compiling() or _is_capturing():
            return
        from torch.utils._python_dispatch import _disable_current_modes

        try:
            with _disable_current_modes():  # the operators of the optimizer are being counted, not ours
                here = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                self._note_strides(optimizer)
                if here:
                    take([part.contiguous() for gradient in here for part in local_parts(gradient.detach())])
        except Exception:  # noqa: BLE001  # a gradient of a kind that cannot be read is no fault of the run
            self.steps.clear()

    def _note_strides(self, optimizer: Optimizer) -> None:
        last = self.steps[-1]
        pairs = [(p, p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # A sparse gradient has more parts than its parameter, of other shapes.
        parts = [pair for p, g in pairs for pair in zip(local_parts(p), local_parts(g), strict=False)]
        seen = [lying(*pair) for pair in parts]
        self.steps[-1] = replace(last, lying=max([last.lying, *seen], key=_LOOSER.index))

    def _add(self, gradients: list[Tensor]) -> None:
        last = self.steps[-1]
        self.steps[-1] = replace(
            last,
            tensors=last.tensors + sum(part.numel() > 0 for part in gradients),
            bits=hash((last.bits, combined(gradients))),
            zero=last.zero and not _any(gradients),
        )

    def _note(self, where: Literal["found", "left"], gradients: list[Tensor]) -> None:
        if _any(gradients):
            last = self.steps[-1]
            bits = frozenset([combined(gradients)])
            if where == "found":
                self.steps[-1] = replace(last, found=last.found | bits)
            else:
                self.steps[-1] = replace(last, left=last.left | bits)


def _any(gradients: Sequence[Tensor]) -> bool:
    return any(bool(part.any()) for part in gradients)


def _is_closure(argument: object) -> bool:
    return callable(argument) and not isinstance(argument, (Optimizer, Tensor))


def _has_closure(arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    return any(_is_closure(each) for each in (*arguments, *named.values()))


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def lying(parameter: Tensor, gradient: Tensor) -> Strides:
    """Return how a parameter and its gradient lie in memory; a dimension of one element has no stride."""
    if parameter.shape != gradient.shape or parameter.numel() < 2:  # one element has no order
        return "contiguous"
    if parameter.is_contiguous() and gradient.is_contiguous():
        return "contiguous"
    longer = [n for n, length in enumerate(parameter.shape) if length > 1]
    same = all(parameter.stride(n) == gradient.stride(n) for n in longer)
    return "alike" if same and _without_gaps(parameter) else "any"


def _without_gaps(tensor: Tensor) -> bool:
    """Say whether a tensor's elements fill a piece of memory, each once."""
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1:
            if stride != expected:
                return False
            expected *= length
    return True


def misread(ranks: Sequence[Sequence[Entered]], declared: Strides) -> str | None:
    """Say whether what reached an optimizer lay otherwise than it declares that it must; None: it did not."""
    for rank, steps in enumerate(ranks):
        if any(_LOOSER.index(step.lying) > _LOOSER.index(declared) for step in steps):
            what = "contiguous" if declared == "contiguous" else "of the same strides, without gaps"
            return f"parameters and gradients of rank {rank} that reached the optimizer are not {what}"
    return None


def stale(ranks: Sequence[Sequence[Entered]]) -> str | None:
    """Say why the gradients of the first two steps, whose samples differ, cannot be theirs; None: they can.

    A rank's share may be zero for good (rows of an embedding that nobody asked for), but not everybody's.
    """
    for rank, steps in enumerate(ranks):
        if len(steps) > 1 and steps[1].found & steps[0].left:
            return f"step(closure) of rank {rank} found in step 2 the gradients that step 1 had left"
        if len(steps) > 1 and steps[0].tensors and steps[0].bits == steps[1].bits and not steps[0].zero:
            return f"the gradients of rank {rank} that reached the optimizer in step 2 are those of step 1"
    if any(step.tensors for steps in ranks for step in steps) and all(s.zero for steps in ranks for s in steps):
        return "every gradient that reached the optimizer in the first steps was zero"
    return None
