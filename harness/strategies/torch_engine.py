"""The engine of PyTorch's own strategies: a model, wrapped or not, and one torch.optim.Optimizer."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from harness.contract import scalar_loss
from harness.errors import OptbenchError, UnsupportedError
from harness.interfaces import OptimizerOnlyWorkload, Phase, StepResult
from harness.optimizers.construct import facts as optimizer_facts
from harness.parameter_groups import parameter_groups
from harness.rates import set_lr, unscheduled
from harness.stepping import Driver
from harness.strategies import overflow
from harness.strategies.clipping import clip
from harness.strategies.held import kept
from harness.strategies.held_parts import part_of
from harness.strategies.in_backward import InBackward
from harness.strategies.initialising import build, cast_inputs, initialise
from harness.strategies.operators import StepOperators
from harness.strategies.stepped import MasterWeights, local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from harness.interfaces import Batch, Category, Optimizer, ParamGroup, Part, Workload, World
    from harness.spec import RunSpec
    from harness.strategies.stepped import Stepped

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> what autocast computes in."""


WATCHED = 2
"""The step whose operators are counted, if the warm-up has as many."""


class TorchEngine:
    """One replica of the model, its optimizer, and the step that both take.

    Args:
        workload: what is trained.
        optimizer: how it is updated.
        spec: with every default resolved.
        world: this rank.
        wrap: makes the replica part of a world; None: it stands alone.
        in_backward: update each parameter as soon as backward has its gradient.
    """

    def __init__(
        self,
        workload: Workload,
        optimizer: Optimizer,
        spec: RunSpec,
        world: World,
        wrap: Callable[[nn.Module], nn.Module] | None,
        *,
        in_backward: bool = False,
    ) -> None:
        self._workload, self._spec, self._world, self._entry = workload, spec, world, optimizer
        self._stepped: Stepped | None = None
        self._norm_group: dist.ProcessGroup | None = None
        self._module = self._build()
        self._model = wrap(self._module) if wrap else self._module
        self._held = list(self._module.parameters())  # FSDP2 swaps what the module shows while it computes
        self._parameters = [p for p in self._held if p.requires_grad]
        named = self._stepped.named if self._stepped else list(self._module.named_parameters())
        self._targets = [p for _, p in named if p.requires_grad]
        groups = parameter_groups(named, workload.traits)
        self._in_backward = InBackward(groups, optimizer, spec) if in_backward else None
        self._optimizer = self._in_backward.optimizer if self._in_backward else self._build_optimizer(groups)
        self._driver = Driver(self._optimizer, optimizer.name, optimizer.traits)
        self._autocast_dtype = AUTOCAST.get(spec.precision)
        self._scaler = torch.amp.GradScaler(world.device.type) if spec.precision == "fp16" else None
        if self._scaler is not None:
            overflow.refuse_second_unscaling(self._optimizer)
        self._scale: float | None = None
        self._operators = StepOperators()
        self._steps = 0
        self._factor: float | None = 1.0
        self._module.train()

    def _build(self) -> nn.Module:
        """Return the initialised model in its precision; sets what the optimizer steps on, if that is not it."""
        module = build(self._workload, self._world.device)
        initialise(module, self._workload, self._spec.seed)
        if self._spec.precision == "bf16-master":
            self._stepped = MasterWeights(module)
        elif self._spec.precision == "bf16-pure":
            module.to(torch.bfloat16)
        cast_inputs(module, self._spec.precision)
        return module

    def _build_optimizer(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        return self._entry.build(groups, self._spec)

    @property
    def _real_optimizer(self) -> torch.optim.Optimizer:
        """The one that updates, inside any wrapper."""
        return self._optimizer

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
        if self._in_backward is not None:
            return StepResult(loss)
        mark(Phase.OPTIMIZER)
        return self._update(loss)

    def _update(self, loss: Tensor | None) -> StepResult:
        if self._stepped is not None:
            self._stepped.collect()
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
            self._agree_on_overflow(self._scaler)
        norm = self._clip()
        skipped = False
        with self._watching() if self._steps <= WATCHED else _nothing:
            whole = self._over_ranks(loss) if self._entry.traits.loss and loss is not None else loss
            if self._scaler is None:
                self._step(whole)
            else:
                skipped = self._step_unless_overflow(self._scaler, whole)
        if self._stepped is not None:
            self._stepped.publish()
        return StepResult(loss, norm, skipped)

    def _agree_on_overflow(self, scaler: torch.amp.GradScaler) -> None:
        """Nothing: replicas have the same gradients."""

    def _watching(self) -> contextlib.AbstractContextManager[None]:
        """Count the operators of one warm-up step; what compiles then would find a mode in its way."""
        watched = self._steps == min(WATCHED, self._spec.warmup_steps) and not self._entry.traits.compiled
        return self._operators.watching() if watched else _nothing

    def _step(self, loss: Tensor | None) -> None:
        self._driver.step(loss)

    def _over_ranks(self, loss: Tensor) -> Tensor:
        """Return the mean of all ranks' losses: what decides by the loss must see the same one on each."""
        if self._world.size == 1:
            return loss
        mean = loss.clone()
        dist.all_reduce(mean)
        return mean / self._world.size

    def _step_unless_overflow(self, scaler: torch.amp.GradScaler, loss: Tensor | None) -> bool:
        """Step where every rank's gradients are finite; say whether the update was left out.

        The scale falls after an overflow and only then, which is the scaler's one public word on it.
        """
        before = scaler.get_scale() if self._scale is None else self._scale
        positional, named = self._driver.arguments(loss)
        scaler.step(self._optimizer, *positional, **named)
        scaler.update()
        self._scale = scaler.get_scale()
        return self._scale < before

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
                with self._autocast(), self._naming_unused():
                    loss = scalar_loss(self._workload.loss(self._model, batch))
                loss = loss / len(micro_batches) if last else loss
                if self._in_backward is None:
                    mark(Phase.BACKWARD)
                else:
                    self._in_backward.arm(last=index == last)
                    mark(Phase.WORK if index == last else Phase.BACKWARD)
                self._backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a step has at least one micro-batch"
        return total

    def _backward(self, loss: Tensor) -> None:
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types for it

    def _closure_step(self, micro_batches: Sequence[Batch], mark: Callable[[Phase], None]) -> StepResult:
        """LBFGS and its like evaluate the loss as often as they want: the phases cannot be told apart.

        What the closure finds on entry is the driver's affair (`harness.stepping`).
        """
        mark(Phase.WORK)
        first: list[Tensor] = []

        def closure() -> Tensor:
            if self._stepped is not None:  # a line search has moved what the model is a copy of
                self._stepped.publish()
            with torch.enable_grad():
                loss = self._forward_backward(micro_batches, lambda _phase: None)
            loss = self._over_ranks(loss)
            if self._stepped is not None:
                self._stepped.collect()
            self._clip()
            first.append(loss)
            return loss

        self._driver.evaluate(closure)
        if self._stepped is not None:
            self._stepped.publish()
        return StepResult(first[0] if first else None)

    def _clip(self) -> Tensor | None:
        if self._spec.clip_norm is None:
            return None
        gradients = [local(p.grad) for p in self._targets if p.grad is not None]
        return clip(gradients, self._spec.clip_norm, self._norm_group, self._world.device)

    def _forget_gradients(self) -> None:
        # Not optimizer.zero_grad(): libraries override it, and what a step costs must not depend on that.
        for parameter in self._parameters:
            parameter.grad = None

    @contextlib.contextmanager
    def _naming_unused(self) -> Iterator[None]:
        """Name the parameters that the loss does not depend on, and our option, where DDP stumbles over them.

        Raises:
            OptbenchError: in the second forward pass, in which DDP finds that some of the first had no gradient.
        """
        try:
            yield
        except RuntimeError as error:
            if "find_unused_parameters" not in str(error):
                raise
            told = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
            named = [name for name, each in self._module.named_parameters() if each.requires_grad]
            unused = [named[int(index)] for index in told[1].split()] if told else ["some parameters"]
            what = f"the loss does not depend on {', '.join(unused[:5])}{' …' if len(unused) > 5 else ''}"
            remedy = "--set strategy.find_unused_parameters=true, or leave them out of the model"
            raise OptbenchError(f"{what}, for whose gradients {self._spec.strategy} waits; {remedy}") from error

    def _without_reduction(self) -> contextlib.AbstractContextManager[None]:
        model = self._model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else _nothing

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        dtype = self._autocast_dtype
        return _nothing if dtype is None else torch.autocast(self._world.device.type, dtype=dtype)

    def remarks(self) -> Iterator[str]:
        """Say where the schedule does nothing."""
        told = unscheduled(self._real_optimizer, self._spec.schedule)
        if told is not None:
            yield told

    def set_lr(self, factor: float) -> None:
        """Set every group's learning rate to ``factor`` times its peak, where that changes it."""
        if factor != self._factor:
            set_lr(self._real_optimizer, factor)
            self._factor = factor

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Lend the bare replica, in eval mode and without gradients; the optimizer is told, if it wants to be."""
        switches = [getattr(self._real_optimizer, name, None) for name in ("eval", "train")]
        self._module.eval()
        if callable(switches[0]):
            switches[0]()
            self._publish()
        try:
            with torch.no_grad(), self._autocast():
                yield self._module
        finally:
            self._module.train()
            if callable(switches[1]):
                switches[1]()
                self._publish()

    def _publish(self) -> None:
        """Bring what the optimizer's switch has changed into the model."""
        if self._stepped is not None:
            self._stepped.publish()

    def tensors(self) -> Iterator[tuple[Category, Tensor]]:
        """Yield parameters, gradients, masters, buffers and everything else that the optimizer keeps."""
        claimed = list(self._claimed())
        yield from claimed
        beyond = [self, self._workload, *self.modules()]
        for name, tensor in kept(self._optimizer, (tensor for _, tensor in claimed), beyond):
            yield ("master" if "master" in name else "state"), tensor

    def modules(self) -> list[nn.Module]:
        """Return the model's modules, wrappers included."""
        return list({*self._module.modules(), *self._model.modules()})

    def _claimed(self) -> Iterator[tuple[Category, Tensor]]:
        """Yield what is known to be something else than the optimizer's state."""
        for parameter in self._held:
            yield "parameters", parameter
            if parameter.grad is not None:
                yield "gradients", parameter.grad
        for buffer in self._module.buffers():
            yield "buffers", buffer
        if self._stepped is not None:
            yield from self._stepped.tensors()

    def parts(self) -> Iterator[Part]:
        """Yield what this rank holds of each parameter: all of it, or of a DTensor the shard."""
        names = [name for name, _ in self._module.named_parameters()]
        return (part_of(name, p) for name, p in zip(names, self._held, strict=True))

    def facts(self) -> dict[str, JsonValue]:
        """Return what really ran: model, wrapper, optimizer class, arguments and flags, dtypes, operators."""
        groups = parameter_groups(self._module.named_parameters(), self._workload.traits)
        autocast = self._autocast_dtype
        return {
            "model_class": _name(type(self._module)),
            "wrapper_class": _name(type(self._model)) if self._model is not self._module else None,
            "parameters": sum(p.numel() for p in self._parameters),
            "parameter_groups": [
                {"role": g.role, "tensors": len(g.names), "elements": sum(p.numel() for p in g.parameters)}
                for g in groups
            ],
            "optimizer": self._optimizer_facts(),
            "steps_on": self._stepped.label if self._stepped is not None else "parameters",
            "dtypes": {
                "parameters": _dtypes(self._parameters),
                "stepped": _dtypes(self._targets),
                "gradients": _dtypes(p.grad for p in self._targets if p.grad is not None),
                "autocast": None if autocast is None else _dtype(autocast),
            },
            "loss_scale": None if self._scaler is None else self._scaler.get_scale(),
            "step_operators": self._operators.counts(),
            "ran_as": self._operators.ran_as(),
        }

    def _optimizer_facts(self) -> dict[str, JsonValue]:
        if self._in_backward is not None:
            return self._in_backward.facts()
        return optimizer_facts(self._real_optimizer)

    def verify_claims(self) -> None:
        """Raise UnsupportedError where what ran is not what the optimizer's name says."""
        reason = self._entry.disproved(self._real_optimizer)
        if reason is not None:
            raise UnsupportedError(reason)

    def state_dict(self) -> dict[str, object]:
        """Return this rank's model and optimizer state, as references to the live tensors."""
        return {
            "model": self._module.state_dict(),
            "optimizer": self._real_optimizer.state_dict(),
            "stepped": self._stepped.state_dict() if self._stepped is not None else {},
            "scaler": self._scaler.state_dict() if self._scaler is not None else {},
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` returned on the same rank of as many."""
        self._module.load_state_dict(cast("dict[str, Any]", state["model"]))
        self._real_optimizer.load_state_dict(cast("dict[str, Any]", state["optimizer"]))
        if self._stepped is not None:
            self._stepped.load_state_dict(cast("dict[str, Tensor]", state["stepped"]))
        if self._scaler is not None:
            self._scaler.load_state_dict(cast("dict[str, Any]", state["scaler"]))
            self._scale = None
        self._factor = None  # the groups hold the rate that was saved

    def close(self) -> None:
        """Let go of model and optimizer."""
        self._optimizer = self._model = self._module = cast("Any", None)
        self._stepped, self._in_backward = None, None
        self._held, self._parameters, self._targets = [], [], []


_nothing = contextlib.nullcontext()


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtypes(tensors: Iterable[Tensor]) -> list[JsonValue]:
    return list(dict.fromkeys(_dtype(tensor.dtype) for tensor in tensors))
