"""The optimizer in the backward pass: one for each parameter, which steps as soon as its gradient is complete."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.optimizers.composite import Composite
from harness.optimizers.construct import facts as optimizer_facts
from harness.stepping import Driver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from pydantic import JsonValue
    from torch import Tensor

    from harness.interfaces import Optimizer, ParamGroup
    from harness.spec import RunSpec


class InBackward:
    """Hooks every parameter and frees its gradient once it is used.

    Nothing happens in a backward pass unless it is a step's last: earlier micro-batches only add to the gradients.
    FSDP2 calls the hooks of a sharded parameter once its gradient has been reduced.

    Args:
        groups: the model's parameters.
        entry: builds an optimizer for each parameter, which is alone in its group; the other groups are empty,
            and tell that the model has such roles elsewhere.
        spec: of the run.
    """

    def __init__(self, groups: Sequence[ParamGroup], entry: Optimizer, spec: RunSpec) -> None:
        self._armed = False
        self._parts: list[torch.optim.Optimizer] = []
        for group in groups:
            others = [replace(each, names=(), parameters=()) for each in groups if each is not group]
            for name, parameter in zip(group.names, group.parameters, strict=True):
                alone = replace(group, names=(name,), parameters=(parameter,))
                built = entry.build([alone, *others], spec)
                self._parts += getattr(built, "parts", ()) or (built,)
                hook = self._hook(Driver(built, entry.name, entry.traits))
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        self.optimizer = Composite(self._parts)

    def _hook(self, driver: Driver) -> Callable[[Tensor], None]:
        def step(parameter: Tensor) -> None:
            if self._armed:
                driver.step()
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
