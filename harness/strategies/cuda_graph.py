"""A whole step as one CUDA graph: gradients, clipping and update replayed without the host in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.interfaces import Phase, StepResult
from harness.rates import number
from harness.strategies.refusals import CAPTURE_STEP
from harness.strategies.torch_engine import TorchEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import JsonValue
    from torch import Tensor

    from harness.interfaces import Batch, ParamGroup


class CapturedEngine(TorchEngine):
    """Trains a few steps eagerly on a side stream, then captures one and replays it.

    The batch is copied into the tensors that were captured, so every batch must have the same shapes. Learning
    rates are tensors, filled in place before a replay. A loss is copied out, since the next replay overwrites it.
    The steps before the capture are real ones, and so is the captured one: capturing computes nothing, so that it
    is replayed at once.
    """

    def _build_optimizer(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        optimizer = super()._build_optimizer(groups)
        parts: Sequence[torch.optim.Optimizer] = getattr(optimizer, "parts", ()) or (optimizer,)
        for group in (group for part in parts for group in part.param_groups):
            rate = group.get("lr")
            if not isinstance(rate, torch.Tensor) and number(rate) is not None:
                group["lr"] = torch.tensor(rate, dtype=torch.float32, device=self._world.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._side = torch.cuda.Stream(self._world.device)  # type: ignore[no-untyped-call]
        return optimizer

    def train_step(self, micro_batches: Sequence[Batch], mark: Callable[[Phase], None]) -> StepResult:
        """Copy the batch in and replay; the phases of a replay cannot be told apart."""
        if self._graph is not None:
            mark(Phase.WORK)
            self._fill(micro_batches)
        elif self._steps + 1 < CAPTURE_STEP:
            return self._on_side_stream(lambda: super(CapturedEngine, self).train_step(micro_batches, mark))
        else:
            mark(Phase.WORK)
            self._capture(micro_batches)
        assert self._graph is not None, "captured above"
        self._graph.replay()
        loss, norm = self._captured.loss, self._captured.grad_norm
        return StepResult(loss.clone() if loss is not None else None, norm.clone() if norm is not None else None)

    def _on_side_stream(self, work: Callable[[], StepResult]) -> StepResult:
        """Warm up where a capture may follow: autograd's nodes remember the stream on which they were made."""
        current = torch.cuda.current_stream(self._world.device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            result = work()
        current.wait_stream(self._side)
        return result

    def _capture(self, micro_batches: Sequence[Batch]) -> None:
        self._inputs = [{key: tensor.clone() for key, tensor in batch.items()} for batch in micro_batches]
        self._forget_gradients()  # those of the graph live in its own memory pool
        torch.cuda.synchronize(self._world.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._side):
            self._captured = super().train_step(self._inputs, lambda _phase: None)
        self._graph = graph

    def _fill(self, micro_batches: Sequence[Batch]) -> None:
        for static, batch in zip(self._inputs, micro_batches, strict=True):
            for key, tensor in batch.items():
                _copy(key, static, tensor)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore, and capture again: what the graph refers to has been replaced."""
        self._graph = None
        super().load_state_dict(state)

    def facts(self) -> dict[str, JsonValue]:
        """Return what ran, and whether it was a graph."""
        return {**super().facts(), "cuda_graph": self._graph is not None}

    def close(self) -> None:
        """Free the graph and what it refers to."""
        self._graph = None
        super().close()


def _copy(key: str, static: Mapping[str, Tensor], tensor: Tensor) -> None:
    into = static[key]
    if into.shape != tensor.shape:
        raise RuntimeError(
            f"cuda_graph captured {key!r} of shape {tuple(into.shape)} and got {tuple(tensor.shape)}; "
            "set strategy.cuda_graph=false for a workload whose shapes change"
        )
    into.copy_(tensor, non_blocking=True)
