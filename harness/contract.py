"""Checks of what a workload hands over, so that a breach is one clear message and never a wrong number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import OptbenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from harness.interfaces import Batch, DataShard, Workload
    from harness.spec import RunSpec

METHODS = ("build", "initialise", "batches", "loss", "evaluate")


def construct(cls: Callable[..., Workload], spec: RunSpec) -> Workload:
    """Return the spec's workload, constructed.

    Raises:
        OptbenchError: its constructor raises, or it lacks a method.
    """
    arguments = {"size": spec.size, "data": spec.data, **spec.workload_options}
    try:
        workload = cls(**arguments)
    except Exception as error:
        written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise OptbenchError(f"{spec.workload}({written}) raised {type(error).__name__}: {error}") from error
    needed = [*METHODS, *(["gradients"] if workload.traits.optimizer_only else [])]
    missing = [name for name in needed if not callable(getattr(workload, name, None))]
    if missing:
        raise OptbenchError(f"{spec.workload} has no method {', '.join(missing)}; see harness/interfaces.py")
    return workload


def checked(batches: Iterable[Batch], shard: DataShard) -> Iterator[Batch]:
    """Yield the micro-batches, each of which must hold as many samples as the shard asks for.

    Raises:
        OptbenchError: they end, are no mapping of tensors, or hold another number of samples.
    """
    for number, batch in enumerate(batches):
        if not isinstance(batch, Mapping) or not all(isinstance(t, torch.Tensor) for t in batch.values()):
            raise OptbenchError(f"batches() must yield mappings of names to tensors, found {_described(batch)}")
        for key, tensor in batch.items():
            if tensor.shape[:1] != (shard.micro_batch,):
                found = f"{key!r} of shape {tuple(tensor.shape)} in micro-batch {number}"
                raise OptbenchError(
                    f"batches() must yield shard.micro_batch = {shard.micro_batch} samples at a time, in "
                    f"dimension 0 of every tensor; found {found}"
                )
        yield batch
    raise OptbenchError("batches() ended; it must yield micro-batches for as long as it is asked")


def scalar_loss(loss: Any) -> torch.Tensor:
    """Return the loss if backward can start from it.

    Raises:
        OptbenchError: it is no tensor of one element, or does not depend on parameters.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise OptbenchError(f"loss() must return a tensor of shape (), found {_described(loss)}")
    if not loss.requires_grad:
        raise OptbenchError("loss() returned a tensor that depends on no trainable parameter: nothing to train")
    return loss


def evaluation(values: Any) -> dict[str, float]:
    """Return what an evaluation measured as plain numbers.

    Raises:
        OptbenchError: it is no mapping of names to numbers.
    """
    if not isinstance(values, Mapping):
        raise OptbenchError(f"evaluate() must return a mapping of names to numbers, found {_described(values)}")
    found = {}
    for name, value in values.items():
        try:
            if not isinstance(name, str) or isinstance(value, str):
                raise TypeError("no number")  # noqa: TRY301  # joins what float() raises
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            what = f"{name!r}: {_described(value)}"
            raise OptbenchError(f"evaluate() must return a mapping of names to numbers, found {what}") from error
    return found


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "a mapping of " + ", ".join(f"{key!r} to {type(inner).__name__}" for key, inner in value.items())
    return type(value).__name__
