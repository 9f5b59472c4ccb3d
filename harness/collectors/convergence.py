"""Training loss of every step, evaluations, and when the target was met."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from harness.interfaces import Reading
from harness.record import MetricInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from harness.interfaces import Observed, StepResult, Target

LOSS = MetricInfo(
    name="train_loss",
    unit="1",
    better="lower",
    across_ranks="mean",
    over_steps="last",
    skip_warmup=False,
    keep_series=True,
)
GRAD_NORM = LOSS.model_copy(update={"name": "grad_norm", "better": "neither", "across_ranks": "max"})
STEPS_TO_TARGET = MetricInfo(name="steps_to_target", unit="1", better="lower", scope="job")
TIME_TO_TARGET = MetricInfo(name="time_to_target_s", unit="s", better="lower", scope="job")


class Convergence:
    """Losses stay on the device until the turn ends."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._pending: list[Reading] = []
        self._better: Mapping[str, str] = {}
        self._target: Target | None = None
        self._met: tuple[int, float] | None = None

    def start(self, observed: Observed) -> None:
        """Learn the target and the directions of the evaluation's metrics."""
        self._target = observed.workload.size(observed.spec.size).target
        self._better = observed.workload.metrics

    def observe(self, step: int, result: StepResult) -> None:
        """Keep the loss where it is."""
        if result.loss is not None:
            self._losses.append(result.loss)
        if result.grad_norm is not None:
            self._norms.append(result.grad_norm)

    def turn(self) -> Iterable[Reading]:
        """Copy the turn's losses to the host, and report the evaluations since the last turn."""
        losses, self._losses = self._losses, []
        norms, self._norms = self._norms, []
        pending, self._pending = self._pending, []
        for info, tensors in ((LOSS, losses), (GRAD_NORM, norms)):
            if tensors:
                yield Reading(info, series=_to_host(tensors))
        yield from pending

    def evaluated(self, step: int, train_time_s: float, values: Mapping[str, float]) -> None:
        """Note the values, and the first time that the target is met."""
        for name, value in values.items():
            info = LOSS.model_copy(update={"name": name, "better": self._better.get(name, "neither")})
            self._pending.append(Reading(info, series=[value], steps=[step]))
        target = self._target
        if target is not None and self._met is None and target.metric in values and _meets(target, values):
            self._met = (step, train_time_s)

    def stop(self) -> Iterable[Reading]:
        """Report steps and time to the target: None when it was not met. Nothing without a target."""
        if self._target is not None:
            steps, seconds = self._met or (None, None)
            yield Reading(STEPS_TO_TARGET, value=steps)
            yield Reading(TIME_TO_TARGET, value=seconds)


def _meets(target: Target, values: Mapping[str, float]) -> bool:
    value = values[target.metric]
    if math.isnan(value):
        return False
    return value <= target.value if target.better == "lower" else value >= target.value


def _to_host(tensors: list[Tensor]) -> list[float]:
    found: list[float] = torch.stack([t.reshape(()) for t in tensors]).double().cpu().tolist()
    return found
