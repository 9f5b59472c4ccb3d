"""How much memory a rank will need at its peak, estimated before anything starts. Imports no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness import precision
from harness.interfaces import Predicts, World
from harness.model_facts import WHOLE
from harness.registry import STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.interfaces import OptimizerTraits, Prediction, Strategy, WorkloadTraits
    from harness.machine import Machine
    from harness.model_facts import ModelFacts
    from harness.spec import RunSpec

PROCESS_BYTES = 350 * 2**20
"""What a rank holds before it builds a model: the interpreter and torch's libraries (measured, CPU build)."""

SIXTEEN_BITS = 0.7
"""Activations in 16 bits beside those in fp32: norms, losses and indices stay as they are. Measured in peaks of
forward and backward: 0.55 (cnn, resnet) to 0.8 (gpt with a large vocabulary)."""

GATHERED = 0.5
"""Share of a sharded model that is gathered at a time where its blocks are declared and nothing is measured."""

PIECES = 64
"""Equal tensors that stand for a model whose shapes are unknown."""

WORTH = 0.95
"""A remedy is named where it leaves at most this share."""


def rank_bytes(
    spec: RunSpec,
    traits: WorkloadTraits,
    optimizer: OptimizerTraits,
    strategy: Strategy,
    facts: ModelFacts | None = None,
) -> int:
    """Return roughly what one rank holds at its peak: in backward, or in the update.

    Parameters, gradients, master weights and state come from the strategy's own partition rule. In backward
    activations are added to them, and what the strategy gathers; gradients take over as activations go. The update
    adds its temporaries: one copy of what is stepped on, which foreach takes and others stay below.

    Args:
        spec: with every default resolved.
        traits: the workload's.
        optimizer: the optimizer's.
        strategy: for its rule.
        facts: what was measured of the model; None: the workload's word counts.
    """
    elements = traits.size(spec.size).parameters if facts is None else facts.parameters
    held = dict(_held(spec, optimizer, strategy, elements))
    partitioned = set(getattr(strategy, "partitioned", ()))
    if getattr(strategy, "offload", False) and spec.device == "accelerator":
        held["state"] = held["master"] = 0.0
    gradients, standing = held.pop("gradients", 0.0), sum(held.values())
    width = precision.BYTES[precision.model_dtype(spec.precision)]
    stepped = precision.BYTES[precision.stepped_dtype(spec.precision)]
    gathered = _gathered(elements, traits, facts) * width if "parameters" in partitioned else 0.0
    temporaries = elements * stepped / ((spec.world_size or 1) if "state" in partitioned else 1)
    if traits.optimizer_only:
        temporaries += 2 * elements * width
    backward = _activations(spec, traits, facts, elements) + 2 * gathered
    if spec.accumulation > 1:
        backward += gradients
    return int(PROCESS_BYTES + standing + max(backward, gradients + temporaries))


def _held(
    spec: RunSpec, optimizer: OptimizerTraits, strategy: Strategy, elements: int
) -> Iterator[tuple[str, float]]:
    """Yield category and bytes, by the strategy's prediction or, of one that makes none, by what it partitions."""
    ranks = spec.world_size or 1
    width = precision.BYTES[precision.model_dtype(spec.precision)]
    rule = {
        "parameters": elements * width,
        "gradients": elements * width,
        "master": elements * 4 if spec.precision == "bf16-master" else 0,
        "state": elements * precision.state_bytes_per_element(spec, optimizer),
    }
    partitioned = getattr(strategy, "partitioned", ())
    yield from ((name, held / (ranks if name in partitioned else 1)) for name, held in rule.items())
    if isinstance(strategy, Predicts) and elements:
        try:
            predicted = _predicted(spec, optimizer, strategy, elements)
        except Exception:
            if strategy.name in STRATEGIES.own():
                raise
            return  # a plug-in's rule that fails is no rule: what is partitioned counts
        yield from predicted.held_bytes.items()


def _predicted(spec: RunSpec, optimizer: OptimizerTraits, strategy: Predicts, elements: int) -> Prediction:
    piece, more = divmod(elements, PIECES)
    shapes = {f"part{n}.weight": (piece + (n < more),) for n in range(PIECES) if piece + (n < more)}
    first = World(0, spec.world_size or 1, 0, None, None)  # type: ignore[arg-type]  # rules ask for no device
    return strategy.predict(shapes, spec, optimizer, first, ())


def _gathered(elements: int, traits: WorkloadTraits, facts: ModelFacts | None) -> float:
    """Return the elements of a sharded model that are whole at a time: the root's, and two units'."""
    if facts is not None:
        return min(elements, facts.root_elements + 2 * facts.largest_elements)
    return elements * (GATHERED if traits.blocks not in {(), WHOLE} else 1.0)


