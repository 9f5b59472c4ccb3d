"""What an optimizer holds beside the parameters that it steps on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def kept(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Walk state and attributes of an optimizer for tensors; its own parameters are not among them."""
    parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
    seen: set[int] = set()
    attributes = {k: v for k, v in vars(optimizer).items() if k not in {"param_groups", "state", "defaults"}}
    stack: list[tuple[str, object]] = [*attributes.items(), *(("", v) for v in dict(optimizer.state).values())]
    while stack:
        key, found = stack.pop()
        if id(found) in seen or id(found) in parameters:
            continue
        if isinstance(found, Tensor):
            seen.add(id(found))
            yield key, found
        elif isinstance(found, dict):
            seen.add(id(found))
            stack += [(f"{key}.{name}", inner) for name, inner in found.items()]
        elif isinstance(found, (list, tuple)):
            seen.add(id(found))
            stack += [(key, inner) for inner in found]
