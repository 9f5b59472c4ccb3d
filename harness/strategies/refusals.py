"""Why a cell cannot run under PyTorch's strategies, as questions that several of them ask. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.optimizers.implementation import device_type, has_sparse_gradients

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from harness.interfaces import OptimizerTraits, WorkloadTraits
    from harness.machine import Machine
    from harness.spec import RunSpec

    Options = Mapping[str, JsonValue]
    """A strategy's, with defaults."""

CAPTURE_STEP = 4
"""The step in which cuda_graph captures: three eager ones before it make state and choose kernels, as torch's
notes on CUDA graphs ask for."""

MIN_POWERSGD_START = 2
"""PowerSGDState refuses less with error feedback or warm start: DDP rebuilds its buckets after the first step."""


def _first(*found: tuple[bool, str]) -> str | None:
    """Return the reason beside the first condition that holds."""
    return next((reason for holds, reason in found if holds), None)


def sparse_gradients(spec: RunSpec, workload: WorkloadTraits) -> str | None:
    """Refuse what takes norms, casts or scales of gradients where they are sparse tensors."""
    if not has_sparse_gradients(spec, workload):
        return None
    return _first(
        (
            spec.clip_norm is not None,
            (
                "clip_norm needs the norm of sparse gradients, which torch cannot take; "
                "leave clip_norm out, or set workload.sparse=false"
            ),
        ),
        (
            spec.precision in {"bf16-master", "fp16"},
            (
                f"{spec.precision} casts or unscales gradients, which torch cannot do with the sparse ones of "
                f"{spec.workload}; use --precision fp32 or bf16, or set workload.sparse=false"
            ),
        ),
    )


def sparse_reduction(spec: RunSpec, workload: WorkloadTraits, machine: Machine) -> str | None:
    """Refuse to average sparse gradients over accelerators, whose collectives take dense tensors alone."""
    device = device_type(spec, machine)
    if device == "cpu" or not has_sparse_gradients(spec, workload):
        return None
    return (
        f"collectives on {device} reduce no sparse tensors, and {spec.workload} has sparse gradients; "
        "set workload.sparse=false, or use --strategy single"
    )


def no_backward(spec: RunSpec, workload: WorkloadTraits) -> str | None:
    """Refuse workloads that only have an optimizer's step where the backward pass is what is spread."""
    if workload.optimizer_only:
        return f"{spec.workload} has no backward pass for {spec.strategy} to average in; use --strategy single"
    return None


def own_reduction(spec: RunSpec, optimizer: OptimizerTraits) -> str | None:
    """Refuse optimizers that average gradients themselves."""
    if optimizer.owns_reduction:
        return (
            f"{spec.optimizer} averages gradients over ranks itself, and {spec.strategy} has its own way; "
            "use --strategy apex-distributed"
        )
    return None


def own_initial_values(spec: RunSpec, optimizer: OptimizerTraits) -> str | None:
    """Refuse optimizers that draw initial values, where a rank is given parts of tensors or of their list."""
    if optimizer.own_initial_values:
        return (
            f"{spec.optimizer} replaces the parameters in its first step by initial values of its own, drawn by "
            f"each tensor's place in the list, and {spec.strategy} gives a rank parts of that; use --strategy ddp"
        )
    return None


def no_scaled_loss(spec: RunSpec, workload: WorkloadTraits) -> str | None:
    """Refuse fp16 where there is no loss for the gradient scaler to scale."""
    if spec.precision == "fp16" and workload.optimizer_only:
        return (
            f"{spec.workload} has no loss for fp16's gradient scaler to scale; use --precision fp32 or bf16-pure"
        )
    return None


def in_backward(
    spec: RunSpec,
    workload: WorkloadTraits,
    optimizer: OptimizerTraits,
    options: Options,
    *,
    sharded: bool = False,
) -> str | None:
    """Refuse optimizer_in_backward with what needs all gradients at once.

    Args:
        spec: the run.
        workload: its traits.
        optimizer: its traits.
        options: the strategy's, with defaults.
        sharded: the shards themselves are the master weights, so that nothing has to be copied.
    """
    if not options.get("optimizer_in_backward"):
        return None
    remedy = "set strategy.optimizer_in_backward=false"
    name = spec.optimizer
    return _first(
        (workload.optimizer_only, f"{spec.workload} has no backward pass to step in; {remedy}"),
        (
            spec.clip_norm is not None,
            f"clip_norm needs the norm over all gradients before the first update; leave it out, or {remedy}",
        ),
        (
            optimizer.closure or optimizer.loss or optimizer.granularity == "model",
            f"{name} needs all gradients at once, and a backward pass gives one after the other; {remedy}",
        ),
        (
            optimizer.own_initial_values,
            f"{name} draws initial values by each tensor's place in a list, which a list of one has not; {remedy}",
        ),
        (optimizer.compiled, f"{name} would compile its step once for each parameter; {remedy}"),
        (
            sharded and optimizer.dtensor == "no",
            f"{name} steps on plain shards, which have no gradients during the backward pass; {remedy}",
        ),
        (
            has_sparse_gradients(spec, workload),
            f"the sparse gradients of {spec.workload} need an optimizer of their own beside {name}; {remedy}",
        ),
        (
            spec.precision == "fp16",
            f"fp16 must know of an overflow before the first update; use --precision bf16, or {remedy}",
        ),
        (
            spec.precision == "bf16-master" and not sharded,
            f"bf16-master copies gradients and weights of the whole model at once; use bf16-pure, or {remedy}",
        ),
    )


