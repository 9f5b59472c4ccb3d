"""The optimizer in the backward pass: one for each parameter, which steps as soon as its gradient is complete."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.optimizers.composite import Composite
from harness.optimizers.construct import facts as optimizer_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from pydantic import JsonValue
    from torch import Tensor

    from harness.interfaces import ParamGroup


class InBackward:
    """Hooks every parameter and frees its gradient once it is used.

    Nothing happens in a backward pass unless it is a step's last: earlier micro-batches only add to the gradients.
    FSDP2 calls the hooks of a sharded parameter once its gradient has been reduced.

    Args:
        groups: the model's parameters.
        build: makes an optimizer over groups. It is called once for each parameter, which is alone in its group;
            the other groups are empty, and tell that the model has such roles elsewhere.
    """

    def __init__(
        self, groups: Sequence[ParamGroup], build: Callable[[Sequence[ParamGroup]], torch.optim.Optimizer]
    ) -> None:
        self._armed = False
        self._parts: list[torch.optim.Optimizer] = []
        for group in groups:
            others = [replace(each, names=(), parameters=()) for each in groups if each is not group]
            for name, parameter in zip(group.names, group.parameters, strict=True):
                alone = replace(group, names=(name,), parameters=(parameter,))
                built = build([alone, *others])
                self._parts += getattr(built, "parts", ()) or (built,)
                parameter.register_post_accumulate_grad_hook(self._hook(built))  # type: ignore[no-untyped-call]
        self.optimizer = Composite(self._parts)

    def _hook(self, optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None]:
        def step(parameter: Tensor) -> None:
            if self._armed:
                optimizer.step()
                parameter.grad = None

        return step

    def arm(self, *, last: bool) -> None:
        """Say whether the next backward pass is a step's last, which completes the gradients."""
        self._armed = last

    def facts(self) -> dict[str, JsonValue]:
        """Return the first optimizer's facts, every one's groups, and how many there are."""
        found = optimizer_facts(self._parts[0])
        groups = optimizer_facts(self.optimizer)["groups"]
        return {**found, "groups": groups, "instances": len(self._parts), "steps": "in the backward pass"}
