"""What theory says a rank holds and sends under DeepSpeed's stages, by its own partition rule. Imports no torch.

Stages 1 and 2 lay the tensors of each parameter group one after the other, pad to a multiple of twice the ranks
and cut (DeepSpeedZeroOptimizer); stage 3 pads and cuts every tensor (partition_parameters). They step on copies of
their share, in fp32 too, which count as master weights. Gradients reach every rank whole (an all-reduce of the
bucket, from which a rank keeps its share) unless it is stage 3, which scatters them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.interfaces import Prediction, Target, WorkloadSize, WorkloadTraits
from harness.parameter_groups import role
from harness.precision import state_bytes_per_element
from harness.registry import OPTIMIZERS, WORKLOADS, static_traits
from harness.strategies.deepspeed_config import REDUCE_BUCKET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from harness.interfaces import Category, Collective, OptimizerTraits, World
    from harness.spec import RunSpec

    Shapes = Mapping[str, tuple[int, ...]]

_SCALARS = 2
"""All-reduces of one number a step: the gradients' norm, and whether any is not finite."""


def predicted(
    shapes: Shapes,
    spec: RunSpec,
    optimizer: OptimizerTraits,
    world: World,
    stage: int,
    options: Mapping[str, JsonValue],
    *,
    offload: bool,
) -> Prediction:
    """Return what a rank holds and sends.

    Args:
        shapes: of the trainable parameters, by name, in the model's order.
        spec: with every default resolved.
        optimizer: for its state.
        world: the rank, and how many there are.
        stage: of ZeRO.
        options: the strategy's, complete.
        offload: state and masters are in host memory.
    """
    rule = _Rule(shapes, spec, optimizer, world, options, offload=offload)
    if stage == 0:
        return rule.replicated()
    return rule.per_tensor() if stage == 3 else rule.flat(partitioned_gradients=stage == 2)


