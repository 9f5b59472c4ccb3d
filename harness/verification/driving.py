"""Drives a real engine over the linear workload and keeps what its parameters were."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any, cast

from harness import contract, loop
from harness.errors import UnsupportedError
from harness.precision import model_dtype, stepped_dtype
from harness.registry import strategy
from harness.schedule import factor
from harness.seeding import seed_generators
from harness.verification.known import Stream, Trial
from harness.verification.linear import TARGET, Linear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from harness.interfaces import Batch, Engine, Optimizer, StepResult, World
    from harness.spec import RunSpec
    from harness.verification.known import Values

STEPS = 20
"""Of a trial: twice the longest period of faults that is looked for."""
AFTERWARDS = (1.0, 1.0, 0.5, 0.5, 0.5)
"""Factors on the rate after loading; the last step only shows what the one before has done."""
SAMPLES = 16
"""Least global batch: sums of 16 coefficients are exact in bfloat16."""


def settled(spec: RunSpec, world: World, **changes: Any) -> RunSpec:
    """Return the spec of a trial: the linear workload, few steps, everything resolved."""
    chosen: dict[str, Any] = {
        "workload": TARGET,
        "size": "small",
        "data": None,
        "workload_options": {},
        "world_size": world.size,
        "threads": spec.threads or 1,
        "steps": STEPS,
        "warmup_steps": 2,
        "accumulation": 1,
        "clip_norm": None,
        "schedule": "warmup-cosine",
        **changes,
    }
    share = world.size * chosen["accumulation"]
    chosen["global_batch"] = -(-SAMPLES // share) * share
    return spec.model_copy(update=chosen)


def stream_of(spec: RunSpec) -> Stream:
    """Return the gradients of a settled spec."""
    without = tuple(cast("list[int]", spec.workload_options.get("without", [])))
    return Stream(
        spec.seed,
        spec.world_size or 1,
        spec.accumulation,
        spec.global_batch or 1,
        spec.clip_norm,
        without,
        spec.size or "small",
    )


class Driven:
    """An engine under way.

    Args:
        optimizer: registry entry.
        spec: settled.
        world: this rank.
    """

    def __init__(self, optimizer: Optimizer, spec: RunSpec, world: World) -> None:
        self._spec, self._world = spec, world
        self._workload = Linear(spec.size, **cast("dict[str, Any]", spec.workload_options))
        seed_generators(spec.seed)
        self.engine: Engine = strategy(spec.strategy).start(self._workload, optimizer, spec, world)
        self._has_masters = stepped_dtype(spec.precision) != model_dtype(spec.precision)

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's micro-batches, as a run checks them."""
        shard = stream_of(self._spec).shard(self._world.rank)
        return contract.checked(self._workload.batches(shard), shard)

    def through_the_loop(self, trial: Trial, batches: Iterator[Batch]) -> None:
        """Take every step of the spec in the measured loop."""
        stream = loop.steps(self.engine, batches, self._spec, self._world.device, [])
        for step in range(self._spec.steps):
            trial.factors.append(factor(self._spec.schedule, step, self._spec.steps))
            self._noted(trial, lambda: next(stream))

    def by_hand(self, trial: Trial, at: float, micro_batches: Sequence[Batch]) -> None:
        """Take one further step with a factor on the peak rate."""
        self.engine.set_lr(at)
        trial.factors.append(at)
        self._noted(trial, lambda: self.engine.train_step(micro_batches, lambda _phase: None))

    def _noted(self, trial: Trial, step: Callable[[], StepResult]) -> None:
        seen = self._workload.seen
        seen.clear()
        before = masters(self.engine) if self._has_masters else None
        result = step()
        trial.passes.append(list(seen))
        trial.values.append(before if before is not None else seen[0])
        trial.norms.append(None if result.grad_norm is None else float(result.grad_norm))

    def close(self) -> None:
        """Let go of the engine."""
        self.engine.close()


def finished(trial: Trial) -> Trial:
    """Let the last step go, of which only the values before it are known."""
    trial.factors.pop()
    trial.norms.pop()
    return trial


def simple(name: str, optimizer: Optimizer, spec: RunSpec, world: World) -> Trial:
    """Drive a fresh engine through the loop."""
    driven, trial = Driven(optimizer, spec, world), Trial(name, stream_of(spec), [])
    try:
        driven.through_the_loop(trial, driven.batches())
    finally:
        driven.close()
    return finished(trial)


def resumed(name: str, optimizer: Optimizer, spec: RunSpec, world: World) -> Trial:
    """Drive an engine through the loop, load what it saved into a fresh one, and go on there.

    The rate at which it was saved is not the next one, nor is that the fresh engine's: an engine that sets only
    what it believes changed would keep the old one.
    """
    first, trial = Driven(optimizer, spec, world), Trial(name, stream_of(spec), [])
    batches = first.batches()
    try:
        first.through_the_loop(trial, batches)
        state = copy.deepcopy(first.engine.state_dict())
    finally:
        first.close()
    trial.resumed_at = spec.steps
    second = Driven(optimizer, spec.model_copy(update={"seed": spec.seed}), world)
    try:
        second.engine.load_state_dict(state)
        for at in AFTERWARDS:
            micro = [loop.on_device(batch, world.device) for batch in itertools.islice(batches, spec.accumulation)]
            second.by_hand(trial, at, micro)
    finally:
        second.close()
    return finished(trial)


def masters(engine: Engine) -> Values:
    """Return the fp32 values that the optimizer steps on, whole, float64, by the model's names.

    Every rank calls it between two steps.
    """
    kept = engine.state_dict().get("stepped")
    if isinstance(kept, dict) and kept:
        return {name: each.detach().double().clone() for name, each in kept.items()}
    with engine.evaluating() as model:
        return {name: _whole(each) for name, each in model.named_parameters()}


def _whole(parameter: Tensor) -> Tensor:
    full = getattr(parameter, "full_tensor", None)
    if full is not None:
        whole: Tensor = full()
        return whole.detach().double().cpu().clone()
    from deepspeed.utils import safe_get_full_fp32_param

    found: Tensor | None = safe_get_full_fp32_param(parameter)
    if found is None:
        raise UnsupportedError(
            "under this stage DeepSpeed does not tell whose the fp32 master weights are, so that updates cannot "
            "be seen in full; prove it in fp32, or under zero1"
        )
    shape = getattr(parameter, "ds_shape", parameter.shape)  # stage 3 has taken the parameter itself apart
    return found.detach().double().reshape(shape).cpu().clone()
