"""DeepSpeed's engines: ZeRO stages 0 to 3, and 1 to 3 with the optimizer in host memory.

``zero0`` replicates everything, as DDP does; ``zero1`` partitions the optimizer's state over the ranks, ``zero2``
the gradients too, ``zero3`` the parameters too (Rajbhandari et al. 2020, ZeRO, section 5, arXiv:1910.02054).
Stage 0 has no ``-offload`` form: DeepSpeed ignores ``offload_optimizer`` there without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.kernels import KERNELS
from harness.optimizers.deepspeed import not_installed
from harness.optimizers.implementation import device_type, has_sparse_gradients
from harness.registry import OPTIMIZERS
from harness.strategies import refusals
from harness.strategies.deepspeed_predictions import predicted

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

_REPLICATED: dict[str, JsonValue] = {"communication_dtype": None}
"""Options of stage 0. ``communication_dtype``: what reduces gradients: ``fp32``, ``bf16``; None: their own."""

_PARTITIONED: dict[str, JsonValue] = {
    **_REPLICATED,
    "overlap_comm": False,
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "reduce_bucket_size": None,
    "grad_accum_dtype": None,
}
"""Options of the stages that partition, with DeepSpeed's own defaults. Bucket sizes are in elements;
``reduce_bucket_size`` None: DeepSpeed's 500 million, no more than the model has. ``grad_accum_dtype``: what
gradients are accumulated in, ``fp32`` or ``bf16``; None: their own."""

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
    packages = ("deepspeed",)
    one_rank = False

    def unsupported(
        self, spec: RunSpec, workload: WorkloadTraits, optimizer: OptimizerTraits, machine: Machine
    ) -> str | None:
        """Refuse what DeepSpeed cannot run, and what it would run as another algorithm."""
        return (
            not_installed(machine)
            or self._unfit_workload(spec, workload)
            or self._unfit_optimizer(spec, optimizer)
            or self._unfit_precision(spec, optimizer)
            or self._unfit_host(spec, optimizer, machine)
            or self._unfit_options(spec)
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
        if optimizer.closure or optimizer.loss:
            what = "evaluates the loss inside its step" if optimizer.closure else "takes the loss"
            return (
                f"{spec.optimizer} {what}, and DeepSpeed's engine steps without a closure or a loss; "
                "use --strategy ddp"
            )
        if optimizer.owns_reduction:
            return f"{spec.optimizer} averages gradients itself, {self.name} would average them twice"
        if optimizer.evaluation_switch and (self.stage > 0 or spec.precision in {"bf16-master", "fp16"}):
            return (
                f"{spec.optimizer} evaluates other parameters than it trains, and {self.name} steps on copies "
                "that its switch would not carry back into the model; use --strategy ddp"
            )
        if self.offload and optimizer.consumes_gradients:
            return (
                f"{spec.optimizer} sets gradients to None as it steps, and {self.name} reads them afterwards; "
                f"use --strategy zero{self.stage}"
            )
        if self.stage > 0 and (reason := refusals.own_initial_values(spec, optimizer)):
            return reason
        return self._unfit_granularity(spec, optimizer)

    def _unfit_granularity(self, spec: RunSpec, optimizer: OptimizerTraits) -> str | None:
        """Refuse what flat partitions would change; of undeclared optimizers the engine finds out."""
        part = _PARTS.get(optimizer.granularity)
        if part is not None and self.stage > 0:
            if getattr(OPTIMIZERS.get(spec.optimizer), "on_whole_gradients", False):
                return self._unfit_orthogonalised(spec)
            return (
                f"{spec.optimizer} {part}, and {self.name} hands it flat partitions that cut across tensors: "
                "another algorithm; use --strategy zero0 or ddp"
            )
        return None

    def _unfit_orthogonalised(self, spec: RunSpec) -> str | None:
        """Refuse what DeepSpeed's Muon does otherwise, or not at all, where gradients are partitioned."""
        if spec.clip_norm is not None:
            return (
                f"{self.name} orthogonalises the gradients of {spec.optimizer} before it clips them, which is "
                "another algorithm; leave clip_norm out, or use --strategy zero0 or ddp"
            )
        if self.stage == 3 and {**self.options, **spec.strategy_options}.get("reduce_scatter"):
            return (
                f"{self.name} orthogonalises whole gradients for {spec.optimizer}, which scattered ones are not; "
                "use --set strategy.reduce_scatter=false"
            )
        return None

    def _unfit_precision(self, spec: RunSpec, optimizer: OptimizerTraits) -> str | None:
        """Refuse bf16 states in host memory, which DeepSpeed has for its own Adam only."""
        if spec.precision == "bf16-pure" and self.offload and "cpu_adam" not in optimizer.kernels:
            return (
                f"{self.name} keeps bf16 masters and states for DeepSpeedCPUAdam only; "
                "use adamw/deepspeed-cpu, or --precision bf16-master"
            )
        return None

    def _unfit_options(self, spec: RunSpec) -> str | None:
        chosen = {**self.options, **spec.strategy_options}
        for name in ("communication_dtype", "grad_accum_dtype"):
            if chosen.get(name) not in {None, "fp32", "bf16"}:
                return f'{name} = {chosen[name]!r} is no dtype of {self.name}; use "fp32" or "bf16"'
        if chosen.get("grad_accum_dtype") is not None and spec.precision != "bf16-master":
            return (
                f"grad_accum_dtype is for bf16 gradients of parameters with fp32 masters, and {spec.precision} "
                "has none; leave it out, or use --precision bf16-master"
            )
        return None

    def _unfit_host(self, spec: RunSpec, optimizer: OptimizerTraits, machine: Machine) -> str | None:
        """Refuse kernels for the device where the step is in host memory."""
        if not self.offload or device_type(spec, machine) == "cpu":
            return None
        for_host = any(KERNELS[name].on_host for name in optimizer.kernels if name in KERNELS)
        if optimizer.compiled or (optimizer.dtensor == "no" and not for_host):
            return (
                f"{self.name} steps on tensors in host memory, and {spec.optimizer} works on the device's; "
                "use an implementation in plain torch, adamw/fused say, or adamw/deepspeed-cpu"
            )
        return None

    def predict(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        spec: RunSpec,
        optimizer: OptimizerTraits,
        world: World,
        blocks: tuple[str, ...],
    ) -> Prediction:
        """Return what the stage's partition rule says of a rank."""
        del blocks
        options = {**self.options, **spec.strategy_options}
        return predicted(shapes, spec, optimizer, world, self.stage, options, offload=self.offload)

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
