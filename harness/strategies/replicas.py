"""Replicas that average gradients: DistributedDataParallel, its communication hooks, ZeroRedundancyOptimizer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from harness.optimizers.construct import facts as optimizer_facts
from harness.stepping import Driver
from harness.strategies.stepped import Idle
from harness.strategies.torch_engine import TorchEngine

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pydantic import JsonValue
    from torch import Tensor, nn

    from harness.interfaces import ParamGroup, World


def data_parallel(
    model: nn.Module, world: World, options: Mapping[str, JsonValue], arguments: Collection[str]
) -> nn.Module:
    """Wrap a replica that already is on its device.

    Args:
        model: the replica.
        world: this rank.
        options: the strategy's, with defaults.
        arguments: which of them are DistributedDataParallel's; the others are for the communication hook.
    """
    chosen = cast("dict[str, Any]", {name: options[name] for name in arguments})
    devices = None if world.device.type == "cpu" else [world.device]
    wrapped = DistributedDataParallel(model, device_ids=devices, **chosen)
    hook = options.get("comm_hook")
    if hook == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            process_group=None,
            matrix_approximation_rank=options["powersgd_rank"],
            start_powerSGD_iter=options["powersgd_start_iter"],
            warm_start=options["powersgd_warm_start"],
        )
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif hook is not None:
        wrapped.register_comm_hook(None, _HOOKS[str(hook)])
    return wrapped


_HOOKS = {"bf16": default_hooks.bf16_compress_hook, "fp16": default_hooks.fp16_compress_hook}


class ZeroRedundancyEngine(TorchEngine):
    """Replicas of which each updates some whole tensors, and broadcasts them."""

    def _build_optimizer(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # it compiles functions when imported

        def of_this_rank(shares: list[dict[str, Any]], **_defaults: Any) -> _Local:
            mine = {id(p) for share in shares for p in share["params"]}
            real = self._build_local(groups, mine)
            return _Local(shares, real, Driver(real, self._entry.name, self._entry.traits))

        as_view = bool(self._spec.strategy_options.get("parameters_as_bucket_view"))
        wrapper = ZeroRedundancyOptimizer(
            self._targets,
            optimizer_class=cast("type[torch.optim.Optimizer]", of_this_rank),
            parameters_as_bucket_view=as_view,
        )
        self._local = cast("_Local", wrapper.optim)
        return wrapper

    def _build_local(self, groups: Sequence[ParamGroup], mine: set[int]) -> torch.optim.Optimizer:
        """Build the run's optimizer over this rank's tensors, with their roles and decay in the model."""
        if not mine:
            return Idle()
        shares = [restricted(group, mine) for group in groups]
        # Those of other ranks stay, empty, as a sign that the model has such roles; families look at the first.
        return self._entry.build(sorted(shares, key=lambda share: not share.parameters), self._spec)

    @property
    def _real_optimizer(self) -> torch.optim.Optimizer:
        return self._local.real

    def _optimizer_facts(self) -> dict[str, JsonValue]:
        wrapper = type(self._optimizer)
        return {**optimizer_facts(self._local.real), "wrapper": f"{wrapper.__module__}.{wrapper.__qualname__}"}

    def _publish(self) -> None:
        """Send what the optimizer's train and eval switch has changed on the rank that owns it."""
        for owner, share in enumerate(self._owned()):
            for tensor in share:
                dist.broadcast(tensor.detach(), owner)
        super()._publish()

    def _owned(self) -> list[list[Tensor]]:
        from harness.strategies.predictions import whole_tensor_shares

        shapes = {str(number): tuple(each.shape) for number, each in enumerate(self._targets)}
        return [
            [self._targets[int(number)] for number in share]
            for share in whole_tensor_shares(shapes, self._world.size)
        ]

    def verify_claims(self) -> None:
        """Check the real optimizer, unless this rank has nothing to update."""
        if not isinstance(self._local.real, Idle):
            super().verify_claims()


def restricted(group: ParamGroup, kept: set[int]) -> ParamGroup:
    """Return the group with those parameters only whose ``id`` is in ``kept``; it may become empty."""
    members = [(n, p) for n, p in zip(group.names, group.parameters, strict=True) if id(p) in kept]
    return replace(group, names=tuple(n for n, _ in members), parameters=tuple(p for _, p in members))


class _Local:
    """What ZeroRedundancyOptimizer takes for its local optimizer, with whose groups it exchanges settings.

    Its groups are the wrapper's, without settings; the real optimizer has groups of its own, by rate and decay,
    whose number may differ from rank to rank.
    """

    def __init__(self, shares: list[dict[str, Any]], real: torch.optim.Optimizer, driver: Driver) -> None:
        self.param_groups = [{"params": share["params"]} for share in shares]
        self.real = real
        self._driver = driver

    @property
    def state(self) -> Any:
        """The real optimizer's."""
        return self.real.state

    def step(self, loss: Tensor | None = None, **_arguments: Any) -> None:
        """Update this rank's tensors."""
        self._driver.step(loss)
