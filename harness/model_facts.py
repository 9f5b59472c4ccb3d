"""What is known of a model once it was built: its size, and which submodules are sharded one by one. No torch."""

from __future__ import annotations

import json
from collections import Counter
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from harness.spec import RunSpec

CONTAINERS = frozenset({"ModuleList", "ModuleDict", "Sequential"})
"""Classes of torch.nn that hold layers and are none."""

WHOLE = ("",)
"""Patterns that say that the whole model is one unit on purpose."""

DECIDING = {"workload", "size", "data", "workload_options", "precision", "seed"}
"""Fields of a spec."""

MOST_SHOWN = 6
"""Names or patterns that a remark lists."""


class Units(BaseModel):
    """Submodules that are sharded one by one; the root takes what is left."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    names: tuple[str, ...]
    how: Literal["declared", "found", "whole"]
    """``declared``: patterns name them. ``found``: the model's repeated layers. ``whole``: there are none."""
    patterns: tuple[str, ...] = ()
    """The workload's."""
    unmatched: tuple[str, ...] = ()
    """Those of them that match nothing."""
    near: tuple[str, ...] = ()
    """Patterns of the model's repeated layers, or of its submodules where none repeats."""

    def remark(self, workload: str) -> str | None:
        """Say what a reader should know of them, or None: everything is as the workload declares."""
        near = f"blocks=({', '.join(map(repr, self.near[:MOST_SHOWN]))},)" if self.near else None
        remedy = f"; write {near} in the traits of {workload}" if near else ""
        wrong = f"blocks {', '.join(map(repr, self.unmatched))} match no submodule of {workload}"
        if self.how == "declared":
            return f"{wrong}{remedy}" if self.unmatched else None
        if self.patterns == WHOLE:
            return None
        cause = wrong if self.patterns else f"{workload} names no blocks"
        if self.how == "found":
            return f"{cause}: its {len(self.names)} repeated layers are sharded one by one{remedy}"
        return f"{cause}, and no layer repeats: the whole model is one unit, gathered at once{remedy}"


class ModelFacts(BaseModel):
    """What building a model, and stepping it with tensors without memory, tells.

    Attributes are of one workload, size, precision and micro-batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    parameters: int = 0
    """Trainable elements, each shared tensor counted once."""
    activation_bytes: int | None = None
    """What forward leaves for backward, casts of parameters included; None: it could not be stepped so."""
    peak_bytes: int | None = None
    """The most that forward and backward hold beside parameters, buffers and batch; gradients included."""
    units: Units = Units(names=(), how="whole")
    root_elements: int = 0
    """Of parameters in no unit."""
    largest_elements: int = 0
    """Of the largest unit."""
    error: str | None = None
    """Why nothing is known."""


def model_key(spec: RunSpec) -> str:
    """Return a name for the model of a spec, whose defaults are resolved."""
    return json.dumps(asked(spec), sort_keys=True)


def asked(spec: RunSpec) -> dict[str, object]:
    """Return what decides about a model and what its step holds."""
    ranks, batch = spec.world_size or 1, spec.global_batch or 1
    return {
        **spec.model_dump(mode="json", include=DECIDING),
        "micro_batch": max(1, batch // (spec.accumulation * ranks)),
    }


def units_of(model: nn.Module, patterns: Sequence[str]) -> Units:
    """Return what is sharded one by one.

    Args:
        model: whole, on any device.
        patterns: of submodules' names; ``*`` stands for one part of a name, never for a dot.
    """
    wanted = tuple(patterns)
    if wanted == WHOLE:
        return Units(names=(), how="whole", patterns=WHOLE)
    names = [name for name, _ in model.named_modules() if name]
    matched = tuple(name for name in names if any(matches(name, pattern) for pattern in wanted))
    missed = [pattern for pattern in wanted if not any(matches(name, pattern) for name in names)]
    if matched:  # a pattern for two-digit numbers may match nothing in a smaller size
        missed = [each for each in missed if not any(_alike(each, other) for other in wanted if other != each)]
        if not missed:
            return Units(names=matched, how="declared", patterns=wanted)
    layers = tuple(_repeated(model, "", _shared(model)))
    near = tuple(dict.fromkeys(_pattern(name) for name in layers or _children(model)))
    how: Literal["declared", "found", "whole"] = "declared" if matched else "found" if layers else "whole"
    return Units(names=matched or layers, how=how, patterns=wanted, unmatched=tuple(missed), near=near)


def matches(name: str, pattern: str) -> bool:
    """Say whether a pattern matches a submodule's name, part by part between dots."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _alike(one: str, other: str) -> bool:
    """Whether two patterns differ in how many digits they take only."""
    return one.replace("[0-9]", "") == other.replace("[0-9]", "")


def _repeated(module: nn.Module, prefix: str, shared: Mapping[int, int]) -> Iterator[str]:
    """Yield the outermost layers that stand beside others of their kind.

    A kind is a class with a ``forward`` of its own; of layers that consist of nothing but parameters, the shapes
    belong to it too. A layer that shares a parameter with what is outside of it cannot be a unit.
    """
    children = [(f"{prefix}{name}", child) for name, child in module.named_children()]
    kinds = Counter(_kind(child) for _, child in children)
    for name, child in children:
        kind = _kind(child)
        if kind is not None and kinds[kind] > 1:
            if not _reaches_out(child, shared):
                yield name
        else:
            yield from _repeated(child, f"{name}.", shared)


def _kind(module: nn.Module) -> tuple[object, ...] | None:
    cls = type(module)
    if cls.__name__ in CONTAINERS and cls.__module__.startswith("torch.nn."):
        return None
    if next(module.parameters(), None) is None:
        return None
    leaf = next(module.children(), None) is None
    return (cls, *((tuple(p.shape) for p in module.parameters()) if leaf else ()))


def _shared(model: nn.Module) -> Counter[int]:
    """Return in how many places of the model each parameter stands."""
    return Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)  # noqa: SLF001  # the public list leaves out what is shared


def _reaches_out(module: nn.Module, shared: Mapping[int, int]) -> bool:
    inside = _shared(module)
    return any(shared[each] > count for each, count in inside.items())


def _children(model: nn.Module) -> Iterable[str]:
    return [name for name, child in model.named_children() if next(child.parameters(), None) is not None]


def _pattern(name: str) -> str:
    """Return a pattern for a layer and its neighbours: numbers become ``*``."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
