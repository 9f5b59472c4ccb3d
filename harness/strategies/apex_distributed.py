"""Apex's DistributedFusedAdam as a strategy: replicas whose optimizer reduces gradients and shards its state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.optimizers.apex_distributed import STRATEGY_ARGUMENTS
from harness.optimizers.implementation import device_type, has_sparse_gradients
from harness.strategies import refusals
from harness.strategies.predictions import apex_distributed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from harness.interfaces import (
        Engine,
        Optimizer,
        OptimizerTraits,
        Prediction,
        Workload,
        WorkloadTraits,
        World,
    )
    from harness.machine import Machine
    from harness.spec import RunSpec


class ApexDistributed:
    """ZeRO-2 inside the optimizer: no DDP around the model, which the optimizer hooks itself."""

    name = "apex-distributed"
    options: dict[str, JsonValue] = dict(STRATEGY_ARGUMENTS)  # noqa: RUF012  # the protocol's; never changed
    one_rank = False
    partitioned = ("gradients", "master", "state")
    packages = ("apex",)

    def unsupported(
        self, spec: RunSpec, workload: WorkloadTraits, optimizer: OptimizerTraits, machine: Machine
    ) -> str | None:
        """Refuse every optimizer but its own, other devices than CUDA's, and fp16."""
        if not optimizer.owns_reduction:
            return (
                f"apex-distributed is the strategy of Apex's DistributedFusedAdam, and {spec.optimizer} does not "
                "reduce gradients; use --optimizer adamw/apex-distributed, or --strategy ddp"
            )
        device = device_type(spec, machine)
        if device != "cuda":
            return f"DistributedFusedAdam is for CUDA devices, and this run is on {device}; use --strategy zero2"
        if has_sparse_gradients(spec, workload):
            return (
                "DistributedFusedAdam copies dense gradients into buckets, and "
                f"{spec.workload} has sparse ones; set workload.sparse=false, or use --strategy ddp"
            )
        if spec.precision == "fp16":
            return (
                "DistributedFusedAdam unscales through private state of torch's gradient scaler; "
                "use --precision bf16 or bf16-master"
            )
        return refusals.no_backward(spec, workload)

    def start(self, workload: Workload, optimizer: Optimizer, spec: RunSpec, world: World) -> Engine:
        """Build a replica, and the optimizer over it."""
        from harness.strategies.apex_engine import ApexDistributedEngine

        return ApexDistributedEngine(workload, optimizer, spec, world, wrap=None)

    def predict(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        spec: RunSpec,
        optimizer: OptimizerTraits,
        world: World,
        blocks: tuple[str, ...],
    ) -> Prediction:
        """Return a replica with shards of state and gradients; padding of the last bucket is left out."""
        return apex_distributed(shapes, spec, world, {**self.options, **spec.strategy_options})
