"""The engine of the zero strategies: DeepSpeed's own, driven as its documentation says."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from harness import kernels
from harness.contract import scalar_loss
from harness.errors import UnsupportedError
from harness.interfaces import Phase, StepResult
from harness.optimizers.construct import facts as optimizer_facts
from harness.optimizers.construct import json_safe, note_arguments, torch_groups
from harness.optimizers.deepspeed import import_deepspeed
from harness.parameter_groups import parameter_groups
from harness.rates import set_lr, unscheduled
from harness.registry import load
from harness.strategies.deepspeed_config import configuration
from harness.strategies.deepspeed_flat import check_flat
from harness.strategies.deepspeed_start import started
from harness.strategies.deepspeed_state import restore, saved
from harness.strategies.deepspeed_tensors import live_tensors
from harness.strategies.held_parts import partition_of
from harness.strategies.initialising import build, cast_inputs, initialise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from harness.interfaces import Batch, Category, Optimizer, ParamGroup, Part, Workload, World
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
        self._autocast_dtype = torch.bfloat16 if spec.precision == "bf16" else None
        self._module = self._build(spec)
        groups = parameter_groups(self._module.named_parameters(), workload.traits)
        self._groups: list[JsonValue] = [
            {"role": g.role, "tensors": len(g.names), "elements": sum(p.numel() for p in g.parameters)}
            for g in groups
        ]
        self._elements = sum(p.numel() for p in self._module.parameters() if p.requires_grad)
        self._engine, self._optimizer = self._start(groups, spec, options, offload=offload)
        self._norm = _GradientNorm(self._engine) if spec.clip_norm is not None else None
        self._factor: float | None = 1.0
        self._schedule = spec.schedule

    def _build(self, spec: RunSpec) -> nn.Module:
        module = build(self._workload, self._world.device)
        initialise(module, self._workload, spec.seed)
        if spec.precision == "bf16-pure":
            module.to(torch.bfloat16)
        cast_inputs(module, spec.precision)
        return module.train()

    def _start(
        self, groups: Sequence[ParamGroup], spec: RunSpec, options: Mapping[str, JsonValue], *, offload: bool
    ) -> tuple[Any, torch.optim.Optimizer]:
        """Return DeepSpeed's engine and the optimizer that really updates."""
        entry, stage, world = self._entry, self._stage, self._world
        for kernel in entry.traits.kernels:
            kernels.load(kernel, world.device.type)
        if stage > 0 and entry.traits.granularity == "undeclared":
            check_flat(entry, groups, spec, stage, world.size)
        chosen: Callable[[RunSpec], Mapping[str, JsonValue] | None]
        chosen = getattr(entry, "deepspeed_config", lambda _spec: None)
        section = chosen(spec)
        self.config = configuration(
            spec, stage, options, section, elements=self._elements, world_size=world.size, offload=offload
        )
        if section is None:
            client = entry.build(groups, spec)
            return started(self._module, self.config, optimizer=client), client
        params = cast("Mapping[str, Any]", section["params"])
        listed = torch_groups(groups, params["lr"], params.get("weight_decay"))
        engine = started(self._module, self.config, model_parameters=listed)
        note_arguments(engine.basic_optimizer, params)
        return engine, engine.basic_optimizer

    def train_step(self, micro_batches: Sequence[Batch], mark: Callable[[Phase], None]) -> StepResult:
        """Forward and backward through the engine; its step clips and updates after the last micro-batch."""
        engine, workload = self._engine, self._workload
        total: Tensor | None = None
        last = len(micro_batches) - 1
        for index, batch in enumerate(micro_batches):
            mark(Phase.FORWARD)
            with self._autocast():
                loss = scalar_loss(workload.loss(engine, batch))
            mark(Phase.BACKWARD)
            share = engine.backward(loss).detach()  # divided by the number of micro-batches
            total = share if total is None else total + share
            if index == last:
                mark(Phase.OPTIMIZER)
            engine.step()
        assert total is not None, "a step has at least one micro-batch"
        norm = None if self._norm is None else self._norm.value()
        return StepResult(total, norm, skipped=not engine.was_step_applied())

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        """Reach the loss, which is computed outside of the engine's own autocast."""
        dtype = self._autocast_dtype
        return _nothing if dtype is None else torch.autocast(self._world.device.type, dtype=dtype)

    def remarks(self) -> Iterator[str]:
        """Say where the schedule does nothing."""
        told = unscheduled(self._optimizer, self._schedule)
        if told is not None:
            yield told

    def set_lr(self, factor: float) -> None:
        """Set every group's learning rate to ``factor`` times its peak, where that changes it."""
        if factor != self._factor:
            set_lr(self._optimizer, factor)
            self._factor = factor

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Lend the module, whose hooks gather partitioned parameters, in eval mode and without gradients."""
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
        """Yield what the module, DeepSpeed's wrapper and the optimizer inside it hold."""
        return live_tensors(self._engine, self._optimizer)

    def modules(self) -> list[nn.Module]:
        """Return the model's modules, DeepSpeed's engine included."""
        return list(self._engine.modules())

    def parts(self) -> Iterator[Part]:
        """Yield what this rank holds of each parameter: all of it, or under stage 3 its partition."""
        rank = self._world.rank
        return (partition_of(name, p, rank) for name, p in self._module.named_parameters())

    def facts(self) -> dict[str, JsonValue]:
        """Return the config as used, wrapper and real optimizer, and what DeepSpeed computes with."""
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        return {
            "model_class": _name(type(self._module)),
            "wrapper_class": _name(type(self._engine)),
            "parameters": self._elements,
            "parameter_groups": self._groups,
            "optimizer": self._optimizer_facts(),
            "optimizer_wrapper_class": self._wrapper(),
            "deepspeed_config": json_safe(self.config),
            "deepspeed_version": str(deepspeed.__version__),
            "deepspeed_accelerator": str(get_accelerator().device_name()),
            "world_size": self._world.size,
            "dtypes": self._dtypes(),
            "step_operators": None,
            "ran_as": None,
        }

    def _optimizer_facts(self) -> dict[str, JsonValue]:
        """Return the facts of the optimizer over what it steps on: stage 3 takes that out between two steps."""
        outer = self._engine.optimizer
        if self._stage < 3:
            return optimizer_facts(self._optimizer)
        outer._set_fp32_optimizer_param_groups()  # noqa: SLF001  # the pair that saving a checkpoint uses
        try:
            return optimizer_facts(self._optimizer)
        finally:
            outer._clear_fp32_optimizer_param_groups()  # noqa: SLF001

    def _dtypes(self) -> JsonValue:
        held: dict[str, list[Tensor]] = {}
        for category, tensor in self.tensors():
            held.setdefault(category, []).append(tensor)
        found: dict[str, JsonValue] = {category: _dtypes(tensors) for category, tensors in held.items()}
        autocast = self._autocast_dtype
        return {**found, "autocast": None if autocast is None else str(autocast).removeprefix("torch.")}

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


_nothing = contextlib.nullcontext()


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _dtypes(tensors: Iterable[Tensor]) -> list[JsonValue]:
    return list(dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in tensors))
