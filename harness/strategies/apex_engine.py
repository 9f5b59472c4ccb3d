"""The engine around DistributedFusedAdam, which fills buckets, reduces, clips, steps and gathers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from harness import precision
from harness.strategies.initialising import build, cast_inputs, initialise
from harness.strategies.torch_engine import TorchEngine

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from harness.interfaces import Category


class ApexDistributedEngine(TorchEngine):
    """A replica without DDP. Hooks of the optimizer move each gradient into a bucket as backward makes it.

    Under ``bf16-master`` the masters are the optimizer's own float32 shards, which begin as rounded parameters.
    """

    def _build(self) -> nn.Module:
        module = build(self._workload, self._world.device)
        initialise(module, self._workload, self._spec.seed)
        if precision.model_dtype(self._spec.precision) == "bfloat16":
            module.to(torch.bfloat16)
        cast_inputs(module, self._spec.precision)
        return module

    @property
    def _apex(self) -> Any:
        return self._optimizer

    def _without_reduction(self) -> contextlib.AbstractContextManager[None]:
        return cast("contextlib.AbstractContextManager[None]", self._apex.no_sync())

    def _forget_gradients(self) -> None:
        # It holds gradients in buckets, and the clipping factor of the step before, which only this call resets.
        self._apex.zero_grad(set_to_none=True)

    def _clip(self) -> Tensor | None:
        """Clip by the norm of the reduced gradients; the factor is applied in the step."""
        if self._spec.clip_norm is None:
            return None
        norm: Tensor = self._apex.clip_grad_norm(self._spec.clip_norm)
        return norm

    def _claimed(self) -> Iterator[tuple[Category, Tensor]]:
        """Yield the replica, and from the optimizer's buckets gradients, masters, state and buffers to send."""
        yield from super()._claimed()
        for bucket in self._apex.state["buckets"]:
            for name in ("params_shard", "param_remainders_shard"):
                if getattr(bucket, name, None) is not None:
                    yield "master", getattr(bucket, name)
            yield "state", bucket.exp_avg_shard
            yield "state", bucket.exp_avg_sq_shard
        for bucket in list(self._apex._grads_buckets.values()):  # noqa: SLF001  # it has no public account of them
            if bucket.grads_shard is not None:
                yield "gradients", bucket.grads_shard
            for name in ("grads_bucket", "sync_grads_shard"):
                if getattr(bucket, name, None) is not None:
                    yield "communication", getattr(bucket, name)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` returned; the optimizer takes a copy, since it empties what it is given."""
        optimizer = dict(cast("Mapping[str, object]", state["optimizer"]))
        super().load_state_dict({**state, "optimizer": optimizer})
