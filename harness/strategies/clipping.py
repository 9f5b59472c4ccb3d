"""Clipping by the global L2 norm, with the same number for whole tensors and for shards of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import distributed as dist

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-6
"""Added to the norm that is divided by, as torch.nn.utils.clip_grad_norm_ does."""


def clip(
    gradients: list[Tensor], max_norm: float, group: dist.ProcessGroup | None, device: torch.device
) -> Tensor:
    """Scale dense gradients in place so that their global norm is at most ``max_norm``; return the norm before.

    Norms are taken and added in float32, whatever narrower dtype the gradients have.

    Args:
        gradients: this rank's plain tensors; none of its own is fine.
        max_norm: of all ranks' tensors together.
        group: the ranks that hold different parts of the gradients; None: every rank has all of them.
        device: of the answer.

    Returns:
        The norm, shape (), float32 (float64 for such gradients), on the device.
    """
    total = _norm(gradients, device)
    if group is not None:
        squared = total.square()
        dist.all_reduce(squared, group=group)
        total = squared.sqrt()
    if gradients:
        torch._foreach_mul_(gradients, (max_norm / (total + EPSILON)).clamp(max=1.0))
    return total


def _norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    if not gradients:
        return torch.zeros((), device=device)
    wide = None if all(each.dtype.itemsize >= 4 for each in gradients) else torch.float32
    norms = torch._foreach_norm(gradients, 2.0, dtype=wide)  # noqa: SLF001  # as torch's own clipping does
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
