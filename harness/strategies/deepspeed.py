"""DeepSpeed's engines: ZeRO stages 0 to 3, and 1 to 3 with the optimizer in host memory.

``zero0`` replicates everything, as DDP does; ``zero1`` partitions the optimizer's state over the ranks, ``zero2``
the gradients too, ``zero3`` the parameters too (Rajbhandari et al. 2020, ZeRO, section 5, arXiv:1910.02054).
Stage 0 has no ``-offload`` form: DeepSpeed ignores ``offload_optimizer`` there without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.optimizers.deepspeed import not_installed
from harness.optimizers.implementation import has_sparse_gradients

if TYPE_CHECKING:
    from pydantic import JsonValue

    from harness.interfaces import Engine, Optimizer, OptimizerTraits, Workload, WorkloadTraits, World
    from harness.machine import Machine
    from harness.spec import RunSpec

_REPLICATED: dict[str, JsonValue] = {"communication_dtype": None}
"""Options of stage 0. ``communication_dtype``: of reduced gradients; None: theirs."""

_PARTITIONED: dict[str, JsonValue] = {
    **_REPLICATED,
    "overlap_comm": False,
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 500_000_000,
}
"""Options of the stages that partition, with DeepSpeed's own defaults; bucket sizes are in elements."""

_FLAT: dict[str, JsonValue] = {
    **_PARTITIONED,
    "allgather_bucket_size": 500_000_000,
    "round_robin_gradients": False,
}

_STAGE3: dict[str, JsonValue] = {
    **_PARTITIONED,
    "overlap_comm": True,
    "sub_group_size": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}
"""Stage 3's own; thresholds and distances are in elements."""

_OFFLOAD: dict[str, JsonValue] = {"pin_memory": True}

_PARTS = {
    "tensor": "computes from whole tensors",
    "matrix": "computes from whole matrices",
    "model": "computes from the whole model",
}


class _Zero:
    """What the stages share. A stage is a class, since the registry constructs strategies without arguments."""

    name: str
    stage: int
    offload = False
    options: dict[str, JsonValue]
    partitioned: tuple[str, ...] = ()
    one_rank = False

    def unsupported(
        self, spec: RunSpec, workload: WorkloadTraits, optimizer: OptimizerTraits, machine: Machine
    ) -> str | None:
        """Refuse what DeepSpeed cannot run, and what it would run as another algorithm."""
        return (
            not_installed(machine)
            or self._unfit_workload(spec, workload)
            or self._unfit_optimizer(spec, optimizer)
            or self._unfit_precision(spec)
        )

    def _unfit_workload(self, spec: RunSpec, workload: WorkloadTraits) -> str | None:
        if workload.optimizer_only:
            return f"{spec.workload} has no backward pass for {self.name} to reduce in; use --strategy single"
        if has_sparse_gradients(spec, workload):
            return (
                f"{self.name} reduces dense gradients, and {spec.workload} has sparse ones; "
                "use --set workload.sparse=false, or --strategy ddp"
            )
        return None

    def _unfit_optimizer(self, spec: RunSpec, optimizer: OptimizerTraits) -> str | None:
        if optimizer.closure:
            return (
                f"{spec.optimizer} evaluates the loss inside its step, and DeepSpeed's engine steps without a "
                "closure; use --strategy ddp"
            )
        if optimizer.owns_reduction:
            return f"{spec.optimizer} averages gradients itself, {self.name} would average them twice"
        part = _PARTS.get(optimizer.granularity)
        if part is not None and self.stage > 0:
            return (
                f"{spec.optimizer} {part}, and {self.name} hands it flat partitions that cut across tensors: "
                "another algorithm; use --strategy zero0 or ddp"
            )
        return None

    def _unfit_precision(self, spec: RunSpec) -> str | None:
        if spec.precision not in {"fp32", "tf32"}:
            return f"{self.name} computes in fp32 so far, asked for {spec.precision}; use --precision fp32"
        return None

    def start(self, workload: Workload, optimizer: Optimizer, spec: RunSpec, world: World) -> Engine:
        """Build the model on the rank's device and hand it to DeepSpeed."""
        from harness.strategies.deepspeed_engine import DeepSpeedEngine

        options = {**self.options, **spec.strategy_options}
        return DeepSpeedEngine(workload, optimizer, spec, world, self.stage, options, offload=self.offload)


class Zero0(_Zero):
    """A replica a rank; gradients averaged after backward."""

    name, stage, options = "zero0", 0, _REPLICATED


class Zero1(_Zero):
    """Optimizer state partitioned."""

    name, stage, options = "zero1", 1, _FLAT
    partitioned = ("state", "master")


class Zero2(_Zero):
    """Optimizer state and gradients partitioned."""

    name, stage, options = "zero2", 2, _FLAT
    partitioned = ("state", "master", "gradients")


class Zero3(_Zero):
    """Optimizer state, gradients and parameters partitioned."""

    name, stage, options = "zero3", 3, _STAGE3
    partitioned = ("state", "master", "gradients", "parameters")


class Zero1Offload(Zero1):
    """Optimizer state partitioned and in host memory, where the step runs."""

    name, options, offload = "zero1-offload", {**_FLAT, **_OFFLOAD}, True


class Zero2Offload(Zero2):
    """Optimizer state and gradients partitioned and in host memory, where the step runs."""

    name, options, offload = "zero2-offload", {**_FLAT, **_OFFLOAD}, True


class Zero3Offload(Zero3):
    """Everything partitioned; optimizer state, and parameters where asked, in host memory."""

    name, offload = "zero3-offload", True
    options = {**_STAGE3, **_OFFLOAD, "offload_parameters": False}  # noqa: RUF012  # never changed
