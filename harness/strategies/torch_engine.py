"""The engine of PyTorch's own strategies: a model, wrapped or not, and one torch.optim.Optimizer."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from harness.contract import scalar_loss
from harness.errors import UnsupportedError
from harness.interfaces import OptimizerOnlyWorkload, Phase, StepResult
from harness.optimizers.construct import facts as optimizer_facts
from harness.optimizers.construct import set_lr
from harness.parameter_groups import parameter_groups
from harness.strategies.operators import StepOperators

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from harness.interfaces import Batch, Category, Optimizer, Workload, World
    from harness.spec import RunSpec


def data_parallel(model: nn.Module, world: World, options: Mapping[str, JsonValue]) -> nn.Module:
    """Wrap a replica that already is on its device."""
    arguments = cast("dict[str, Any]", dict(options))
    devices = None if world.device.type == "cpu" else [world.device]
    return DistributedDataParallel(model, device_ids=devices, **arguments)


class TorchEngine:
    """One replica of the model, its optimizer, and the step that both take.

    Args:
        workload: what is trained.
        optimizer: how it is updated.
        spec: with every default resolved.
        world: this rank.
        wrap: makes the replica part of a world; None: it stands alone.
    """

    def __init__(
        self,
        workload: Workload,
        optimizer: Optimizer,
        spec: RunSpec,
        world: World,
        wrap: Callable[[nn.Module], nn.Module] | None,
    ) -> None:
        self._workload, self._spec, self._world, self._entry = workload, spec, world, optimizer
        with world.device:
            model = workload.build()
        self._module = model.to(world.device)
        _initialise(self._module, workload, spec.seed)
        self._model = wrap(self._module) if wrap else self._module
        self._parameters = [p for p in self._module.parameters() if p.requires_grad]
        groups = parameter_groups(self._module.named_parameters(), workload.traits)
        self._optimizer = optimizer.build(groups, spec)
        self._operators = StepOperators()
        self._steps, self._factor = 0, 1.0
        self._module.train()

    def train_step(self, micro_batches: Sequence[Batch], mark: Callable[[Phase], None]) -> StepResult:
        """Forward, backward, clip and update; or let the optimizer's closure do the first two."""
        self._steps += 1
        if self._entry.traits.closure:
            return self._closure_step(micro_batches, mark)
        if self._workload.traits.optimizer_only:
            loss = None
            self._set_gradients(micro_batches)
        else:
            loss = self._forward_backward(micro_batches, mark)
        mark(Phase.OPTIMIZER)
        norm = self._clip()
        with self._operators.watching() if self._steps == min(2, self._spec.warmup_steps) else _nothing:
            self._optimizer.step()
        return StepResult(loss, norm)

    def _set_gradients(self, micro_batches: Sequence[Batch]) -> None:
        workload = self._workload
        if not isinstance(workload, OptimizerOnlyWorkload):
            raise TypeError(f"{type(workload).__name__} says optimizer_only but has no gradients() method")
        for batch in micro_batches:
            workload.gradients(self._module, batch)

    def _forward_backward(self, micro_batches: Sequence[Batch], mark: Callable[[Phase], None]) -> Tensor:
        total: Tensor | None = None
        last = len(micro_batches) - 1
        for index, batch in enumerate(micro_batches):
            mark(Phase.FORWARD)
            if index == 0:
                self._forget_gradients()
            with self._without_reduction() if index < last else _nothing:
                with self._autocast():
                    loss = scalar_loss(self._workload.loss(self._model, batch))
                loss = loss / len(micro_batches) if last else loss
                mark(Phase.BACKWARD)
                loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types for it
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a step has at least one micro-batch"
        return total

    def _closure_step(self, micro_batches: Sequence[Batch], mark: Callable[[Phase], None]) -> StepResult:
        """LBFGS and its like evaluate the loss as often as they want: the phases cannot be told apart."""
        mark(Phase.WORK)
        first: list[Tensor] = []

        def closure() -> Tensor:
            with torch.enable_grad():
                loss = self._forward_backward(micro_batches, lambda _phase: None)
            if self._world.size > 1:  # line search decides by the loss: every rank must see the same one
                dist.all_reduce(loss)
                loss = loss / self._world.size
            self._clip()
            first.append(loss)
            return loss

        self._optimizer.step(cast("Callable[[], float]", closure))
        return StepResult(first[0] if first else None)

    def _clip(self) -> Tensor | None:
        if self._spec.clip_norm is None:
            return None
        return nn.utils.clip_grad_norm_(self._parameters, self._spec.clip_norm)

    def _forget_gradients(self) -> None:
        # Not optimizer.zero_grad(): libraries override it, and what a step costs must not depend on that.
        for parameter in self._parameters:
            parameter.grad = None

    def _without_reduction(self) -> contextlib.AbstractContextManager[None]:
        model = self._model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        enabled = self._spec.precision == "bf16"
        return torch.autocast(self._world.device.type, dtype=torch.bfloat16) if enabled else _nothing

    def set_lr(self, factor: float) -> None:
        """Set every group's learning rate to ``factor`` times its peak, where that changes it."""
        if factor != self._factor:
            set_lr(self._optimizer, factor)
            self._factor = factor

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Lend the bare replica, in eval mode and without gradients; the optimizer is told, if it wants to be."""
        switches = [getattr(self._optimizer, name, None) for name in ("eval", "train")]
        self._module.eval()
        if callable(switches[0]):
            switches[0]()
        try:
            with torch.no_grad(), self._autocast():
                yield self._module
        finally:
            self._module.train()
            if callable(switches[1]):
                switches[1]()

    def tensors(self) -> Iterable[tuple[Category, Tensor]]:
        """Yield parameters, gradients, buffers and everything that the optimizer keeps."""
        for parameter in self._module.parameters():
            yield "parameters", parameter
            if parameter.grad is not None:
                yield "gradients", parameter.grad
        for buffer in self._module.buffers():
            yield "buffers", buffer
        for key, tensor in _kept(self._optimizer):
            yield ("master" if "master" in key else "state"), tensor

    def facts(self) -> dict[str, JsonValue]:
        """Return what really ran: model, wrapper, optimizer class, arguments and flags, a step's operators."""
        groups = parameter_groups(self._module.named_parameters(), self._workload.traits)
        return {
            "model_class": _name(type(self._module)),
            "wrapper_class": _name(type(self._model)) if self._model is not self._module else None,
            "parameters": sum(p.numel() for p in self._parameters),
            "parameter_groups": [
                {"role": g.role, "tensors": len(g.names), "elements": sum(p.numel() for p in g.parameters)}
                for g in groups
            ],
            "optimizer": optimizer_facts(self._optimizer),
            "step_operators": self._operators.counts(),
            "ran_as": self._operators.ran_as(),
        }

    def verify_claims(self) -> None:
        """Raise UnsupportedError where what ran is not what the optimizer's name says."""
        reason = self._entry.disproved(self._optimizer)
        if reason is not None:
            raise UnsupportedError(reason)

    def state_dict(self) -> dict[str, object]:
        """Return model and optimizer state."""
        return {"model": self._module.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` returned."""
        self._module.load_state_dict(cast("dict[str, Any]", state["model"]))
        self._optimizer.load_state_dict(cast("dict[str, Any]", state["optimizer"]))

    def close(self) -> None:
        """Drop gradients; tensors go with the process."""
        self._forget_gradients()


_nothing = contextlib.nullcontext()


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _initialise(model: nn.Module, workload: Workload, seed: int) -> None:
    """Fill parameters and persistent buffers, each by its name: the order cannot matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            workload.initialise(name, parameter, seed)
        persistent = model.state_dict(keep_vars=True)
        for name, buffer in model.named_buffers():
            if name in persistent:
                workload.initialise(name, buffer, seed)


def _kept(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Walk state and attributes of an optimizer for tensors; its own parameters are not among them."""
    parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
    seen: set[int] = set()
    attributes = {k: v for k, v in vars(optimizer).items() if k not in {"param_groups", "state", "defaults"}}
    stack: list[tuple[str, object]] = [*attributes.items(), *(("", v) for v in dict(optimizer.state).values())]
    while stack:
        key, found = stack.pop()
        if id(found) in seen or id(found) in parameters:
            continue
        if isinstance(found, Tensor):
            seen.add(id(found))
            yield key, found
        elif isinstance(found, dict):
            seen.add(id(found))
            stack += [(f"{key}.{name}", inner) for name, inner in found.items()]
        elif isinstance(found, (list, tuple)):
            seen.add(id(found))
            stack += [(key, inner) for inner in found]
