"""Transformer Engine's fused optimizers, CUDA only, with the hyperparameters of the algorithms' native classes."""

from __future__ import annotations

import inspect
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.optimizers.implementation import device_type
from harness.optimizers.third_party import ThirdParty, absent, import_error
from harness.registry import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from harness.machine import Machine
    from harness.spec import RunSpec

INSTALL = "run pip install --no-build-isolation 'transformer_engine[pytorch]' (it needs CUDA and a matching torch)"

_MODULE = "transformer_engine.pytorch.optimizers"
_SGD = ("sgd", "sgd-momentum", "sgd-nesterov")


class TransformerEngine(ThirdParty):
    """FusedAdam or FusedSGD.

    Args:
        algorithm: name of what it computes.
    """

    package = "transformer-engine"
    family = "transformer-engine"

    def __init__(self, algorithm: str) -> None:
        adam = algorithm not in _SGD
        super().__init__(
            algorithm,
            "transformer-engine",
            f"{_MODULE}:{'FusedAdam' if adam else 'FusedSGD'}",
            fixed={"amsgrad": False, "maximize": False} if adam else {"maximize": False},
            variants={"counts": "group"} if adam else {},
            traits={
                # FusedSGD's lists know fp16 and fp32 only: it would leave bf16 parameters as they are.
                "parameter_dtypes": ("float32", "bfloat16") if adam else ("float32",),
                "state_follows_parameters": not adam,
                "dtensor": "undeclared" if adam else "no",
            },
        )

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return what is missing: a CUDA device, or the package."""
        device = device_type(spec, machine)
        if device != "cuda":
            use = f"use {self.algorithm.name}/fused"
            return f"Transformer Engine's optimizers are for CUDA devices, and this run is on {device}; {use}"
        return absent(self.package, self.family, machine, INSTALL)

    def arguments(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """Return the constructor's keywords; flags that this version does not know yet are left out."""
        chosen = {name: value for name, value in chosen.items() if name != "maximize"}
        if self.algorithm.name in _SGD:
            return {**chosen, "wd_after_momentum": False, "materialize_master_grads": True}
        decoupled = bool(chosen.pop("decoupled_weight_decay", True))
        known = inspect.signature(load(self.target)).parameters
        flags = {
            "bias_correction": True,
            "adam_w_mode": decoupled,
            "capturable": False,
            "master_weights": False,
            "use_decoupled_grad": False,
            "store_param_remainders": False,
        }
        return {**chosen, **{name: value for name, value in flags.items() if name in known}}


OPTIMIZERS: Mapping[str, TransformerEngine] = MappingProxyType(
    {each.name: each for each in map(TransformerEngine, ("adamw", "adam", *_SGD))}
)
"""Both classes, under every algorithm that they compute."""


def probe() -> dict[str, JsonValue]:
    """Return ``error``: why its optimizers cannot be imported; None: they can."""
    return import_error(_MODULE)
