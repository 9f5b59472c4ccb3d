"""An overflow under fp16 that one rank sees counts for all that share a model."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from harness.errors import UnsupportedError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def refuse_second_unscaling(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that torch hands the scaler: it divides by the scale what has been divided already.

    Raises:
        UnsupportedError: its ``step`` takes ``grad_scaler`` and it says that it unscales.
    """
    takes = "grad_scaler" in inspect.signature(optimizer.step).parameters
    if takes and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UnsupportedError(
            f"{type(optimizer).__name__}.step takes grad_scaler and divides gradients by fp16's scale itself, "
            "after they have been unscaled for clipping; use --precision bf16"
        )


def agree(
    scaler: torch.amp.GradScaler,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    group: ProcessGroup | None,
) -> None:
    """Let every rank know of an overflow in any rank's plain shards, after ``unscale_`` and before ``step``.

    torch reduces what it finds in DTensors. Plain shards are this rank's own to it: one rank would leave a step
    out that the others do. A rank without a shard has found nothing, and takes part all the same.

    Args:
        scaler: that has unscaled the optimizer's gradients.
        optimizer: that steps on the shards.
        device: of the shards.
        group: the ranks that share the model; None: one rank has all of it.
    """
    states = scaler._per_optimizer_states  # noqa: SLF001  # where torch keeps it; there is no public way
    found = states[id(optimizer)]["found_inf_per_device"]
    any_rank = torch.zeros(1, device=device)
    for each in found.values():
        any_rank += each.to(device)
    if group is not None:
        dist.all_reduce(any_rank, dist.ReduceOp.MAX, group)
    for each in found.values():
        each.copy_(any_rank.reshape(each.shape).clamp(max=1))
    found.setdefault(device, any_rank.reshape(()).clamp(max=1))
