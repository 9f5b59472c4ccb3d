"""The gradients that reach the optimizer in the first steps: are there any, and are they new?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from harness.checks.fingerprint import combined
from harness.tracing.extents import local_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Entered:
    """What entered the optimizer in one step.

    Attributes:
        tensors: gradients that there were.
        bits: fingerprint of them.
        zero: all their elements are 0.
    """

    tensors: int = 0
    bits: int = 0
    zero: bool = True


class GradientWatch:
    """Looks at every gradient just before an optimizer takes it, whatever wraps the optimizer, until closed.

    A gradient cannot be judged after the step: it is the optimizer's right to consume it.
    """

    def __init__(self) -> None:
        self.steps: list[Entered] = []
        self._handle: Any = register_optimizer_step_pre_hook(self._before)

    def next_step(self) -> None:
        """Count what comes for a further step."""
        self.steps.append(Entered())

    def close(self) -> None:
        """Look no more."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _before(self, optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
        if not self.steps or torch.compiler.is_compiling() or _is_capturing():
            return
        from torch.utils._python_dispatch import _disable_current_modes

        try:
            with _disable_current_modes():  # the operators of the optimizer are being counted, not ours
                here = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                if here:
                    self._add(here)
        except Exception:  # noqa: BLE001  # a gradient of a kind that cannot be read is no fault of the run
            self.steps.clear()

    def _add(self, gradients: Sequence[Tensor]) -> None:
        plain = [part for gradient in gradients for part in local_parts(gradient.detach())]
        last = self.steps[-1]
        self.steps[-1] = Entered(
            tensors=last.tensors + sum(part.numel() > 0 for part in plain),
            bits=hash((last.bits, combined(plain))),
            zero=last.zero and not any(bool(part.any()) for part in plain),
        )


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def stale(ranks: Sequence[Sequence[Entered]]) -> str | None:
    """Say why the gradients of the first two steps, whose samples differ, cannot be theirs; None: they can.

    A rank's share may be zero for good (rows of an embedding that nobody asked for), but not everybody's.
    """
    for rank, steps in enumerate(ranks):
        if len(steps) > 1 and steps[0].tensors and steps[0].bits == steps[1].bits and not steps[0].zero:
            return f"the gradients of rank {rank} that reached the optimizer in step 2 are those of step 1"
    if any(step.tensors for steps in ranks for step in steps) and all(s.zero for steps in ranks for s in steps):
        return "every gradient that reached the optimizer in the first steps was zero"
    return None
