"""The engine of the zero strategies: DeepSpeed's own, driven as its documentation says."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from harness import kernels
from harness.contract import scalar_loss
from harness.errors import UnsupportedError
from harness.interfaces import Phase, StepResult
from harness.optimizers.construct import facts as optimizer_facts
from harness.optimizers.construct import json_safe, note_arguments, set_lr, torch_groups
from harness.optimizers.deepspeed import import_deepspeed
from harness.parameter_groups import parameter_groups
from harness.registry import load
from harness.strategies.deepspeed_config import configuration
from harness.strategies.deepspeed_state import restore, saved
from harness.strategies.deepspeed_tensors import live_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from harness.interfaces import Batch, Category, Optimizer, ParamGroup, Workload, World
    from harness.spec import RunSpec


class DeepSpeedEngine:
    """A model and its optimizer inside ``deepspeed.initialize``.

    Args:
        workload: what is trained.
        optimizer: how it is updated.
        spec: with every default resolved.
        world: this rank; its process group exists.
        stage: of ZeRO.
        options: the strategy's, complete.
        offload: keep optimizer state in host memory.
    """

    def __init__(
        self,
        workload: Workload,
        optimizer: Optimizer,
        spec: RunSpec,
        world: World,
        stage: int,
        options: Mapping[str, JsonValue],
        *,
        offload: bool,
    ) -> None:
        import_deepspeed(world.device.type)
        self._workload, self._world, self._entry, self._stage = workload, world, optimizer, stage
        with world.device:
            model = workload.build()
        self._module = model.to(world.device)
        _initialise(self._module, workload, spec.seed)
        self._module.train()
        groups = parameter_groups(self._module.named_parameters(), workload.traits)
        self._groups: list[JsonValue] = [
            {"role": g.role, "tensors": len(g.names), "elements": sum(p.numel() for p in g.parameters)}
            for g in groups
        ]
        self._elements = sum(p.numel() for p in self._module.parameters() if p.requires_grad)
        chosen: Callable[[RunSpec], Mapping[str, JsonValue] | None]
        chosen = getattr(optimizer, "deepspeed_config", lambda _spec: None)
        section = chosen(spec)
        self.config = configuration(spec, stage, options, section, world_size=world.size, offload=offload)
        for kernel in optimizer.traits.kernels:
            kernels.load(kernel, world.device.type)
        self._engine = _started(self._module, self.config, **_handed_over(optimizer, groups, spec, section))
        self._optimizer: torch.optim.Optimizer = self._engine.basic_optimizer
        if section is not None:
            note_arguments(self._optimizer, cast("Mapping[str, Any]", section["params"]))
        self._norm = _GradientNorm(self._engine) if spec.clip_norm is not None else None
        self._factor: float | None = 1.0

    def train_step(self, micro_batches: Sequence[Batch], mark: Callable[[Phase], None]) -> StepResult:
        """Forward and backward through the engine; its step clips and updates after the last micro-batch."""
        engine, workload = self._engine, self._workload
        total: Tensor | None = None
        last = len(micro_batches) - 1
        for index, batch in enumerate(micro_batches):
            mark(Phase.FORWARD)
            loss = scalar_loss(workload.loss(engine, batch))
            mark(Phase.BACKWARD)
            share = engine.backward(loss).detach()  # divided by the number of micro-batches
            total = share if total is None else total + share
            if index == last:
                mark(Phase.OPTIMIZER)
            engine.step()
        assert total is not None, "a step has at least one micro-batch"
        return StepResult(total, None if self._norm is None else self._norm.value())

    def set_lr(self, factor: float) -> None:
        """Set every group's learning rate to ``factor`` times its peak, where that changes it."""
        if factor != self._factor:
            set_lr(self._optimizer, factor)
            self._factor = factor

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Lend the module, whose hooks gather partitioned parameters, in eval mode and without gradients."""
        self._module.eval()
        try:
            with torch.no_grad():
                yield self._module
        finally:
            self._module.train()

    def tensors(self) -> Iterable[tuple[Category, Tensor]]:
        """Yield what the module, DeepSpeed's wrapper and the optimizer inside it hold."""
        return live_tensors(self._engine)

    def facts(self) -> dict[str, JsonValue]:
        """Return the config as used, wrapper and real optimizer, and what DeepSpeed computes with."""
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        return {
            "model_class": _name(type(self._module)),
            "wrapper_class": _name(type(self._engine)),
            "parameters": self._elements,
            "parameter_groups": self._groups,
            "optimizer": optimizer_facts(self._optimizer),
            "optimizer_wrapper_class": self._wrapper(),
            "deepspeed_config": json_safe(self.config),
            "deepspeed_version": str(deepspeed.__version__),
            "deepspeed_accelerator": str(get_accelerator().device_name()),
            "world_size": self._world.size,
            "step_operators": None,
            "ran_as": None,
        }

    def _wrapper(self) -> str | None:
        outer = self._engine.optimizer
        return None if outer is self._optimizer else _name(type(outer))

    def verify_claims(self) -> None:
        """Raise UnsupportedError where what ran is not what the optimizer's name says."""
        reason = self._entry.disproved(self._optimizer)
        if reason is not None:
            raise UnsupportedError(reason)
        named, found = self._entry.target, type(self._optimizer)
        if self._chosen_by_config() and load(named) is not found:
            raise UnsupportedError(
                f"{self._entry.name} names {named}, and DeepSpeed constructed {_name(found)}; "
                "run it under another strategy"
            )

    def _chosen_by_config(self) -> bool:
        return "optimizer" in self.config

    def state_dict(self) -> dict[str, object]:
        """Return copies of this rank's share of model and optimizer state."""
        return saved(self._engine, partitioned_parameters=self._stage == 3)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` returned on this rank."""
        restore(self._engine, state, self._world.rank, partitioned_parameters=self._stage == 3)
        self._factor = None  # the groups hold the rate that was saved

    def close(self) -> None:
        """Let DeepSpeed remove its hooks and buffers."""
        self._engine.destroy()


class _GradientNorm:
    """The global norm before clipping, wherever this DeepSpeed leaves it.

    Without a wrapper (fp32 under stage 0) the engine clips with `clip_fp32_gradients` and drops the norm that
    its own function returns; the very same call, with the number kept, stands in for it.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._kept: Tensor | None = None
        if not hasattr(engine.optimizer, "_global_grad_norm"):
            engine.clip_fp32_gradients = self._clip

    def _clip(self) -> None:
        from deepspeed.runtime.utils import clip_grad_norm_

        engine = self._engine
        self._kept = clip_grad_norm_(
            parameters=engine.module.parameters(), max_norm=engine.gradient_clipping(), mpu=engine.mpu
        )

    def value(self) -> Tensor | None:
        """Return the last step's norm, shape ()."""
        found = self._kept if self._kept is not None else self._engine.get_global_grad_norm()
        return None if found is None else torch.as_tensor(found).detach().reshape(())


def _handed_over(
    optimizer: Optimizer, groups: Sequence[ParamGroup], spec: RunSpec, section: Mapping[str, JsonValue] | None
) -> dict[str, Any]:
    """Return what `deepspeed.initialize` gets: groups for an optimizer that it constructs, else ours."""
    if section is None:
        return {"optimizer": optimizer.build(groups, spec)}
    params = cast("Mapping[str, Any]", section["params"])
    return {"model_parameters": torch_groups(groups, params["lr"], params.get("weight_decay"))}


def _started(module: nn.Module, config: dict[str, JsonValue], **handed_over: Any) -> Any:
    """Return the engine. Its shared-memory operator stays out: compiled at once by every rank, and for inference.

    DeepSpeed compiles ``deepspeed_shm_comm`` in each rank as soon as it is imported with a compiler at hand, and
    calls it in ``inference_all_reduce`` alone, which training never does. Marked as incompatible, it is not built.
    """
    deepspeed = importlib.import_module("deepspeed")
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(model=module, config=config, **handed_over)
    return engine


def _initialise(model: nn.Module, workload: Workload, seed: int) -> None:
    """Fill parameters and persistent buffers, each by its name: the order cannot matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            workload.initialise(name, parameter, seed)
        persistent = model.state_dict(keep_vars=True)
        for name, buffer in model.named_buffers():
            if name in persistent:
                workload.initialise(name, buffer, seed)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
