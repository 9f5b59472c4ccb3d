"""FSDP2's engine: shards of a model that no rank needs to hold whole, and the step over them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from harness import precision
from harness.errors import OptbenchError, UnsupportedError
from harness.model_facts import units_of
from harness.strategies import overflow
from harness.strategies.initialising import build, cast_inputs, initialise, persistent_buffers
from harness.strategies.stepped import Idle, LocalShards
from harness.strategies.torch_engine import TorchEngine
from harness.targets import short

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

    from harness.interfaces import Optimizer, ParamGroup, Workload, World
    from harness.spec import RunSpec


class ShardedEngine(TorchEngine):
    """A model under ``fully_shard``; the optimizer steps on its DTensors, or on the local shards as plain tensors.

    Args:
        workload: what is trained.
        optimizer: how it is updated.
        spec: with every default resolved.
        world: this rank.
        options: fsdp2's or hsdp's, with defaults.
    """

    def __init__(
        self,
        workload: Workload,
        optimizer: Optimizer,
        spec: RunSpec,
        world: World,
        options: Mapping[str, JsonValue],
    ) -> None:
        self._options = options
        in_backward = bool(options["optimizer_in_backward"])
        super().__init__(workload, optimizer, spec, world, wrap=None, in_backward=in_backward)

    def _build(self) -> nn.Module:
        mesh = _mesh(self._world, self._options)
        self._mesh = mesh
        self._norm_group = mesh.get_group(mesh.ndim - 1) if mesh.size(mesh.ndim - 1) > 1 else None
        workload, spec, device = self._workload, self._spec, self._world.device
        with torch.device("meta"):
            skeleton = workload.build()
        self._from_shards = _can_start_empty(skeleton)
        model = skeleton if self._from_shards else build(workload, device)
        if not self._from_shards:
            initialise(model, workload, spec.seed)
        if precision.stepped_dtype(spec.precision) == "bfloat16":
            model.to(torch.bfloat16)
        self._units = units_of(model, workload.traits.blocks)
        _shard(model, self._units.names, mesh, spec, self._options)
        if self._from_shards:
            model.to_empty(device=device)
            _initialise_shards(model, workload, spec.seed, device)
        if precision.model_dtype(spec.precision) == "bfloat16":
            _cast_buffers(model)
        if spec.precision == "bf16-pure":
            cast_inputs(model, spec.precision)
        if self._entry.traits.dtensor == "no" and not self._options["optimizer_in_backward"]:
            self._stepped = LocalShards(model.named_parameters())
        return model

    def _agree_on_overflow(self, scaler: torch.amp.GradScaler) -> None:
        if self._stepped is not None or isinstance(self._optimizer, Idle):
            overflow.agree(scaler, self._optimizer, self._world.device, self._norm_group)

    def _build_optimizer(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        if not groups:  # every tensor of the model is shorter than the ranks are many
            return Idle()
        with self._first_try("when constructed"):
            return super()._build_optimizer(groups)

    def _step(self, loss: Tensor | None) -> None:
        if self._steps > 1:
            super()._step(loss)
            return
        with self._first_try("in its first step"):
            super()._step(loss)

    @contextlib.contextmanager
    def _first_try(self, when: str) -> Iterator[None]:
        """Say of an optimizer that tells nothing of DTensors that it cannot have them, where it raises."""
        try:
            yield
        except Exception as error:
            if self._entry.traits.dtensor != "undeclared" or isinstance(error, (OptbenchError, MemoryError)):
                raise
            told = (str(error).strip().splitlines() or ["no message"])[0]
            raise UnsupportedError(
                f"{self._entry.name} raised {type(error).__name__} {when} on DTensors, the shards of "
                f"{self._spec.strategy}: {told}; use --strategy zero-redundancy or ddp"
            ) from error

    def verify_claims(self) -> None:
        """Check the optimizer, unless this rank has nothing to update."""
        if not isinstance(self._optimizer, Idle):
            super().verify_claims()

    @contextlib.contextmanager
    def _unreduced(self) -> Iterator[None]:
        model = cast("FSDPModule", self._model)
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def _without_reduction(self) -> contextlib.AbstractContextManager[None]:
        return self._unreduced()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Lend the sharded model, which gathers its parameters as it goes; then leave all of it in shards."""
        with super().evaluating() as model:
            try:
                yield model
            finally:
                for each in model.modules():
                    if isinstance(each, FSDPModule):
                        each.reshard()

    def remarks(self) -> Iterator[str]:
        """Say, beside what any engine says, of units that they are not those that the workload names."""
        yield from super().remarks()
        told = self._units.remark(short(self._spec.workload))
        if told is not None:
            yield f"{self._spec.strategy}: {told}"

    def facts(self) -> dict[str, JsonValue]:
        """Return what ran, with the mesh, the blocks, and whether the model was built in shards."""
        names = self._mesh.mesh_dim_names or ()
        sharding: dict[str, JsonValue] = {
            "mesh": {name: self._mesh.size(dim) for dim, name in enumerate(names)},
            "blocks": list(self._units.names),
            "blocks_are": self._units.how,
            "options": cast("JsonValue", dict(self._options)),
            "policy": _policy_facts(_policy(self._spec, self._options)),
            "built_in_shards": self._from_shards,
        }
        return {**super().facts(), "sharding": sharding}


