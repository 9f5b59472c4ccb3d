"""Construct optimizers so that what reached the constructor is known afterwards."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

from harness.rates import number, remember_peak

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    import torch
    from pydantic import JsonValue
    from torch import Tensor

    from harness.interfaces import ParamGroup

    AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)

_ARGUMENTS = "optbench_arguments"
"""Attribute of a constructed optimizer: its arguments as they arrived. torch pickles and saves it nowhere."""


def torch_groups(groups: Sequence[ParamGroup], lr: object, weight_decay: object) -> list[dict[str, Any]]:
    """Turn ParamGroups into torch's, one for each pair of learning rate and weight decay.

    Groups that are treated alike become one, so that kernels over many tensors get all of them at once. Tensors
    with sparse gradients are never decayed: decay would touch every row, and torch refuses it. A setting that is
    no number (None, a word, a callable) stands in no group: the constructor's own holds for all. A tensor is
    copied, so that no two groups share one.

    Args:
        groups: to merge, in order.
        lr: peak learning rate, multiplied by each group's scale; None: the class knows none, or finds its own.
        weight_decay: for the groups that decay, 0 for the others; None: the algorithm knows none.
    """
    merged: dict[Hashable, dict[str, Any]] = {}
    for group in groups:
        if not group.parameters:  # another rank's
            continue
        decays = group.decay and group.role != "sparse"
        asked = {"lr": _scaled(lr, group.lr_scale), "weight_decay": _scaled(weight_decay, 1.0 if decays else 0.0)}
        settings = {name: value for name, value in asked.items() if value is not None}
        alike = tuple((name, number(value)) for name, value in settings.items())
        merged.setdefault(alike, {"params": [], **settings})["params"] += group.parameters
    return list(merged.values())


def _scaled(value: object, factor: float) -> Any:
    """Return a setting times a factor, in an object of its own; None: it is no number."""
    amount = number(value)
    if amount is None:
        return None
    detach = getattr(value, "detach", None)
    return amount * factor if detach is None else detach().clone() * factor


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
    return called(cls, (groups,), arguments)


def called(
    cls: Callable[..., AnyOptimizer], positional: Sequence[Any], arguments: Mapping[str, Any]
) -> AnyOptimizer:
    """Return ``cls(*positional, **arguments)``, noted as `construct` does.

    Tensors among the defaults of the signature are one object for every instance, and what reaches
    ``super().__init__`` is one object for every group: each instance and each group gets a copy, since a schedule
    fills such a tensor in place.
    """
    defaults = _defaults(cls)
    copies = {name: copy.deepcopy(value) for name, value in defaults.items() if _holds_tensor(value)}
    optimizer = cls(*positional, **{**copies, **arguments})
    _check_made(cls, optimizer)
    _part_groups(optimizer)
    note_arguments(optimizer, {**defaults, **arguments})
    return optimizer


def _check_made(cls: Callable[..., Any], made: object) -> None:
    """Refuse what a function returns that is no optimizer; a class makes what it is."""
    import torch

    if not isinstance(cls, type) and not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"it returns {type(made).__name__}, no instance of torch.optim.Optimizer")


def _holds_tensor(value: object) -> bool:
    import torch

    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(each) for each in value)
    return isinstance(value, torch.Tensor)


def _part_groups(optimizer: torch.optim.Optimizer) -> None:
    """Copy each setting that holds a tensor and that an earlier group, or ``defaults``, has too."""
    held: set[int] = set()
    for settings in (*optimizer.param_groups, getattr(optimizer, "defaults", {})):  # torchao's wrapper has none
        for name, value in settings.items():
            if name == "params" or not _holds_tensor(value):
                continue
            if id(value) in held:
                settings[name] = copy.deepcopy(value)
            held.add(id(value))


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
    return {
        each.name: each.default
        for each in parameters
        if each.default is not each.empty and each.kind is not each.POSITIONAL_ONLY
    }


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
