"""Which tensors can be reached from an object; none of the code of what is looked at runs."""

from __future__ import annotations

import gc
import logging
import sys
import types
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

MOST_OBJECTS = 1_000_000
"""Objects that are looked at; what lies behind them is left to the trace, which sees memory that nobody claims."""

CLOSED = (types.ModuleType, types.FrameType, types.CodeType, logging.Logger, logging.Handler)
"""Kinds through which everything can be reached."""

CONTAINERS = (dict, list, tuple, set, frozenset, deque)


def reachable(roots: Iterable[object], beyond: Collection[object] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that is reachable, with the last name on the way to it, and each once.

    Followed are attributes, slots, containers of any kind, closures, partial and bound functions, generators,
    NumPy's arrays, storages, and what an optimizer's own class keeps. Properties are not asked: the garbage
    collector tells what an object refers to. Globals of modules, and what an extension hides from the collector,
    are not reached.

    Args:
        roots: where to begin.
        beyond: objects that are not entered: they are somebody else's.
    """
    seen = {id(each) for each in beyond}
    stack: list[tuple[str, object]] = [("", root) for root in roots]
    alive: list[object] = []  # what was made on the way must live on, or another object could get its id
    while stack and len(seen) < MOST_OBJECTS:
        name, found = stack.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        alive.append(found)
        kind = type(found)  # not isinstance: proxies would load what they stand for
        if issubclass(kind, Tensor):
            yield name, found  # type: ignore[misc]  # it is a tensor by its type
            stack += _hung_on(found)
        elif issubclass(kind, torch.UntypedStorage):
            yield name, _as_tensor(found)
        elif _is_array(kind):
            stack += [(name, inner) for inner in _of_array(found)]
        else:
            stack += _inside(name, found, kind)


def _inside(name: str, found: object, kind: type) -> Iterator[tuple[str, object]]:
    if issubclass(kind, (*CLOSED, type)) or not _may_hold(found, kind):
        return
    if issubclass(kind, types.FunctionType):
        yield from _of_function(name, found)
        return
    if issubclass(kind, dict):
        entries: list[tuple[object, object]] = list(dict.items(found))  # type: ignore[arg-type]  # a dict by its type
        for key, value in entries:
            yield name, key
            yield (key if isinstance(key, str) else name), value
    elif issubclass(kind, torch.optim.Optimizer):
        yield name, vars(found)
        yield from _of_class(kind)
    yield from ((name, inner) for inner in gc.get_referents(found))


def _may_hold(found: object, kind: type) -> bool:
    """Whether an object can refer to tensors; torch's private machinery (compiler, dispatcher) is not searched."""
    return (gc.is_tracked(found) or issubclass(kind, CONTAINERS)) and not str(kind.__module__).startswith(
        "torch._"
    )


def _of_function(name: str, found: Any) -> Iterator[tuple[str, object]]:
    """Yield what a function carries with it; its globals are its module's."""
    for carried in (found.__closure__, found.__defaults__, found.__kwdefaults__, found.__dict__):
        if carried:
            yield name, carried


def _of_class(kind: type) -> Iterator[tuple[str, object]]:
    for each in kind.__mro__:
        if each.__module__.partition(".")[0] not in {"torch", "builtins"}:
            yield from ((name, value) for name, value in vars(each).items())


def _hung_on(tensor: Any) -> Iterator[tuple[str, object]]:
    """Yield a tensor's gradient, and what containers and tensors are among its attributes.

    Other attributes are how it is spread or wrapped: layouts, meshes, process groups.
    """
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001  # else a subclass would run code of its own
        try:
            gradient = tensor.grad if tensor.is_leaf else None
        except RuntimeError:  # a view made without gradients, of what was changed with them: torch won't place it
            gradient = None
    if gradient is not None:
        yield "grad", gradient
    for name, value in list(tensor.__dict__.items()):
        kind = type(value)
        if issubclass(kind, (Tensor, *CONTAINERS)) or _is_array(kind):
            yield name, value


def _is_array(kind: type) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and issubclass(kind, numpy.ndarray)


def _of_array(found: Any) -> Iterator[object]:
    """Yield what an array of objects holds, or its memory as a tensor; of a view, what it is a view of."""
    import numpy as np

    if found.dtype.hasobject:
        yield from np.ndarray.tolist(found) if found.dtype == object and found.ndim else ()
    elif found.base is not None:
        yield found.base
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is only looked at, also where it may not be written
            try:
                yield torch.from_numpy(np.ndarray.reshape(found, -1).view(np.uint8))
            except (TypeError, ValueError):  # no dtype or no strides of torch's: it is not torch's memory
                return


def _as_tensor(storage: Any) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
