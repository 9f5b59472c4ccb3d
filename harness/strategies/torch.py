"""PyTorch's own strategies: one rank, and replicas that average gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

    from harness.interfaces import Engine, Optimizer, OptimizerTraits, Workload, WorkloadTraits, World
    from harness.machine import Machine
    from harness.spec import RunSpec


def _sparse_clipping(spec: RunSpec, workload: WorkloadTraits) -> str | None:
    if spec.clip_norm is not None and workload.sparse_parameters and spec.workload_options.get("sparse", True):
        return (
            "clip_norm needs the norm of sparse gradients, which torch cannot take; "
            "leave clip_norm out, or set workload.sparse=false"
        )
    return None


class Single:
    """One rank, no process group."""

    name = "single"
    options: dict[str, JsonValue] = {}  # noqa: RUF012  # the protocol's attribute; never changed
    one_rank = True

    def unsupported(
        self, spec: RunSpec, workload: WorkloadTraits, optimizer: OptimizerTraits, machine: Machine
    ) -> str | None:
        """Refuse more than one rank."""
        if spec.world_size not in (None, 1):
            return f"single runs on one rank, asked for {spec.world_size}; use --strategy ddp, or --nproc 1"
        return _sparse_clipping(spec, workload)

    def start(self, workload: Workload, optimizer: Optimizer, spec: RunSpec, world: World) -> Engine:
        """Build the model on the rank's device."""
        from harness.strategies.torch_engine import TorchEngine

        return TorchEngine(workload, optimizer, spec, world, wrap=None)


class DDP:
    """DistributedDataParallel: a replica a rank, gradients averaged while backward runs."""

    name = "ddp"
    options: dict[str, JsonValue] = {  # noqa: RUF012  # the protocol's attribute; never changed
        "bucket_cap_mb": 25,
        "gradient_as_bucket_view": False,
        "static_graph": False,
        "find_unused_parameters": False,
    }
    one_rank = False

    def unsupported(
        self, spec: RunSpec, workload: WorkloadTraits, optimizer: OptimizerTraits, machine: Machine
    ) -> str | None:
        """Refuse what has no backward to overlap with, and optimizers that reduce gradients themselves."""
        if workload.optimizer_only:
            return f"{spec.workload} has no backward pass for ddp to average in; use --strategy single"
        if optimizer.owns_reduction:
            return "the optimizer averages gradients itself, ddp would average them twice; use its own strategy"
        if spec.strategy_options.get("static_graph") and spec.accumulation > 1:
            return "ddp's static_graph forbids no_sync, which accumulation needs; leave one of them out"
        return _sparse_clipping(spec, workload)

    def start(self, workload: Workload, optimizer: Optimizer, spec: RunSpec, world: World) -> Engine:
        """Build a replica on the rank's device and wrap it."""
        from harness.strategies.torch_engine import TorchEngine, data_parallel

        options = {**self.options, **spec.strategy_options}
        return TorchEngine(
            workload, optimizer, spec, world, wrap=lambda model: data_parallel(model, world, options)
        )
