"""Says of each installed plug-in whether it can be imported and is what its kind asks for.

`harness.entry_points` starts it in a process of its own, which strangers' code may end, crash or fill with text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from harness import targets
from harness.interfaces import OptimizerTraits, WorkloadTraits


def problem(kind: str, target: str) -> str:
    """Return why a plug-in cannot be used; empty: it can.

    Args:
        kind: the plural word of ``optbench list``.
        target: ``module:attribute``.
    """
    try:
        found = targets.load(target)
    except BaseException as error:  # noqa: BLE001  # whatever strangers' code does on import costs its names only
        return f"cannot be imported: {explain(error)}"
    try:
        check = CHECKS.get(kind)
        return (check(found) if check is not None else None) or ""
    except BaseException as error:  # noqa: BLE001  # a property or a constructor that raises
        return f"cannot be used: {explain(error)}"


def explain(error: BaseException) -> str:
    """Return an exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:1000]}" if text else type(error).__name__


def mapping_problem(found: object) -> str | None:
    """Return why something is no mapping of optimizers by name, as a family's module has it."""
    if not isinstance(found, Mapping):
        return f"is {_kind_of(found)}, not a mapping of optimizers by name"
    return None if found else "names no optimizer"


def optimizer_problem(family: str, name: object, optimizer: object) -> str | None:
    """Return what is wrong with one optimizer of a family.

    Args:
        family: the entry point's name.
        name: the key of the mapping.
        optimizer: what stands there.
    """
    if not isinstance(name, str) or not _is_name(family, name):
        return f"has the key {name!r}: write algorithm/implementation, or {family}:name"
    lacking = _lacking(optimizer, "unsupported", "options", "build", methods=True)
    lacking += _lacking(optimizer, "name", "target", "traits")
    if lacking:
        return f"lacks {', '.join(lacking)}: see Optimizer in harness/interfaces.py"
    called = getattr(optimizer, "name", None)
    if called != name:
        return f"has the key {name!r} and the name {called!r}: write the same twice"
    if not isinstance(getattr(optimizer, "traits", None), OptimizerTraits):
        return "has traits that are no OptimizerTraits: see harness/interfaces.py"
    return None


def _is_name(family: str, name: str) -> bool:
    from harness.entry_points import NAME

    before, slash, after = name.partition("/")
    if not slash:
        before, slash, after = name.partition(":")
        if before != family:
            return False
    return bool(slash and NAME.fullmatch(before) and NAME.fullmatch(after))


def strategy_problem(strategy: object) -> str | None:
    """Return what a strategy, constructed, lacks."""
    lacking = _lacking(strategy, "options", "one_rank") + _lacking(strategy, "unsupported", "start", methods=True)
    return f"lacks {', '.join(lacking)}: see Strategy in harness/interfaces.py" if lacking else None


def _optimizers(found: Any) -> str | None:
    return mapping_problem(found)  # its single names are looked at where they are listed


def _strategy(found: Any) -> str | None:
    return strategy_problem(found()) if callable(found) else f"is {_kind_of(found)}, not a class"


def _workload(found: Any) -> str | None:
    if not callable(found):
        return f"is {_kind_of(found)}, not a class"
    if isinstance(getattr(found, "traits", None), WorkloadTraits):
        return None  # what else a run needs it says itself, naming the method
    return "has no traits = WorkloadTraits(…) in its class body: see Workload in harness/interfaces.py"


def _collector(found: Any) -> str | None:
    if not callable(found):
        return f"is {_kind_of(found)}, not a class"
    lacking = _lacking(found, "start", "turn", "evaluated", "stop", methods=True)
    return f"lacks {', '.join(lacking)}: see Collector in harness/interfaces.py" if lacking else None


def _lacking(found: object, *names: str, methods: bool = False) -> list[str]:
    return [name for name in names if not hasattr(found, name) or (methods and not callable(getattr(found, name)))]


def _kind_of(found: object) -> str:
    return "a class" if isinstance(found, type) else f"of type {type(found).__name__}"


CHECKS: dict[str, Callable[[Any], str | None]] = {
    "optimizers": _optimizers,
    "strategies": _strategy,
    "workloads": _workload,
    "collectors": _collector,
}


def main(words: list[str]) -> None:
    """Check targets in turn; each answer is in the file before the next module is imported.

    Args:
        words: the program, the file, the search path, then a kind and a target for each.
    """
    _, file, _, *rest = words
    os.dup2(2, 1)
    with open(file, "a", encoding="utf-8") as answers:  # noqa: PTH123  # the only thing written
        for kind, target in zip(rest[::2], rest[1::2], strict=True):
            answer = problem(kind, target)
            answers.write(f"{json.dumps(answer)}\n")
            answers.flush()
    os._exit(0)  # threads that strangers' code left running are not waited for
