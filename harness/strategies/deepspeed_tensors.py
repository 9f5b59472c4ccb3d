"""What a DeepSpeed engine holds on this rank, found on the live objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from harness.strategies.held import kept
from harness.tracing.extents import local_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.interfaces import Category

_HELD: tuple[tuple[str, Category], ...] = (
    # Flat storages behind the parameters, padding included (stages 1 and 2; BF16_Optimizer; FP16_Optimizer).
    ("bit16_groups_flat", "parameters"),
    ("bf16_groups_flat", "parameters"),
    ("fp16_groups_flat", "parameters"),
    # Stage 3: this rank's shards, and on the host the same.
    ("fp16_partitioned_groups_flat", "parameters"),
    ("param_groups_fp16_flat_cpu_memory", "parameters"),
    # What the optimizer steps on: a copy of the shard, in fp32 too.
    ("single_partition_of_fp32_groups", "master"),
    ("fp32_groups_flat_partition", "master"),
    ("fp32_partitioned_groups_flat", "master"),
    ("fp32_groups_flat", "master"),
    ("fp32_groups", "master"),
    ("averaged_gradients", "gradients"),
    ("all_grad_tensors", "gradients"),
    ("accumulated_grads_in_cpu", "gradients"),
    ("offload_gradient_dict", "gradients"),
    ("grad_partitions_flat_buffer", "gradients"),
    ("_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition", "gradients"),
    ("fp32_groups_gradients_flat", "gradients"),
    ("fp32_groups_gradients", "gradients"),
    ("fp32_groups_gradient_flat_partition", "gradients"),
    ("ipg_buckets", "communication"),
    ("extra_large_param_to_reduce", "communication"),
    # Staging of the shard and of one gradient between host and device.
    ("param_buffer_of_bit16_for_cpu_offload_groups", "communication"),
    ("temp_grad_buffer_for_cpu_offload", "communication"),
    ("temp_grad_buffer_for_gpu_offload", "communication"),
    ("lp_param_contiguous_pin_buffer", "communication"),
)
"""Attributes of DeepSpeed's wrappers around the optimizer (0.19), and what the tensors in them are."""

_ON_PARAMETERS: tuple[tuple[str, Category], ...] = (
    ("ds_tensor", "parameters"),
    ("ds_secondary_tensor", "parameters"),
    ("grad", "gradients"),
    ("grad_accum", "gradients"),
)
"""Attributes of parameters, likewise."""


def live_tensors(engine: Any, optimizer: Any) -> Iterator[tuple[Category, Tensor]]:
    """Yield every plain tensor with its category; of views into what was yielded already, none.

    Args:
        engine: DeepSpeed's.
        optimizer: the one that updates, inside any wrapper.
    """
    seen: dict[tuple[Category, int], list[tuple[int, int]]] = {}
    for category, whole in _found(engine, optimizer):
        for tensor in local_parts(whole):  # a quantised state wraps several
            if _is_new(category, tensor, seen):
                yield category, tensor


def _is_new(category: Category, tensor: Tensor, seen: dict[tuple[Category, int], list[tuple[int, int]]]) -> bool:
    """Say whether a plain tensor shows memory that none before it has shown, and note it."""
    start = int(tensor.storage_offset()) * tensor.element_size()
    end = start + tensor.numel() * tensor.element_size()
    spans = seen.setdefault((category, tensor.untyped_storage().data_ptr()), [])
    if start < end and not any(low <= start and end <= high for low, high in spans):
        spans.append((start, end))
        return True
    return False


def _found(engine: Any, optimizer: Any) -> Iterator[tuple[Category, Tensor]]:
    claimed = list(_of_wrapper(engine.optimizer)) if engine.optimizer is not optimizer else []
    claimed += _of_module(engine.module)
    yield from claimed
    beyond = [engine, engine.optimizer, *engine.modules()]
    for _, tensor in kept(optimizer, (tensor for _, tensor in claimed), [e for e in beyond if e is not optimizer]):
        yield "state", tensor


def _of_module(module: Any) -> Iterator[tuple[Category, Tensor]]:
    """Yield parameters with the shards and gradients that DeepSpeed hangs on them, and buffers."""
    for parameter in module.parameters():
        yield "parameters", parameter
        for attribute, category in _ON_PARAMETERS:
            found = getattr(parameter, attribute, None)
            if isinstance(found, Tensor):
                yield category, found
    for buffer in module.buffers():
        yield "buffers", buffer


def _of_wrapper(wrapper: Any) -> Iterator[tuple[Category, Tensor]]:
    for attribute, category in _HELD:
        for tensor in _inside(getattr(wrapper, attribute, None)):
            yield category, tensor
            if tensor.is_leaf and tensor.grad is not None:
                yield "gradients", tensor.grad


def _inside(found: object) -> Iterator[Tensor]:
    """Walk containers, and DeepSpeed's buckets, for tensors."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict):
        for inner in found.values():
            yield from _inside(inner)
    elif isinstance(found, (list, tuple)):
        for inner in found:
            yield from _inside(inner)
    elif type(found).__name__.startswith("IPGBucket"):
        yield from _inside(vars(found).get("buffer"))
