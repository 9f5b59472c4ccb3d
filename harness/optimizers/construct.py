"""Construct optimizers so that what reached the constructor is known afterwards, and drive their learning rate."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch
    from pydantic import JsonValue
    from torch import Tensor

    from harness.interfaces import ParamGroup

    AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)

_ARGUMENTS = "optbench_arguments"
"""Attribute of a constructed optimizer: its arguments as they arrived. torch pickles and saves it nowhere."""

_PEAK = "initial_lr"
"""Key of a parameter group for its peak learning rate; the one that torch's own schedulers use."""


def torch_groups(groups: Sequence[ParamGroup], lr: float, weight_decay: float | None) -> list[dict[str, Any]]:
    """Turn ParamGroups into torch's, one for each pair of learning rate and weight decay.

    Groups that are treated alike become one, so that kernels over many tensors get all of them at once. Tensors
    with sparse gradients are never decayed: decay would touch every row, and torch refuses it.

    Args:
        groups: to merge, in order.
        lr: peak learning rate, multiplied by each group's scale.
        weight_decay: for the groups that decay, 0 for the others; None: the algorithm knows none.
    """
    merged: dict[tuple[float, float | None], list[Tensor]] = {}
    for group in groups:
        if not group.parameters:  # another rank's
            continue
        decay = weight_decay
        if decay is not None and not (group.decay and group.role != "sparse"):
            decay = 0.0
        merged.setdefault((lr * group.lr_scale, decay), []).extend(group.parameters)
    return [
        {"params": parameters, "lr": rate} | ({} if decay is None else {"weight_decay": decay})
        for (rate, decay), parameters in merged.items()
    ]


def construct(
    cls: Callable[..., AnyOptimizer], params: Iterable[Tensor] | Sequence[dict[str, Any]], **arguments: Any
) -> AnyOptimizer:
    """Return ``cls(params, **arguments)``, its arguments noted for `facts` and its peak rates for `set_lr`.

    Args:
        cls: the class, or what makes one.
        params: parameters or torch's parameter groups; groups are copied, so that the caller's stay as they are.
        arguments: keyword arguments of the constructor.
    """
    groups = [dict(each) if isinstance(each, dict) else each for each in params]
    optimizer = cls(groups, **arguments)
    note_arguments(optimizer, {**_defaults(cls), **arguments})
    return optimizer


def note_arguments(optimizer: torch.optim.Optimizer, arguments: Mapping[str, Any]) -> None:
    """Note what a constructor got, and its peak rates; for one that a library calls itself, use it afterwards."""
    setattr(optimizer, _ARGUMENTS, {name: json_safe(value) for name, value in arguments.items()})
    remember_peak(optimizer)


def _defaults(cls: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of the constructor's keywords: what a caller leaves out reaches it too."""
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):  # some classes of compiled modules have no signature
        return {}
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def remember_peak(optimizer: torch.optim.Optimizer) -> None:
    """Note each group's present learning rate as its peak, once; groups without one stay as they are."""
    for group in optimizer.param_groups:
        if "lr" in group:
            group.setdefault(_PEAK, float(group["lr"]))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times its peak.

    A rate held in a tensor is filled in place, without a synchronisation: a compiled step then keeps its graph.
    """
    import torch

    for group in optimizer.param_groups:
        if "lr" not in group:
            continue
        peak = group.setdefault(_PEAK, float(group["lr"]))
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(peak * factor)
        else:
            group["lr"] = peak * factor


def facts(optimizer: torch.optim.Optimizer) -> dict[str, JsonValue]:
    """Return what really runs: class, arguments as received, each group's flags now, and a composite's parts.

    ``arguments`` is None for an optimizer that was not made by `construct`.
    """
    found: dict[str, JsonValue] = {
        "class": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
        "arguments": getattr(optimizer, _ARGUMENTS, None),
        "groups": [_group_facts(group) for group in optimizer.param_groups],
    }
    parts: Sequence[torch.optim.Optimizer] = getattr(optimizer, "parts", ())
    if parts:
        found["parts"] = [cast("JsonValue", facts(part)) for part in parts]
    return found


def _group_facts(group: dict[str, Any]) -> JsonValue:
    parameters: list[Tensor] = group["params"]
    settings = {str(key): json_safe(value) for key, value in group.items() if key not in {"params", "param_names"}}
    return {
        "tensors": len(parameters),
        "elements": sum(p.numel() for p in parameters),
        **settings,
    }


def json_safe(value: Any) -> JsonValue:
    """Return ``value`` as JSON can hold it: small tensors by value, classes by name, anything else by repr."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        # JSON has no infinities, which stand for "off" in some constructors.
        return value if value - value == 0 else repr(value)
    if isinstance(value, (list, tuple)):
        return [json_safe(each) for each in value]
    if isinstance(value, dict):
        return {str(key): json_safe(each) for key, each in value.items()}
    return _described(value)


def _described(value: Any) -> JsonValue:
    import torch

    if isinstance(value, torch.Tensor):
        content: JsonValue = value.item() if value.numel() == 1 else str(tuple(value.shape))
        return {"tensor": content, "dtype": str(value.dtype), "device": str(value.device)}
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)