class _Rule:
    def __init__(
        self,
        shapes: Shapes,
        spec: RunSpec,
        optimizer: OptimizerTraits,
        world: World,
        options: Mapping[str, JsonValue],
        *,
        offload: bool,
    ) -> None:
        self._shapes, self._spec, self._world, self._options = shapes, spec, world, options
        self._offload = offload
        self._elements = sum(math.prod(shape) for shape in shapes.values())
        self._width = 2 if spec.precision in {"bf16-pure", "bf16-master", "fp16"} else 4
        self._stepped = 2 if spec.precision == "bf16-pure" else 4
        self._state = state_bytes_per_element(spec, optimizer)
        chosen = options.get("communication_dtype")
        self._sent = self._width if chosen is None else {"fp32": 4, "bf16": 2}[str(chosen)]

    def replicated(self) -> Prediction:
        """Return a replica, with fp32 masters of 16-bit parameters, and one all-reduce of everything."""
        master = 4 if self._spec.precision in {"bf16-master", "fp16"} else 0
        sent = self._elements * self._sent
        held: dict[Category, float] = {
            "parameters": self._elements * self._width,
            "gradients": self._elements * self._width,
            "master": self._elements * master,
            "state": self._elements * self._state,
        }
        if self._elements <= REDUCE_BUCKET:
            held["communication"] = sent
        return Prediction(held, {"all_reduce": sent} if self._world.size > 1 else {})

    def flat(self, *, partitioned_gradients: bool) -> Prediction:
        """Return the share of groups laid out flat; every rank keeps all parameters."""
        groups = _groups(self._shapes, self._spec)
        unit = 2 * self._world.size
        padded = [math.ceil(sum(group) / unit) * unit for group in groups]
        share, whole = sum(padded) // self._world.size, sum(padded)
        micro = self._spec.accumulation
        gradients = float(share * (self._stepped if self._offload else self._width))
        if micro > 1:
            kept = self._touching(groups, padded) if partitioned_gradients else self._elements
            gradients = kept * self._width + (share * self._stepped if self._offload else 0)
        held = self._held(parameters=whole * self._width, gradients=gradients, share=share)
        reductions = micro if partitioned_gradients else 1
        payload: dict[Collective, float] = {
            "all_reduce": self._elements * self._sent * reductions + 4 * _SCALARS,
            "all_gather": whole * self._width,
        }
        return Prediction(held, payload)

    def per_tensor(self) -> Prediction:
        """Return the share of tensors that are cut each, and the gathers that put them together."""
        ranks, micro = self._world.size, self._spec.accumulation
        counts = [math.prod(shape) for shape in self._shapes.values()]
        chunks = [math.ceil(count / ranks) for count in counts]
        share = sum(chunks)
        limit = _number(self._options["stage3_param_persistence_threshold"])
        small = [count for count in counts if count < limit]
        gathered = sum(chunk * ranks for count, chunk in zip(counts, chunks, strict=True) if count >= limit)
        live = min(_number(self._options[f"stage3_max_{word}"]) for word in ("live_parameters", "reuse_distance"))
        # Within these limits what forward gathered stays until backward is through with it.
        held = self._held(
            parameters=(share + sum(small) + gathered) * self._width if gathered <= live else None,
            gradients=float(share * (self._width + (self._stepped if self._offload else 0))),
            share=share,
        )
        gathers = micro * (1 if gathered <= live else 2)
        small_padded = share * ranks - gathered
        scalar = 4 if self._offload else 8
        payload: dict[Collective, float] = {
            "all_gather": (small_padded + gathered * gathers) * self._width,
            "all_reduce": scalar * _SCALARS,
        }
        scattered = share * ranks * self._sent * micro
        if self._options.get("reduce_scatter"):
            payload["reduce_scatter"] = scattered
        else:
            payload["all_reduce"] += scattered
        return Prediction(held, payload)

    def _held(self, *, parameters: float | None, gradients: float, share: int) -> Mapping[Category, float]:
        held: dict[Category, float] = {"master": share * self._stepped, "state": share * self._state}
        if parameters is not None:
            held["parameters"] = parameters
        if self._options.get("grad_accum_dtype") is None:
            held["gradients"] = gradients
        return held

    def _touching(self, groups: Sequence[Sequence[int]], padded: Sequence[int]) -> int:
        """Return the elements of all tensors that lie in this rank's partition, in part at least.

        Over micro-batches stage 2 adds up whole tensors.
        """
        found = 0
        for group, length in zip(groups, padded, strict=True):
            size = length // self._world.size
            low, high = self._world.rank * size, (self._world.rank + 1) * size
            start = 0
            for count in group:
                found += count if start < high and start + count > low else 0
                start += count
        return found


def _groups(shapes: Shapes, spec: RunSpec) -> list[list[int]]:
    """Return the elements of each tensor, by the groups that the optimizer is built with, in their order."""
    traits = _traits(spec.workload)
    decays = _decays(spec)
    roles: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        roles.setdefault(role(name, len(shape), traits), []).append(name)
    merged: dict[bool, list[int]] = {}
    for kind, names in roles.items():
        decayed = decays and kind not in {"vector", "sparse"}
        merged.setdefault(decayed, []).extend(math.prod(shapes[name]) for name in names)
    return list(merged.values())


def _traits(workload: str) -> WorkloadTraits:
    found = static_traits(WORKLOADS.target(workload), WorkloadTraits, (WorkloadSize, Target))
    if found is not None:
        return found
    live: WorkloadTraits = WORKLOADS.get(workload).traits
    return live


def _decays(spec: RunSpec) -> bool:
    """Say whether the run decays weights, so that biases and norms are a group of their own."""
    known = getattr(OPTIMIZERS.get(spec.optimizer), "hyperparameters", None)
    chosen: Mapping[str, object] = known(spec) if known is not None else spec.optimizer_options
    return bool(chosen.get("weight_decay"))


def _number(value: JsonValue) -> float:
    assert isinstance(value, (int, float)), "the plan has checked it against the default"
    return value
