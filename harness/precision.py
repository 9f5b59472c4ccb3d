"""What each precision means, and what no strategy can do with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from harness.interfaces import OptimizerTraits
    from harness.machine import Machine
    from harness.spec import Precision, RunSpec

ParameterDtype = Literal["float32", "bfloat16"]

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Of an element."""

TF32_CAPABILITY = BF16_CAPABILITY = 8.0
"""CUDA compute capability from which on (Ampere) the hardware multiplies in that format."""


def model_dtype(precision: Precision) -> ParameterDtype:
    """Return the dtype of the parameters that the forward pass reads."""
    return "bfloat16" if precision in {"bf16-pure", "bf16-master"} else "float32"


def stepped_dtype(precision: Precision) -> ParameterDtype:
    """Return the dtype of the parameters that the optimizer steps on: master weights are float32."""
    return "bfloat16" if precision == "bf16-pure" else "float32"


def state_bytes_per_element(spec: RunSpec, optimizer: OptimizerTraits) -> float:
    """Return the optimizer's state in bytes for each element that it steps on."""
    if optimizer.state_bytes is not None:
        return optimizer.state_bytes
    stepped = BYTES[stepped_dtype(spec.precision)]
    return optimizer.state_tensors * (stepped if optimizer.state_follows_parameters else 4)


def unsupported(spec: RunSpec, optimizer: OptimizerTraits, machine: Machine) -> str | None:
    """Return why the precision cannot be had on the spec's device or with the optimizer, or None."""
    device = "cpu" if spec.device == "cpu" else machine.device_type
    return _on_device(spec.precision, device, machine) or _with_optimizer(spec, optimizer)


def _on_device(precision: Precision, device: str, machine: Machine) -> str | None:
    if precision == "tf32":
        if device != "cuda":
            return f"tf32 is a format of CUDA's matrix units, and this run is on {device}; use --precision fp32"
        return _too_old(precision, machine, TF32_CAPABILITY, "fp32")
    if precision == "fp16" and device == "cpu":
        return "fp16 is for accelerators: CPUs have no fast products in it; use --precision bf16"
    if precision.startswith("bf16") and device == "cuda":
        return _too_old(precision, machine, BF16_CAPABILITY, "fp32 or fp16")
    return None


def _too_old(precision: Precision, machine: Machine, needed: float, instead: str) -> str | None:
    for accelerator in machine.accelerators:
        try:
            found = float(accelerator.capability or "")
        except ValueError:  # ROCm names an architecture
            continue
        if found < needed:
            return (
                f"{precision} needs compute capability {needed} or later, {accelerator.name} has {found}; "
                f"use --precision {instead}"
            )
    return None


def _with_optimizer(spec: RunSpec, optimizer: OptimizerTraits) -> str | None:
    needed = stepped_dtype(spec.precision)
    if needed not in optimizer.parameter_dtypes:
        takes = ", ".join(optimizer.parameter_dtypes)
        return f"{spec.optimizer} steps on {takes} parameters only; use --precision fp32, bf16 or bf16-master"
    if optimizer.closure and spec.precision == "fp16":
        return f"{spec.optimizer} evaluates the loss inside its step, where no gradient scaler reaches; use bf16"
    if optimizer.takes_grad_scaler and spec.precision == "fp16":
        return f"{spec.optimizer} divides by fp16's scale itself, after the engine has; use --precision bf16"
    return None
