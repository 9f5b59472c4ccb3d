"""Which parameters an optimizer treats alike: roles from the workload's patterns, decay for weights only."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from harness.interfaces import ParamGroup

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from harness.interfaces import Role, WorkloadTraits


def role(name: str, ndim: int, traits: WorkloadTraits) -> Role:
    """Return the role of a parameter from its name and number of dimensions."""
    patterns: tuple[tuple[Role, tuple[str, ...]], ...] = (
        ("sparse", traits.sparse_parameters),
        ("embedding", traits.embeddings),
        ("head", traits.heads),
    )
    for found, names in patterns:
        if any(fnmatchcase(name, pattern) for pattern in names):
            return found
    return "matrix" if ndim >= 2 else "vector"


def parameter_groups(parameters: Iterable[tuple[str, Tensor]], traits: WorkloadTraits) -> tuple[ParamGroup, ...]:
    """Group named parameters by role, in order of first appearance.

    Weight decay applies to everything but vectors (biases, norms, scalars), the rule that nanoGPT and
    torchtitan follow; it is the same for every implementation.
    """
    members: dict[Role, list[tuple[str, Tensor]]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            members.setdefault(role(name, parameter.ndim, traits), []).append((name, parameter))
    return tuple(
        ParamGroup(
            names=tuple(name for name, _ in found),
            parameters=tuple(parameter for _, parameter in found),
            role=kind,
            decay=kind != "vector",
        )
        for kind, found in members.items()
    )
