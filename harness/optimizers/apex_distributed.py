"""NVIDIA Apex's DistributedFusedAdam: Adam and AdamW with the gradients' reduction and the state's shards inside.

It goes with the strategy ``apex-distributed`` only, whose options are arguments of its constructor. Kernels: amp_C
of Apex's usual build, and ``distributed_adam_cuda``, which has to be asked for.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness import precision
from harness.optimizers import apex
from harness.optimizers.algorithms import ALGORITHMS
from harness.optimizers.construct import construct, torch_groups
from harness.optimizers.implementation import Implementation, device_type
from harness.registry import load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from harness.interfaces import ParamGroup
    from harness.machine import Machine
    from harness.spec import RunSpec

BUILD = (
    "git clone https://github.com/NVIDIA/apex && cd apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "
    "APEX_DISTRIBUTED_ADAM=1 APEX_DEPRECATED_FUSED_ADAM=1 pip install -v --no-build-isolation ."
)
"""How Apex is installed with this class's kernels."""

STRATEGY_ARGUMENTS: Mapping[str, JsonValue] = MappingProxyType(
    {
        "overlap_grad_sync": True,
        "bucket_cap_mb": 100.0,
        "pipeline_size": 2,
        "contiguous_param_buffer": False,
        "contiguous_grad_buffer": False,
        "store_params": True,
    }
)
"""Arguments of the constructor that say how to spread, with its defaults: the strategy's options."""


class ApexDistributed(Implementation):
    """DistributedFusedAdam in one of its two modes.

    Args:
        algorithm: adam or adamw.
    """

    def __init__(self, algorithm: str) -> None:
        super().__init__(
            ALGORITHMS[algorithm],
            "apex-distributed",
            "apex.contrib.optimizers.distributed_fused_adam:DistributedFusedAdam",
            fixed={"amsgrad": False, "maximize": False},
            traits={"owns_reduction": True, "dtensor": "no"},
        )

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return which part of Apex is missing, and the command that brings it."""
        found = machine.families.get("apex-distributed", {})
        if found.get("state") == "no-distributed-kernels":
            return f"Apex is installed without DistributedFusedAdam's kernels; build it again with them: {BUILD}"
        if found.get("state") != "ok":
            reason = apex.absence(found)
            return reason.replace(apex.BUILD, BUILD)
        device = device_type(spec, machine)
        if device != "cuda":
            return f"DistributedFusedAdam is for CUDA devices, and this run is on {device}; leave --device cpu out"
        return None

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Construct it over the model's parameters, every flag explicit.

        The state and the copy of the parameters' shard are float32, but for ``bf16-pure``; what is sent has the
        model's dtype.
        """
        import torch

        chosen = self.hyperparameters(spec)
        dtype = getattr(torch, precision.stepped_dtype(spec.precision))
        sent = getattr(torch, precision.model_dtype(spec.precision))
        options = {name: spec.strategy_options.get(name, value) for name, value in STRATEGY_ARGUMENTS.items()}
        cls: type[torch.optim.Optimizer] = load(self.target)
        return construct(
            cls,
            torch_groups(groups, chosen["lr"], chosen["weight_decay"]),
            **{name: chosen[name] for name in ("lr", "betas", "eps", "weight_decay", "amsgrad")},
            **_FLAGS,
            **options,
            adam_w_mode=bool(chosen.get("decoupled_weight_decay", True)),
            dtype=dtype,
            grad_sync_dtype=sent,
            param_sync_dtype=sent,
            device=groups[0].parameters[0].device,
        )


_FLAGS: Mapping[str, Any] = MappingProxyType(
    {
        "bias_correction": True,
        "average_grad_sync": True,
        # Parameters must be whole once a step is over: evaluation and the next forward pass read them.
        "overlap_param_sync": False,
        "store_param_remainders": False,
        "with_scaled_states": False,
        "nccl_ub": False,
        "capturable": False,
    }
)

OPTIMIZERS: Mapping[str, ApexDistributed] = MappingProxyType(
    {each.name: each for each in (ApexDistributed("adamw"), ApexDistributed("adam"))}
)
"""Both modes, by name."""


def probe() -> dict[str, JsonValue]:
    """Return ``state`` as Apex's own probe does, or no-distributed-kernels, and, where it helps, ``detail``."""
    found = apex.probe()
    if found["state"] not in {"ok", "no-cuda"}:
        return found
    try:
        importlib.import_module("distributed_adam_cuda")
    except ImportError as error:
        return {"state": "no-distributed-kernels", "detail": str(error)}
    return found
