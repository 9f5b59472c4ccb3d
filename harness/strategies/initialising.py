"""Build a model on the rank's device, in the dtype that the precision asks for, with its workload's values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness import precision

if TYPE_CHECKING:
    from harness.interfaces import Workload
    from harness.spec import Precision


def build(workload: Workload, device: torch.device) -> nn.Module:
    """Return the model on the device, values undefined."""
    with device:
        model = workload.build()
    return model.to(device)


def initialise(model: nn.Module, workload: Workload, seed: int) -> None:
    """Fill every parameter and persistent buffer from seed and name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            workload.initialise(name, parameter, seed)
        for name, buffer in persistent_buffers(model):
            workload.initialise(name, buffer, seed)


def persistent_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the named buffers that the state dict holds."""
    persistent = model.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in model.named_buffers() if name in persistent]


def cast_inputs(model: nn.Module, chosen: Precision) -> None:
    """Have the model's floating inputs cast to bf16, in training and evaluation, where its parameters are bf16."""
    if precision.model_dtype(chosen) == "bfloat16":
        model.register_forward_pre_hook(_to_bfloat16, with_kwargs=True)


def _to_bfloat16(
    _model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(_cast(each) for each in arguments), {key: _cast(each) for key, each in keywords.items()}


def _cast(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.bfloat16)
    return value
