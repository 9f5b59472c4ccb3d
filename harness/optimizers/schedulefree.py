"""Schedule-free optimizers of their authors' package; they are told when training turns to evaluation and back."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.optimizers.third_party import ThirdParty, import_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from harness.interfaces import ParamGroup
    from harness.spec import RunSpec


class ScheduleFree(ThirdParty):
    """A class of schedulefree.

    Args:
        algorithm: name of what it computes.
        class_name: in schedulefree.
        word: ``forloop`` or ``foreach``.
    """

    package = family = "schedulefree"

    def __init__(self, algorithm: str, class_name: str, word: str) -> None:
        super().__init__(
            algorithm,
            f"schedulefree-{word}",
            f"schedulefree:{class_name}",
            traits={"evaluation_switch": True},
        )
        self._foreach = word == "foreach"

    def arguments(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """Return the hyperparameters and the flag that chooses the loop."""
        return {**chosen, "foreach": self._foreach}

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Construct the class and put it in train mode: it begins in the other one, and would refuse to step."""
        optimizer = super().build(groups, spec)
        optimizer.train()  # type: ignore[attr-defined]  # these classes have it
        return optimizer


_CLASSES = {
    "adamw-schedule-free": "AdamWScheduleFree",
    "radam-schedule-free": "RAdamScheduleFree",
    "sgd-schedule-free": "SGDScheduleFree",
}

OPTIMIZERS: Mapping[str, ScheduleFree] = MappingProxyType(
    {
        each.name: each
        for name, class_name in _CLASSES.items()
        for each in (ScheduleFree(name, class_name, word) for word in ("forloop", "foreach"))
    }
)
"""Every one of the package's classes that takes no closure, by name."""


def probe() -> dict[str, JsonValue]:
    """Return ``error``: why schedulefree cannot be imported; None: it can."""
    return import_error("schedulefree")