def _activations(spec: RunSpec, traits: WorkloadTraits, facts: ModelFacts | None, elements: int) -> float:
    """Return what forward leaves for backward, and its scratch."""
    if facts is not None and facts.peak_bytes is not None and facts.activation_bytes is not None:
        width = precision.BYTES[precision.model_dtype(spec.precision)]
        return max(facts.activation_bytes, facts.peak_bytes - elements * width)
    size = traits.size(spec.size)
    sample = size.activation_bytes_per_sample
    if spec.workload_options.get("activation_checkpointing") and size.recomputed_bytes_per_sample is not None:
        sample = size.recomputed_bytes_per_sample
    samples = math.ceil((spec.global_batch or 1) / spec.accumulation / (spec.world_size or 1))
    narrow = spec.precision.startswith("bf16") or spec.precision == "fp16"
    casts = 2 * elements if spec.precision in {"bf16", "fp16"} and sample else 0  # autocast's copies of weights
    return samples * sample * (SIXTEEN_BITS if narrow else 1.0) + casts


def too_large(
    estimate: int | None,
    spec: RunSpec,
    traits: WorkloadTraits,
    optimizer: OptimizerTraits,
    strategy: Strategy,
    facts: ModelFacts | None,
    machine: Machine,
    available_bytes: int,
) -> str | None:
    """Say that a cell does not fit, and what would make it smaller; None: it fits, or nothing is known.

    Args:
        estimate: of the spec, as `rank_bytes` makes it; None: none was made.
        spec: with every default resolved.
        traits: the workload's.
        optimizer: the optimizer's.
        strategy: of the spec.
        facts: what was measured of the model.
        machine: whose accelerators count.
        available_bytes: host memory free now.
    """

    def refused(changes: Mapping[str, object]) -> bool:
        changed = spec.model_copy(update=dict(changes))
        return strategy.unsupported(changed, traits, optimizer, machine) is not None

    def needed(**changes: object) -> float:
        changed = spec.model_copy(update=changes)
        rank = rank_bytes(changed, traits, optimizer, strategy, _scaled(facts, spec, changed))
        return rank if spec.device == "accelerator" else rank * (changed.world_size or 1)

    if estimate is None:
        return None
    ranks = spec.world_size or 1
    whole = estimate if spec.device == "accelerator" else estimate * ranks
    if spec.device == "accelerator":
        capacities = [a.memory_bytes for a in machine.accelerators if a.memory_bytes is not None]
        available, place = min(capacities, default=None), "on each accelerator"
        asked = f"needs about {whole / 2**30:.1f} GiB a rank"
    else:
        available, place = available_bytes, "of host memory"
        asked = f"needs about {whole / 2**30:.1f} GiB ({ranks} ranks of {whole / ranks / 2**30:.1f} GiB)"
    if available is None or whole <= available:
        return None
    levers: dict[str, dict[str, object]] = {
        "a smaller global_batch": {"global_batch": max(1, (spec.global_batch or 1) // 2)},
        "more accumulation": {"accumulation": 2 * spec.accumulation},
        "more ranks": {"world_size": 2 * ranks},
        "fewer ranks": {"world_size": max(1, ranks // 2)},
        "activation_checkpointing=true": {
            "workload_options": {**spec.workload_options, "activation_checkpointing": True}
        },
    }
    if "activation_checkpointing" not in traits.options:
        del levers["activation_checkpointing=true"]
    if strategy.one_rank:
        del levers["more ranks"], levers["fewer ranks"]
    possible = {words: changes for words, changes in levers.items() if not refused(changes)}
    useful = [words for words, changes in possible.items() if needed(**changes) <= WORTH * whole]
    if spec.device == "accelerator" and "parameters" not in getattr(strategy, "partitioned", ()):
        useful.append("a strategy that shards parameters")
    smaller = ["a smaller size"] if len(traits.sizes) > 1 else []
    listed = [*smaller, *useful] or ["a machine with more memory"]
    words = f"{', '.join(listed[:-1])} or {listed[-1]}" if len(listed) > 1 else listed[0]
    return f"{asked}, {available / 2**30:.1f} GiB {place} available; use {words}"


def _scaled(facts: ModelFacts | None, spec: RunSpec, changed: RunSpec) -> ModelFacts | None:
    """Return what the model would tell with another micro-batch: activations in proportion."""
    if facts is None or facts.activation_bytes is None or facts.peak_bytes is None:
        return facts
    if changed.workload_options != spec.workload_options:
        return None  # measured for other options: the workload's word counts

    def samples(of: RunSpec) -> float:
        return (of.global_batch or 1) / of.accumulation / (of.world_size or 1)

    factor = samples(changed) / samples(spec)
    return facts.model_copy(
        update={
            "activation_bytes": int(facts.activation_bytes * factor),
            "peak_bytes": int(facts.peak_bytes * factor),
        }
    )
