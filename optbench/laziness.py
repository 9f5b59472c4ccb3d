"""Callables that return before their work is done: what they take is not what a clock around the call reads."""

from __future__ import annotations

import functools
import inspect
import io
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LOOKED_AT = 100
"""Items of a container that are looked at: a list of pending calls is no more done than one of them."""

PENDING: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"result", "done"}), "a future"),
    (frozenset({"wait", "done"}), "a future"),
    (frozenset({"wait", "is_completed"}), "a collective that is under way"),
    (frozenset({"wait", "ready", "get"}), "the result of a pool that is under way"),
    (frozenset({"wait", "poll", "communicate"}), "a process that is under way"),
    (frozenset({"join", "is_alive", "start"}), "a thread or process that is under way"),
    (frozenset({"compute", "__dask_graph__"}), "a task graph"),
    (frozenset({"collect", "explain"}), "a query that has not been run"),
)
"""Methods that tell pending work, whoever made its class, and what to call it."""

REMEDY = "give a callable that waits for its work and returns its value"
KINDS: tuple[tuple[Callable[[object], bool], str, str], ...] = (
    (inspect.iscoroutinefunction, "a coroutine function", "lambda: asyncio.run({name}())"),
    (inspect.isasyncgenfunction, "an asynchronous generator function", REMEDY),
    (inspect.isgeneratorfunction, "a generator function", "lambda: list({name}())"),
)
"""Of functions, told without a call: what they are, and what to pass instead."""


def lazy_callable(call: Callable[[], object], side: str) -> str | None:
    """Say why a call would run nothing, without calling; None: that cannot be seen.

    Args:
        call: a function, bound method, partial, or an object with ``__call__``.
        side: what it is to the assertion.
    """
    inner: object = call
    while isinstance(inner, functools.partial):
        inner = inner.func
    if not callable(inner):
        return f"{side} cannot be called: found {inner!r}; pass a function without arguments"
    for each in (inner, type(inner).__call__):
        for is_kind, what, instead in KINDS:
            if is_kind(each):
                remedy = instead.format(name=getattr(inner, "__name__", "it"))
                return f"{side} is {what}: a call runs nothing of it; pass {remedy}"
    return None


def lazy_result(result: object, side: str) -> str | None:
    """Say why what a call returned shows that its work is not done; None: nothing does."""
    what = _pending(result)
    if what is None and not isinstance(result, io.IOBase) and isinstance(result, Iterator):
        what = f"an iterator ({type(result).__name__}), which works when it is read"
    if what is None:
        what = next(
            (f"{found} in a {type(result).__name__}" for each in _items(result) if (found := _pending(each))), None
        )
    return None if what is None else f"{side} returns {what}: the call alone does not do the work; {REMEDY}"


def _pending(value: object) -> str | None:
    """Return what kind of pending work a value is; None: it is none that can be told."""
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()  # it is never awaited, and Python would warn of that
        return f"an awaitable ({type(value).__name__})"
    if inspect.isasyncgen(value):
        return "an asynchronous generator"
    if inspect.isgenerator(value):
        return "a generator"
    if isinstance(value, type):
        return None
    return next(
        (what for names, what in PENDING if all(callable(getattr(type(value), each, None)) for each in names)),
        None,
    )


def _items(value: object) -> list[object]:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple, set, frozenset)):
        return []
    assert isinstance(value, Collection)
    return [each for each, _ in zip(value, range(LOOKED_AT), strict=False)]
