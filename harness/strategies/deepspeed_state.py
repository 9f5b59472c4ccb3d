"""Saves and restores a DeepSpeed engine in memory, one rank's share at a time."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


def saved(engine: Any, *, partitioned_parameters: bool) -> dict[str, object]:
    """Return copies of this rank's share of model and optimizer state; later steps do not change them.

    Args:
        engine: DeepSpeed's.
        partitioned_parameters: as under stage 3, whose wrapper saves the parameters, so that of the module only
            buffers remain.
    """
    module = dict(engine.module.state_dict())
    if partitioned_parameters:
        for name, _ in engine.module.named_parameters(remove_duplicate=False):
            module.pop(name, None)
    return cast("dict[str, object]", _copied({"model": module, "optimizer": engine.optimizer.state_dict()}))


def restore(engine: Any, state: Mapping[str, object], rank: int, *, partitioned_parameters: bool) -> None:
    """Restore what `saved` returned on this rank under the same strategy and world size."""
    taken = cast("dict[str, Any]", _copied(dict(state)))
    engine.module.load_state_dict(taken["model"], strict=not partitioned_parameters)
    outer, optimizer = engine.optimizer, taken["optimizer"]
    if not _takes_every_rank(outer):
        outer.load_state_dict(optimizer)
        return
    # It takes the states of all ranks and picks its own, unless the number of ranks has changed.
    outer.load_state_dict({rank: optimizer}, load_optimizer_states=True, load_from_fp32_weights=True)
    if partitioned_parameters:
        with torch.no_grad():
            outer.checkpoint_event_epilogue()  # gathers the small parameters, which every rank holds whole


def _copied(found: object) -> object:
    """Return a deep copy; views of flat partitions, which deepcopy refuses, too."""
    if isinstance(found, torch.Tensor):
        return found.detach().clone()
    if isinstance(found, dict):
        return {key: _copied(inner) for key, inner in found.items()}
    if isinstance(found, (list, tuple)):
        return type(found)(_copied(inner) for inner in found)
    return copy.deepcopy(found)


def _takes_every_rank(outer: Any) -> bool:
    """Say whether the wrapper is one of ZeRO's, whose state is partitioned."""
    from deepspeed.runtime.base_optimizer import ZeROOptimizer

    return isinstance(outer, ZeROOptimizer)
