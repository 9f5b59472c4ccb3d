"""FSDP2: parameters, gradients and state in chunks along dimension 0, on all ranks or within replicas (HSDP)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.optimizers.implementation import has_sparse_gradients
from harness.precision import BYTES
from harness.strategies import refusals
from harness.strategies.predictions import fully_sharded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from harness.interfaces import (
        Engine,
        Optimizer,
        OptimizerTraits,
        Prediction,
        Workload,
        WorkloadTraits,
        World,
    )
    from harness.machine import Machine
    from harness.model_facts import ModelFacts
    from harness.spec import RunSpec


class FSDP2:
    """``fully_shard`` on each block that the workload names, and at the root."""

    name = "fsdp2"
    options: dict[str, JsonValue] = {  # noqa: RUF012  # the protocol's attribute; never changed
        "reshard_after_forward": None,
        "param_dtype": None,
        "reduce_dtype": None,
        "output_dtype": None,
        "cast_forward_inputs": True,
        "optimizer_in_backward": False,
    }
    one_rank = False
    partitioned = ("parameters", "gradients", "state")

    def unsupported(
        self, spec: RunSpec, workload: WorkloadTraits, optimizer: OptimizerTraits, machine: Machine
    ) -> str | None:
        """Refuse what has no backward pass, what DTensors cannot hold, and what cannot step on shards."""
        options = {**self.options, **spec.strategy_options}
        return (
            refusals.no_backward(spec, workload)
            or refusals.own_reduction(spec, optimizer)
            or _sparse(spec, workload)
            or refusals.own_initial_values(spec, optimizer)
            or _unsharded_update(spec, optimizer)
            or _dtypes(spec, options)
            or self.shard_ranks(spec, options)
            or refusals.in_backward(spec, workload, optimizer, options, sharded=True)
        )

    def shard_ranks(self, spec: RunSpec, options: Mapping[str, JsonValue]) -> str | None:
        """Refuse a reshard_after_forward that is no proper divisor of the ranks that share a model."""
        chosen, ranks = options["reshard_after_forward"], spec.world_size or 1
        return _reshard(chosen, ranks)

    def units(self, workload: str, traits: WorkloadTraits, facts: ModelFacts | None) -> str | None:
        """Say of the submodules that are sharded one by one that they are not those that the workload names."""
        if facts is not None:
            return facts.units.remark(workload)
        if traits.blocks:
            return None
        return f"{workload} names no blocks: layers that repeat in its model are sharded one by one"

    def start(self, workload: Workload, optimizer: Optimizer, spec: RunSpec, world: World) -> Engine:
        """Build the shards; no rank ever holds the whole model where the workload allows."""
        from harness.strategies.sharding import ShardedEngine

        return ShardedEngine(workload, optimizer, spec, world, {**self.options, **spec.strategy_options})

    def predict(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        spec: RunSpec,
        optimizer: OptimizerTraits,
        world: World,
        blocks: tuple[str, ...],
    ) -> Prediction:
        """Return the rank's chunks, and the gathers and scatters of padded chunks."""
        return fully_sharded(shapes, spec, optimizer, world, blocks, {**self.options, **spec.strategy_options})


class HSDP(FSDP2):
    """FSDP2 within groups of ranks, replicas between them: a 2-D mesh."""

    name = "hsdp"
    options: dict[str, JsonValue] = {**FSDP2.options, "replicas": 2}  # noqa: RUF012  # as above

    def shard_ranks(self, spec: RunSpec, options: Mapping[str, JsonValue]) -> str | None:
        """Refuse a number of replicas that does not divide the ranks."""
        replicas, world = options["replicas"], spec.world_size or 1
        if not isinstance(replicas, int) or replicas < 1 or world % replicas:
            fitting = ", ".join(str(n) for n in range(1, world + 1) if world % n == 0)
            return (
                f"hsdp cannot divide {world} ranks into {replicas} replicas; "
                f"set strategy.replicas to one of {fitting}"
            )
        return _reshard(options["reshard_after_forward"], world // replicas)


def _reshard(chosen: JsonValue, ranks: int) -> str | None:
    if chosen is None or isinstance(chosen, bool):
        return None
    if isinstance(chosen, int) and 1 < chosen < ranks and ranks % chosen == 0:
        return None
    fitting = [str(n) for n in range(2, ranks) if ranks % n == 0]
    return (
        f"reshard_after_forward = {chosen!r} is no number of ranks that {ranks} can be divided into; "
        f"use true, false{''.join(f', {n}' for n in fitting)} or leave it out"
    )


def _sparse(spec: RunSpec, workload: WorkloadTraits) -> str | None:
    if not has_sparse_gradients(spec, workload):
        return None
    return (
        f"FSDP2 reduces dense gradients only, and {spec.workload} has sparse ones; "
        "set workload.sparse=false, or use --strategy ddp"
    )


def _unsharded_update(spec: RunSpec, optimizer: OptimizerTraits) -> str | None:
    if optimizer.closure:
        return (
            f"{spec.optimizer} evaluates the loss within its step, between reads of the whole model that "
            f"{spec.strategy} has cut up; use --strategy ddp"
        )
    if optimizer.dtensor == "no" and optimizer.granularity != "element":
        return (
            f"{spec.optimizer} cannot step on DTensors, and its update depends on whole tensors "
            f"(granularity {optimizer.granularity}), of which {spec.strategy} gives a rank a chunk; "
            "use --strategy zero-redundancy or ddp"
        )
    return None


def _dtypes(spec: RunSpec, options: Mapping[str, JsonValue]) -> str | None:
    for name in ("param_dtype", "reduce_dtype", "output_dtype"):
        chosen = options[name]
        if chosen is not None and chosen not in BYTES:
            return f"{spec.strategy} knows no {name} {chosen!r}; use one of {', '.join(BYTES)}"
    if spec.precision in {"bf16", "fp16"} and options["param_dtype"] is not None:
        return (
            f"--precision {spec.precision} is autocast, which chooses a dtype for each operator, and param_dtype "
            "would choose before it; use --precision bf16-master, or leave param_dtype out"
        )
    return None