def _mesh(world: World, options: Mapping[str, JsonValue]) -> DeviceMesh:
    replicas = options.get("replicas")
    if replicas is None:
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    copies = cast("int", replicas)
    return init_device_mesh(
        world.device.type, (copies, world.size // copies), mesh_dim_names=("replicate", "shard")
    )


def _shard(
    model: nn.Module,
    units: Sequence[str],
    mesh: DeviceMesh,
    spec: RunSpec,
    options: Mapping[str, JsonValue],
) -> None:
    """Shard every unit, innermost first, then the root."""
    arguments: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": options["reshard_after_forward"],
        "mp_policy": _policy(spec, options),
    }
    for name in reversed(units):
        fully_shard(model.get_submodule(name), **arguments)
    fully_shard(model, **arguments)


def _policy(spec: RunSpec, options: Mapping[str, JsonValue]) -> MixedPrecisionPolicy:
    """Return the options' policy; bf16-master computes in bf16 over shards that are the fp32 master weights."""
    chosen = {name: options[name] for name in ("param_dtype", "reduce_dtype", "output_dtype")}
    if spec.precision == "bf16-master":
        chosen["param_dtype"] = chosen["param_dtype"] or "bfloat16"
        chosen["reduce_dtype"] = chosen["reduce_dtype"] or "float32"
    dtypes = {name: getattr(torch, value) for name, value in chosen.items() if isinstance(value, str)}
    return MixedPrecisionPolicy(**dtypes, cast_forward_inputs=bool(options["cast_forward_inputs"]))


def _policy_facts(policy: MixedPrecisionPolicy) -> JsonValue:
    return {name: None if value is None else str(value) for name, value in vars(policy).items()}


def _can_start_empty(skeleton: nn.Module) -> bool:
    """Say whether the workload's `initialise` fills all there is, one tensor after the other.

    A buffer that is not persistent gets its value in ``build``, which the meta device drops; a tensor that two
    modules share would become two.
    """
    persistent = {name for name, _ in persistent_buffers(skeleton)}
    if any(name not in persistent for name, _ in skeleton.named_buffers()):
        return False
    return len(list(skeleton.parameters())) == len(list(skeleton.named_parameters(remove_duplicate=False)))


def _initialise_shards(model: nn.Module, workload: Workload, seed: int, device: torch.device) -> None:
    """Fill one whole tensor at a time, by its name, and keep this rank's chunk: nothing is communicated."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shard = cast("DTensor", parameter.detach())
            whole = torch.empty(shard.shape, dtype=shard.dtype, device=device)
            workload.initialise(name, whole, seed)
            kept = distribute_tensor(whole, shard.device_mesh, shard.placements, src_data_rank=None)
            shard.to_local().copy_(kept.to_local())
        for name, buffer in persistent_buffers(model):
            workload.initialise(name, buffer, seed)


def _cast_buffers(model: nn.Module) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(torch.bfloat16))
