"""What the strategy's own rule says that this rank holds and sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.interfaces import Predicts
from harness.model_facts import units_of
from harness.parameter_groups import role
from harness.registry import OPTIMIZERS

if TYPE_CHECKING:
    from harness.interfaces import OptimizerTraits, Prediction, Strategy, Workload, World
    from harness.spec import RunSpec


def expected(
    strategy: Strategy, workload: Workload, optimizer: OptimizerTraits, spec: RunSpec, world: World
) -> Prediction | None:
    """Return the strategy's prediction; None: it makes none.

    The model is built once more on the meta device, which takes no memory: wrappers changed the names and shapes
    of the one that trains. State that is no fixed multiple of the parameters (Muon's, Adafactor's) counts with its
    mean over this model.
    """
    if not isinstance(strategy, Predicts):
        return None
    with torch.device("meta"):
        model = workload.build()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    blocks = units_of(model, workload.traits.blocks).names
    rule = getattr(OPTIMIZERS.get(spec.optimizer), "state_tensors", None)
    if rule is not None and optimizer.state_bytes is None:
        members = [(role(name, len(shape), workload.traits), shape) for name, shape in shapes.items()]
        optimizer = optimizer.model_copy(update={"state_tensors": rule(members)})
    return strategy.predict(shapes, spec, optimizer, world, blocks)
