"""What the optimizer steps on where that is not the model's own parameters: fp32 masters, plain local shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from harness.interfaces import Category


class Stepped(Protocol):
    """Parameters of the optimizer's own, and the way between them and the model's."""

    label: str
    """For the facts: what is stepped on."""
    named: list[tuple[str, nn.Parameter]]
    """By the model's names."""

    def collect(self) -> None:
        """Give every parameter the gradient of its counterpart in the model."""
        ...

    def publish(self) -> None:
        """Bring the updated values into the model."""
        ...

    def tensors(self) -> Iterable[tuple[Category, Tensor]]:
        """Yield what is held beside the model."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the model's own state does not tell."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        ...


class MasterWeights:
    """An fp32 copy of every trainable parameter; the model becomes bf16 and is rounded from them after each step.

    Args:
        module: in fp32, initialised: its values become the masters', and its floating tensors bf16.
    """

    label: str = "fp32 master weights"

    def __init__(self, module: nn.Module) -> None:
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.named = [(name, nn.Parameter(p.detach())) for name, p in trained]
        self._masters = [master.detach() for _, master in self.named]
        module.to(torch.bfloat16)  # leaves the old storages to the masters
        self._model = [p for name, p in module.named_parameters() if p.requires_grad]
        self._values = [p.detach() for p in self._model]
        self._gradients = [torch.zeros_like(master) for master in self._masters]

    def collect(self) -> None:
        """Widen the model's gradients."""
        into, found = [], []
        for (_, master), own, parameter in zip(self.named, self._gradients, self._model, strict=True):
            master.grad = None if parameter.grad is None else own
            if parameter.grad is not None:
                into.append(own)
                found.append(parameter.grad)
        if into:
            torch._foreach_copy_(into, found)

    def publish(self) -> None:
        """Round the masters to the model's dtype."""
        torch._foreach_copy_(self._values, self._masters)

    def tensors(self) -> Iterator[tuple[Category, Tensor]]:
        """Yield masters and their gradients."""
        for master in self._masters:
            yield "master", master
        for gradient in self._gradients:
            yield "gradients", gradient

    def state_dict(self) -> dict[str, Tensor]:
        """Return the masters by name."""
        return {name: master.detach() for name, master in self.named}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the masters."""
        for name, master in self.named:
            master.detach().copy_(state[name])


class LocalShards:
    """This rank's chunk of every DTensor as a plain parameter in the same memory.

    For kernels that read tensors by address, which DTensors do not allow; right for element-wise updates only.
    Empty chunks are left out: there is nothing to update.

    Args:
        named: the model's sharded parameters.
    """

    label: str = "local shards"

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        pairs = [(name, p, nn.Parameter(local(p.detach()))) for name, p in named if p.requires_grad]
        self._pairs = [(p, shard) for _, p, shard in pairs if shard.numel()]
        self.named = [(name, shard) for name, _, shard in pairs if shard.numel()]

    def collect(self) -> None:
        """Point at the local gradients."""
        for parameter, shard in self._pairs:
            shard.grad = None if parameter.grad is None else local(parameter.grad)

    def publish(self) -> None:
        """Nothing: the memory is the model's."""

    def tensors(self) -> Iterable[tuple[Category, Tensor]]:
        """Nothing beside the model."""
        return ()

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing beside the model's."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""


def local(tensor: Tensor) -> Tensor:
    """Return a DTensor's local shard, and any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Idle(torch.optim.Optimizer):
    """Stands where a rank has no parameter of its own to update."""

    def __init__(self) -> None:
        super().__init__([{"params": []}], {})

    def step(self, closure: object = None, loss: object = None) -> None:  # type: ignore[override]
        """Do nothing, whatever the others are stepped with."""
