"""Hyperparameters as an instance of an optimizer holds them, whatever its constructor's signature shows."""

from __future__ import annotations

import dataclasses
import types
from typing import TYPE_CHECKING, Any

from harness.rates import PEAK, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_NO_SETTINGS = frozenset({"params", "param_names", PEAK})


def held(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return name -> value of an instance's settings: numbers, flags and tuples of numbers.

    They stand in ``defaults``, else in the first parameter group, else among the attributes of the optimizer or of
    a dataclass, a namespace or a dictionary that it holds.
    """
    own = vars(optimizer)
    inside: dict[str, Any] = {}
    for value in own.values():
        inside |= _fields(value)
    group = optimizer.param_groups[0] if optimizer.param_groups else {}
    found = {**inside, **own, **group, **getattr(optimizer, "defaults", {})}
    return {name: value for name, value in found.items() if name not in _NO_SETTINGS and _is_setting(value)}


def in_groups(optimizer: torch.optim.Optimizer, name: str) -> bool:
    """Say whether a parameter group has a setting of that name: then it may differ between groups."""
    return any(name in group for group in optimizer.param_groups)


def _fields(value: object) -> Mapping[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}
    if isinstance(value, types.SimpleNamespace):
        return vars(value)
    if isinstance(value, dict):
        return {name: each for name, each in value.items() if isinstance(name, str)}
    return {}


def _is_setting(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return bool(value) and all(number(each) is not None for each in value)
    return isinstance(value, bool) or number(value) is not None
