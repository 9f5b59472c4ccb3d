"""heavyball's optimizers, which compile their parts on accelerators and take gradients away as they step.

Most of its classes differ from the algorithms of the same name elsewhere (eps is a lower bound, not a summand;
averages instead of sums), so that they stand under algorithms of their own.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.optimizers.construct import facts, note_arguments
from harness.optimizers.implementation import device_type
from harness.optimizers.third_party import ThirdParty, import_error, no_compiler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from harness.interfaces import ParamGroup, WorkloadTraits
    from harness.machine import Machine
    from harness.spec import RunSpec

OWN_MODE = "max-autotune-no-cudagraphs"
"""heavyball's own default, with which a step of SOAP on a small transformer compiles for minutes on a CPU."""

AUTO, EAGER = "auto", "none"
"""Values of ``compile_mode``: heavyball's own on accelerators and eager on CPUs, or eager everywhere."""

_MODES = (AUTO, EAGER, OWN_MODE, "default", "reduce-overhead", "max-autotune")


class Heavyball(ThirdParty):
    """A class of heavyball.

    Args:
        algorithm: name of what it computes.
        class_name: in heavyball.
        fixed: options that it knows one value of only.
        renamed: an option -> the constructor's word.
        traits: further fields of OptimizerTraits.
    """

    package = family = "heavyball"

    def __init__(
        self,
        algorithm: str,
        class_name: str,
        fixed: Mapping[str, JsonValue] | None = None,
        renamed: Mapping[str, str] | None = None,
        traits: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            algorithm,
            "heavyball",
            f"heavyball:{class_name}",
            fixed=fixed,
            more={"compile_mode": AUTO},
            # storage_dtype is float32, whatever the parameters' dtype is.
            traits={
                "state_follows_parameters": False,
                "dtensor": "undeclared",
                "compiled": True,
                "consumes_gradients": True,
                **(traits or {}),
            },
        )
        self._renamed = dict(renamed or {})

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return what is missing: the package, or what torch.compile needs."""
        missing = super().unavailable(spec, machine)
        mode = _mode(spec, device_type(spec, machine))
        if missing is not None or mode == EAGER:
            return missing
        reason = no_compiler(spec, machine, self.name)
        return None if reason is None else f"{reason}; or --set optimizer.compile_mode={EAGER}"

    def unsupported(self, spec: RunSpec, workload: WorkloadTraits, machine: Machine) -> str | None:
        """Refuse, beside what every implementation does, a mode that torch.compile does not have."""
        mode = spec.optimizer_options.get("compile_mode", AUTO)
        if mode not in _MODES:
            return f"compile_mode = {mode!r} is unknown; use one of {', '.join(_MODES)}"
        return super().unsupported(spec, workload, machine)

    def arguments(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """Return the constructor's keywords; what it does on top of the algorithm is off."""
        own = {self._renamed.get(name, name): value for name, value in super().arguments(chosen).items()}
        own.pop("compile_mode")
        return {
            **own,
            "cautious_weight_decay": False,
            "warmup_steps": 0,
            "multi_tensor": True,
            "storage_dtype": "float32",
            "mars": False,
            "caution": False,
            "gradient_clipping": None,
            "update_clipping": None,
            "compile_step": False,  # compile_mode is about the parts of a step, this about all of it
            "promote": True,
        }

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Set how its parts are compiled, which is one setting of the whole process, and construct the class."""
        mode = _mode(spec, groups[0].parameters[0].device.type)
        vars(importlib.import_module("heavyball.utils"))["compile_mode"] = None if mode == EAGER else mode
        optimizer = super().build(groups, spec)
        received = facts(optimizer)["arguments"]
        assert isinstance(received, dict), "construct has noted them"
        note_arguments(optimizer, {**received, "compile_mode": mode})
        return optimizer


def _mode(spec: RunSpec, device: str) -> str:
    """Return how the parts are compiled on a device."""
    asked = str(spec.optimizer_options.get("compile_mode", AUTO))
    if asked != AUTO:
        return asked
    return EAGER if device == "cpu" else OWN_MODE


_PLAIN_SGD: dict[str, JsonValue] = {
    "dampening": 0.0,
    "nesterov": False,
    "maximize": False,
    "weight_decay": 0.0,  # it would be decoupled from the gradient
}

_TABLE = (
    Heavyball("sgd-momentum", "SGD", fixed=_PLAIN_SGD, renamed={"momentum": "beta"}),
    Heavyball("adamw-clamped", "AdamW"),
    Heavyball("laprop", "LaProp", fixed={"eps": 1e-8}),  # its option reaches no kernel
    Heavyball("adopt", "ADOPT"),
    Heavyball("muon-ema", "Muon"),
    # Under DTensors its initial values are lost: it writes them into gathered copies.
    Heavyball("scion", "Scion", traits={"own_initial_values": True}),
    Heavyball("soap", "SOAP"),
    Heavyball("psgd-kron", "PSGDKron"),
)

OPTIMIZERS: Mapping[str, Heavyball] = MappingProxyType({each.name: each for each in _TABLE})
"""The classes of heavyball that stand for a published algorithm each, by name."""


def probe() -> dict[str, JsonValue]:
    """Return ``error``: why heavyball cannot be imported; None: it can."""
    return import_error("heavyball")