def graph_capture(
    spec: RunSpec,
    workload: WorkloadTraits,
    optimizer: OptimizerTraits,
    options: Options,
    machine: Machine,
) -> str | None:
    """Refuse cuda_graph with what cannot be replayed: other devices, decisions of the host within a step."""
    if not options.get("cuda_graph"):
        return None
    remedy = "set strategy.cuda_graph=false"
    device, name = device_type(spec, machine), spec.optimizer
    return _first(
        (device != "cuda", f"cuda_graph captures a step on a CUDA device, and this run is on {device}; {remedy}"),
        (
            workload.optimizer_only,
            f"cuda_graph captures forward and backward, and {spec.workload} has neither; {remedy}",
        ),
        (
            optimizer.closure or not optimizer.capturable,
            f"the step of {name} cannot be captured: it reads values on the host; {remedy}, or use adamw/foreach",
        ),
        (
            optimizer.compiled,
            f"{name} may compile again while the step is captured; {remedy}, or use adamw/foreach",
        ),
        (
            has_sparse_gradients(spec, workload),
            f"the shapes of sparse gradients change from step to step; {remedy}, or set workload.sparse=false",
        ),
        (
            spec.precision == "fp16",
            f"fp16's gradient scaler decides on the host whether to step; use --precision bf16, or {remedy}",
        ),
        (
            bool(options.get("optimizer_in_backward")),
            "cuda_graph captures one optimizer for all parameters; leave it or optimizer_in_backward out",
        ),
        (
            spec.warmup_steps < CAPTURE_STEP,
            (
                f"cuda_graph captures in step {CAPTURE_STEP}, which must not be timed, and warmup_steps is "
                f"{spec.warmup_steps}; set warmup_steps={CAPTURE_STEP} or more, or {remedy}"
            ),
        ),
    )


def communication_hook(spec: RunSpec, workload: WorkloadTraits, options: Options, machine: Machine) -> str | None:
    """Refuse DDP's communication hooks that are unknown, or that cannot compress these gradients."""
    hook = options.get("comm_hook")
    if hook is None:
        return None
    if hook not in {"bf16", "fp16", "powersgd"}:
        return f'ddp knows no comm_hook {hook!r}; set strategy.comm_hook to "bf16", "fp16" or "powersgd"'
    if has_sparse_gradients(spec, workload):
        return (
            f"DDP's {hook} hook compresses dense buckets, and {spec.workload} has sparse gradients; "
            "leave comm_hook out, or set workload.sparse=false"
        )
    device = device_type(spec, machine)
    if hook == "bf16" and device not in {"cuda", "xpu"}:
        return (
            f"DDP's bf16 hook needs NCCL or XCCL, and this run is on {device}; "
            'set strategy.comm_hook="fp16", or leave it out'
        )
    return _unfit_power_sgd(spec, options) if hook == "powersgd" else None


def _unfit_power_sgd(spec: RunSpec, options: Options) -> str | None:
    rank, start = options.get("powersgd_rank"), options.get("powersgd_start_iter")
    if not isinstance(rank, int) or rank < 1:
        return f"powersgd_rank = {rank} is no rank of a matrix; set strategy.powersgd_rank=1 or more"
    if not isinstance(start, int) or not MIN_POWERSGD_START <= start < spec.steps:
        return (
            f"PowerSGD can begin in iteration {MIN_POWERSGD_START} at the earliest and must within the run's "
            f"{spec.steps} steps, found {start}; set strategy.powersgd_start_iter between them"
        )
    if spec.precision in {"bf16-pure", "bf16-master"}:
        return (
            "PowerSGD orthogonalises in the gradients' dtype, and torch does so in float32 only, not bfloat16; "
            "use --precision bf16"
        )
    return None
