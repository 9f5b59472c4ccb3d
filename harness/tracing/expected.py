"""What the strategy's own rule says that this rank holds and sends."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch

from harness.interfaces import Predicts

if TYPE_CHECKING:
    from harness.interfaces import OptimizerTraits, Prediction, Strategy, Workload, World
    from harness.spec import RunSpec


def expected(
    strategy: Strategy, workload: Workload, optimizer: OptimizerTraits, spec: RunSpec, world: World
) -> Prediction | None:
    """Return the strategy's prediction; None: it makes none.

    The model is built once more on the meta device, which takes no memory: wrappers changed the names and shapes
    of the one that trains.
    """
    if not isinstance(strategy, Predicts):
        return None
    with torch.device("meta"):
        model = workload.build()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    patterns = workload.traits.blocks
    blocks = tuple(
        name for name, _ in model.named_modules() if any(fnmatchcase(name, pattern) for pattern in patterns)
    )
    return strategy.predict(shapes, spec, optimizer, world, blocks)
