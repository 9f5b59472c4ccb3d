"""Do the ranks start from the model of the run's seed? Shards of different models have nothing to compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.checks.batches import undisturbed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from harness.interfaces import Part, Workload

LOOKED_AT = 4
"""Parameters whose elements are compared: the first ones of no more than `LARGEST` elements each."""

LARGEST = 1 << 18

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Relative difference allowed by dtype; narrower ones: that of bfloat16."""


def differing(parts: Iterable[Part], workload: Workload, seed: int) -> str | None:
    """Name a parameter whose elements here are not what the workload fills it with; None: all looked at are.

    Args:
        parts: what this rank holds, before the first step.
        workload: fills a tensor from its name and the seed.
        seed: of the run.
    """
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in workload.build().named_parameters()}
    with undisturbed(), torch.no_grad():
        for part in _chosen(parts, shapes):
            wanted = _filled(part, shapes[part.name], workload, seed)
            allowed = ROUNDING.get(part.tensor.dtype, 2**-7)
            here = part.tensor.reshape(-1).float()
            if torch.allclose(here, wanted, rtol=allowed, atol=1e-6):
                continue
            if torch.equal(wanted, _filled(part, shapes[part.name], workload, seed)):  # else it is drawn at will
                return part.name
    return None


def _chosen(parts: Iterable[Part], shapes: dict[str, torch.Size]) -> Iterator[Part]:
    looked_at = 0
    for part in parts:
        if part.name in shapes and part.total <= LARGEST and part.tensor.is_floating_point():
            looked_at += 1
            if part.tensor.numel():
                yield part
        if looked_at == LOOKED_AT:
            return


def _filled(part: Part, shape: torch.Size, workload: Workload, seed: int) -> Tensor:
    whole = torch.empty(shape, dtype=torch.float32, device=part.tensor.device)
    workload.initialise(part.name, whole, seed)
    return whole.reshape(-1)[part.start : part.start + part.tensor.numel()]
