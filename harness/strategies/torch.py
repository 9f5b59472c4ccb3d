"""PyTorch's strategies with whole parameters on every rank: one rank, replicas, replicas that share the state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.optimizers.implementation import has_sparse_gradients
from harness.strategies import refusals
from harness.strategies.predictions import replicated, zero_redundancy

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

_DDP: dict[str, JsonValue] = {
    "bucket_cap_mb": 25,
    "gradient_as_bucket_view": False,
    "static_graph": False,
    "find_unused_parameters": False,
}
"""Arguments of DistributedDataParallel."""


class Single:
    """One rank, no process group."""

    name = "single"
    options: dict[str, JsonValue] = {  # noqa: RUF012  # the protocol's attribute; never changed
        "cuda_graph": False,
        "optimizer_in_backward": False,
    }
    one_rank = True

    def unsupported(
        self, spec: RunSpec, workload: WorkloadTraits, optimizer: OptimizerTraits, machine: Machine
    ) -> str | None:
        """Refuse more than one rank, and options that do not go together."""
        if spec.world_size not in (None, 1):
            return f"single runs on one rank, asked for {spec.world_size}; use --strategy ddp, or --nproc 1"
        options = {**self.options, **spec.strategy_options}
        return (
            refusals.own_reduction(spec, optimizer)
            or refusals.sparse_gradients(spec, workload)
            or refusals.no_scaled_loss(spec, workload)
            or refusals.in_backward(spec, workload, optimizer, options)
            or refusals.graph_capture(spec, workload, optimizer, options, machine)
        )

    def start(self, workload: Workload, optimizer: Optimizer, spec: RunSpec, world: World) -> Engine:
        """Build the model on the rank's device."""
        from harness.strategies.torch_engine import TorchEngine

        if spec.strategy_options.get("cuda_graph"):
            from harness.strategies.cuda_graph import CapturedEngine

            return CapturedEngine(workload, optimizer, spec, world, wrap=None)
        in_backward = bool(spec.strategy_options.get("optimizer_in_backward"))
        return TorchEngine(workload, optimizer, spec, world, wrap=None, in_backward=in_backward)

    def predict(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        spec: RunSpec,
        optimizer: OptimizerTraits,
        world: World,
        blocks: tuple[str, ...],
    ) -> Prediction:
        """Return what the rank holds: everything. It sends nothing."""
        return replicated(shapes, spec, optimizer, payload=False)


class DDP:
    """DistributedDataParallel: a replica a rank, gradients averaged while backward runs."""

    name = "ddp"
    options: dict[str, JsonValue] = {  # noqa: RUF012  # the protocol's attribute; never changed
        **_DDP,
        "comm_hook": None,
        "powersgd_rank": 1,
        "powersgd_start_iter": 10,
        "powersgd_warm_start": True,
    }
    one_rank = False

    def unsupported(
        self, spec: RunSpec, workload: WorkloadTraits, optimizer: OptimizerTraits, machine: Machine
    ) -> str | None:
        """Refuse what has no backward to overlap with, and optimizers that reduce gradients themselves."""
        options = {**self.options, **spec.strategy_options}
        return (
            _unfit_for_replicas(spec, workload, optimizer)
            or refusals.sparse_reduction(spec, workload, machine)
            or refusals.communication_hook(spec, workload, options, machine)
            or refusals.sparse_gradients(spec, workload)
        )

    def start(self, workload: Workload, optimizer: Optimizer, spec: RunSpec, world: World) -> Engine:
        """Build a replica on the rank's device and wrap it."""
        from harness.strategies.replicas import data_parallel
        from harness.strategies.torch_engine import TorchEngine

        options = {**self.options, **spec.strategy_options}
        return TorchEngine(
            workload, optimizer, spec, world, wrap=lambda model: data_parallel(model, world, options, _DDP)
        )

    def predict(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        spec: RunSpec,
        optimizer: OptimizerTraits,
        world: World,
        blocks: tuple[str, ...],
    ) -> Prediction:
        """Return what a replica holds, and one all-reduce of all gradients in the last micro-batch."""
        return replicated(shapes, spec, optimizer, payload=True)


class ZeroRedundancy:
    """ZeroRedundancyOptimizer around DDP: each rank updates whole tensors of its own and broadcasts them."""

    name = "zero-redundancy"
    options: dict[str, JsonValue] = {  # noqa: RUF012  # the protocol's attribute; never changed
        **_DDP,
        "parameters_as_bucket_view": False,
    }
    one_rank = False
    partitioned = ("state",)

    def unsupported(
        self, spec: RunSpec, workload: WorkloadTraits, optimizer: OptimizerTraits, machine: Machine
    ) -> str | None:
        """Refuse what DDP refuses, sparse gradients, and updates that depend on the whole model."""
        if optimizer.granularity == "model" or optimizer.closure:
            return (
                f"{spec.optimizer} updates all parameters together, and zero-redundancy gives each rank some of "
                "them; use --strategy ddp"
            )
        if has_sparse_gradients(spec, workload):
            return (
                "ZeroRedundancyOptimizer takes dense gradients only, and "
                f"{spec.workload} has sparse ones; set workload.sparse=false, or use --strategy ddp"
            )
        return refusals.own_initial_values(spec, optimizer) or _unfit_for_replicas(spec, workload, optimizer)

    def start(self, workload: Workload, optimizer: Optimizer, spec: RunSpec, world: World) -> Engine:
        """Build a replica, wrap it, and give this rank's tensors to an optimizer of its own."""
        from harness.strategies.replicas import ZeroRedundancyEngine, data_parallel

        options = {**self.options, **spec.strategy_options}
        return ZeroRedundancyEngine(
            workload, optimizer, spec, world, wrap=lambda model: data_parallel(model, world, options, _DDP)
        )

    def predict(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        spec: RunSpec,
        optimizer: OptimizerTraits,
        world: World,
        blocks: tuple[str, ...],
    ) -> Prediction:
        """Return a replica with this rank's share of the state, and DDP's all-reduce and a broadcast of all."""
        return zero_redundancy(shapes, spec, optimizer, world)


def _unfit_for_replicas(spec: RunSpec, workload: WorkloadTraits, optimizer: OptimizerTraits) -> str | None:
    if spec.strategy_options.get("static_graph") and spec.accumulation > 1:
        return "DDP's static_graph forbids no_sync, which accumulation needs; leave one of them out"
    return refusals.no_backward(spec, workload) or refusals.own_reduction(spec, optimizer)
