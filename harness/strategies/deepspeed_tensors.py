"""What a DeepSpeed engine holds on this rank, found on the live objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from harness.interfaces import Category


def live_tensors(engine: Any) -> Iterator[tuple[Category, Tensor]]:
    """Yield every tensor with its category."""
    for parameter in engine.module.parameters():
        yield "parameters", parameter
        if parameter.grad is not None:
            yield "gradients", parameter.grad
    for buffer in engine.module.buffers():
        yield "buffers", buffer
    for state in engine.basic_optimizer.state.values():
        for found in state.values():
            if hasattr(found, "untyped_storage"):
                yield "state", found
