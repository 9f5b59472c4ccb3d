"""Hands a model and its optimizer to DeepSpeed, and undoes what it does to them without being asked."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from torch.optim import Adagrad, Optimizer

from harness.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def started(module: nn.Module, config: dict[str, Any], **handed_over: Any) -> Any:
    """Return ``deepspeed.initialize``'s engine.

    DeepSpeed compiles ``deepspeed_shm_comm`` in each rank as soon as a process group is there and a compiler at
    hand, and calls it in ``inference_all_reduce`` alone, which training never does. Marked as incompatible, it is
    not built.

    Args:
        module: on its device, initialised.
        config: DeepSpeed's.
        handed_over: ``optimizer``, or ``model_parameters`` for one that the config names.
    """
    client: Optimizer | None = handed_over.get("optimizer")
    stage = int(config["zero_optimization"]["stage"])
    copies = stage > 0 or "bf16" in config or "fp16" in config
    deepspeed = importlib.import_module("deepspeed")
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    made_early = client is not None and copies and bool(client.state)
    with _unrecognised(client) if made_early else _nothing, _unstepped(client) if stage == 0 else _nothing:
        engine, *_ = deepspeed.initialize(model=module, config=config, **handed_over)
    if made_early:
        _give_state(engine.basic_optimizer, engine.optimizer)
    if stage == 0 and copies and client is None:
        engine.basic_optimizer.state.clear()
        engine.optimizer.refresh_fp32_params()
    return engine


_nothing = contextlib.nullcontext()


@contextlib.contextmanager
def _unstepped(optimizer: Optimizer | None) -> Iterator[None]:
    """Leave out the step on zero gradients that stage 0's 16-bit wrappers begin with.

    It would decay the weights and count as one, so that every bias correction came a step late. Of an optimizer
    that DeepSpeed constructs itself the traces are removed afterwards.
    """
    if optimizer is None:
        yield
        return
    attributes = vars(optimizer)
    own = attributes.get("step")
    attributes["step"] = lambda *_arguments, **_keywords: None
    try:
        yield
    finally:
        del attributes["step"]
        if own is not None:
            attributes["step"] = own


class _Unrecognised(Optimizer):
    """What an Adagrad passes for while DeepSpeed sets it up."""


@contextlib.contextmanager
def _unrecognised(optimizer: Optimizer | None) -> Iterator[None]:
    """Keep DeepSpeed from replacing torch's Adagrad, which makes its state when constructed.

    The stages that partition would put one over the flat partitions in its place: without the groups' own rates
    and decay, and out of reach of schedules.

    Raises:
        UnsupportedError: it makes state when constructed and is no Adagrad: nobody would make that of partitions.
    """
    real = type(optimizer)
    if not issubclass(real, Adagrad):
        raise UnsupportedError(
            f"{real.__name__} makes its state when constructed, for each whole tensor, and ZeRO replaces these by "
            "flat partitions afterwards, which have none; use --strategy zero0 or ddp"
        )
    optimizer.__class__ = _Unrecognised
    try:
        yield
    finally:
        optimizer.__class__ = real


def _give_state(optimizer: Optimizer, wrapper: Any) -> None:
    """Make the state of the partitions as the constructor would, in the place of the whole tensors'."""
    if hasattr(wrapper, "fp32_partitioned_groups_flat"):  # stage 3 takes them out of the groups between steps
        stepped = list(wrapper.fp32_partitioned_groups_flat)
    else:
        stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.state = type(optimizer)(stepped, **optimizer.defaults).state
