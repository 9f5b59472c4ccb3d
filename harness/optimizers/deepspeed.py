"""DeepSpeed's own optimizer classes, used as plain torch optimizers: no ZeRO, no DeepSpeed engine.

``deepspeed`` is the class for parameters on the device, ``deepspeed-cpu`` the one for parameters in host memory.
On a machine without accelerator both work on the CPU, with kernels of their own.
"""

from __future__ import annotations

import importlib
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness import kernels
from harness.errors import UnsupportedError
from harness.installing import install
from harness.optimizers.algorithms import ALGORITHMS
from harness.optimizers.construct import construct, torch_groups
from harness.optimizers.implementation import Implementation, device_type
from harness.optimizers.torch_native import companion_options, split_matrices
from harness.registry import load, strategy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from harness.interfaces import ParamGroup
    from harness.machine import Machine
    from harness.spec import RunSpec

    Arguments = Callable[[dict[str, Any]], dict[str, Any]]
    """From canonical hyperparameters to the constructor's keywords."""

_NO_TOOL: Mapping[str, str] = MappingProxyType(
    {
        "c++": "needs a C++ compiler, and none was found; run apt-get install g++ (or your system's like)",
        "ninja": "needs ninja, and it was not found; run pip install ninja",
        "nvcc": (
            "needs the CUDA toolkit's compiler nvcc, and it was not found; install the toolkit of torch's CUDA "
            "version (apt-get install cuda-toolkit) and set CUDA_HOME"
        ),
    }
)


class DeepSpeed(Implementation):
    """A class of DeepSpeed's.

    Args:
        algorithm: name of what it computes.
        word: ``deepspeed`` or ``deepspeed-cpu``.
        target: ``module:Class``.
        arguments: translates hyperparameters.
        devices: torch device types whose tensors it takes.
        type: what DeepSpeed's config calls it; None: nothing there constructs this class.
        more: further arguments of `Implementation`.
    """

    def __init__(
        self,
        algorithm: str,
        word: str,
        target: str,
        arguments: Arguments,
        devices: tuple[str, ...],
        type: str | None = None,  # noqa: A002  # the config's own word
        **more: Any,
    ) -> None:
        # The kernels go through raw addresses; those on the CPU leave what is not contiguous as it was.
        traits = {"dtensor": "no", "strides": "contiguous"}
        super().__init__(ALGORITHMS[algorithm], word, target, traits=traits, **more)
        self._arguments = arguments
        self._devices = devices
        self._type = type

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return what is missing: the package, the kernel for this device, or what compiles it."""
        absent = not_installed(machine)
        if absent is not None:
            return absent
        found = machine.families.get("deepspeed", {})
        device = device_type(spec, machine)
        if offloads(spec) and not self._on_host:
            others = self._others(lambda other: other._on_host)  # noqa: SLF001  # our class
            return (
                f"{spec.strategy} steps in host memory, where DeepSpeed puts another class in the place of "
                f"{self._class_name}; {f'use {others[0]}' if others else 'use a strategy without offload'}"
            )
        stepped = "cpu" if offloads(spec) else device
        if stepped not in self._devices:
            others = self._others(lambda other: device in other._devices)  # noqa: SLF001  # our class
            instead = f"use {others[0]}" if others else f"run it on a machine with a {self._devices[0]} device"
            return f"DeepSpeed's {self._class_name} works on {' and '.join(self._devices)} only; {instead}"
        return self._no_kernel(device, machine, found)

    def _others(self, fits: Callable[[DeepSpeed], bool]) -> list[str]:
        """Return the family's other classes of the algorithm that fit."""
        return [name for name, other in OPTIMIZERS.items() if other.algorithm is self.algorithm and fits(other)]

    @property
    def _on_host(self) -> bool:
        """It steps on parameters in host memory, beside an accelerator too: for them alone, or in plain torch."""
        return self._devices == ("cpu",) or not self.traits.kernels

    def deepspeed_config(self, spec: RunSpec) -> Mapping[str, JsonValue] | None:
        """Return the section that makes DeepSpeed construct this class, where there is one.

        DeepSpeed chooses the class for a type by whether the step is in host memory; with the other class of the
        same type the optimizer is passed in.
        """
        if self._type is None or self._on_host != offloads(spec):
            return None
        chosen = self.hyperparameters(spec)
        params = self._arguments(chosen)
        if params.pop("adamw_mode", params.pop("adam_w_mode", None)) is not None:
            # The type alone says AdamW, of "Adam" too.
            params["adam_w_mode"] = chosen.get("decoupled_weight_decay", True)
        return {"type": self._type, "params": params}

    @property
    def _class_name(self) -> str:
        return self.target.partition(":")[2]

    def _no_kernel(self, device: str, machine: Machine, found: Mapping[str, JsonValue]) -> str | None:
        ready = found.get("built")
        offered = found.get("kernels")
        for kernel in self.traits.kernels:
            if isinstance(ready, list) and kernel in ready and device == found.get("device"):
                continue  # compiled already: no compiler is needed
            absent = isinstance(offered, dict) and device == found.get("device") and offered.get(kernel) is False
            if device not in kernels.KERNELS[kernel].devices or absent:
                return (
                    f"DeepSpeed {machine.packages.get('deepspeed')} has no {kernel} kernel that builds for "
                    f"{device} here; see ds_report"
                )
            tools = ("c++", "ninja") if device == "cpu" else ("c++", "ninja", "nvcc")
            for tool in tools:
                if machine.compilers.get(tool) is None:
                    return f"DeepSpeed compiles its {kernel} kernel and {_NO_TOOL[tool]}"
        return None

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Import DeepSpeed for the parameters' device, load the built kernels, construct the class."""
        device = groups[0].parameters[0].device.type
        import_deepspeed(device)
        for kernel in self.traits.kernels:
            kernels.load(kernel, device)
        return self._construct(groups, self.hyperparameters(spec))

    def _construct(self, groups: Sequence[ParamGroup], chosen: dict[str, Any]) -> torch.optim.Optimizer:
        cls: type[torch.optim.Optimizer] = load(self.target)
        return construct(
            cls, torch_groups(groups, chosen["lr"], chosen.get("weight_decay")), **self._arguments(chosen)
        )


def not_installed(machine: Machine) -> str | None:
    """Return why DeepSpeed cannot be imported on that machine and what to do about it, or None."""
    if machine.packages.get("deepspeed") is None:
        return f"DeepSpeed is not installed; run {install('deepspeed')}"
    error = machine.families.get("deepspeed", {}).get("error")
    return None if error is None else f"DeepSpeed cannot be imported: {error}; run {install('deepspeed')}"


def offloads(spec: RunSpec) -> bool:
    """Say whether the strategy keeps what the optimizer steps on in host memory."""
    return bool(getattr(strategy(spec.strategy), "offload", False))


class DeepSpeedMuon(DeepSpeed):
    """MuonWithAuxAdam: its arguments stand in the groups, and it is told of every tensor whether it is Muon's.

    It is passed in: what DeepSpeed's config constructs goes by the tensors' names, not by their roles.
    """

    on_whole_gradients = True
    """ZeRO's stages orthogonalise whole gradients for this class before they cut them."""

    def _construct(self, groups: Sequence[ParamGroup], chosen: dict[str, Any]) -> torch.optim.Optimizer:
        companion = companion_options(chosen)
        matrices, rest = split_matrices(groups)
        if not matrices:
            raise UnsupportedError("the model has no 2-D weight inside it for Muon; use adamw")
        muon = {"use_muon": True, "momentum": chosen["momentum"]}
        if hasattr(importlib.import_module("deepspeed.runtime.zero.muon.original_muon"), "NS_METHODS"):
            muon["ns_method"] = "standard"  # the default, another iteration in fp16, is not torch's
        adam = {"use_muon": False, "betas": companion["betas"], "eps": companion["eps"]}
        listed = [{**g, **muon} for g in torch_groups(matrices, chosen["lr"], chosen["weight_decay"])]
        listed += [{**g, **adam} for g in torch_groups(rest, companion["lr"], companion["weight_decay"])]
        for group in listed:
            for parameter in group["params"]:
                parameter.use_muon = group["use_muon"]
        cls: type[torch.optim.Optimizer] = load(self.target)
        return construct(cls, listed)


def import_deepspeed(device: str) -> None:
    """Import DeepSpeed for a device type.

    It chooses its accelerator once, at import, by DS_ACCELERATOR or else by what it finds; the parameters' device
    decides here, so that a CPU run on a machine with accelerators gets the CPU's kernels.
    """
    os.environ.setdefault("DS_ACCELERATOR", device)
    importlib.import_module("deepspeed")


def _pick(*names: str) -> Arguments:
    return lambda chosen: {name: chosen[name] for name in names}


def _fused_adam(chosen: dict[str, Any]) -> dict[str, Any]:
    return {
        **_pick("lr", "betas", "eps", "weight_decay", "amsgrad")(chosen),
        "bias_correction": True,
        "adam_w_mode": chosen.get("decoupled_weight_decay", True),
        "set_grad_none": True,
    }


def _cpu_adam(chosen: dict[str, Any]) -> dict[str, Any]:
    return {
        **_pick("lr", "betas", "eps", "weight_decay", "amsgrad")(chosen),
        "bias_correction": True,
        "adamw_mode": chosen.get("decoupled_weight_decay", True),
        "fp32_optimizer_states": True,
    }


def _cpu_lion(chosen: dict[str, Any]) -> dict[str, Any]:
    return {**_pick("lr", "betas", "weight_decay")(chosen), "fp32_optimizer_states": True}


def _fused_lion(chosen: dict[str, Any]) -> dict[str, Any]:
    return {**_pick("lr", "betas", "weight_decay")(chosen), "set_grad_none": True}


def _cpu_adagrad(chosen: dict[str, Any]) -> dict[str, Any]:
    return {**_pick("lr", "eps", "weight_decay")(chosen), "fp32_optimizer_states": True}


def _lamb(chosen: dict[str, Any]) -> dict[str, Any]:
    """Turn off what the paper's algorithm has not: clipped gradients, a clipped trust ratio."""
    return {
        **_pick("lr", "betas", "eps", "weight_decay", "bias_correction")(chosen),
        "eps_inside_sqrt": False,
        "max_grad_norm": 0.0,
        "max_coeff": float("inf"),
        "min_coeff": 0.0,
    }


_PLAIN_ADAM: dict[str, JsonValue] = {"amsgrad": False, "maximize": False}
_PLAIN_ADAGRAD: dict[str, JsonValue] = {"lr_decay": 0.0, "initial_accumulator_value": 0.0, "maximize": False}
_PLAIN_MUON: dict[str, JsonValue] = {
    "nesterov": True,
    "ns_coefficients": [3.4445, -4.775, 2.0315],
    "eps": 1e-7,
    "ns_steps": 5,
    "adjust_lr_fn": None,
}

_TABLE = (
    *(
        DeepSpeed(
            name,
            "deepspeed",
            "deepspeed.ops.adam:FusedAdam",
            _fused_adam,
            ("cuda", "cpu", "xpu"),
            type=kind,
            fixed=_PLAIN_ADAM,
            kernels=("fused_adam",),
        )
        for name, kind in (("adamw", "AdamW"), ("adam", "Adam"))
    ),
    *(
        DeepSpeed(
            name,
            "deepspeed-cpu",
            "deepspeed.ops.adam:DeepSpeedCPUAdam",
            _cpu_adam,
            ("cpu",),
            type=kind,
            fixed=_PLAIN_ADAM,
            kernels=("cpu_adam",),
        )
        for name, kind in (("adamw", "AdamW"), ("adam", "Adam"))
    ),
    DeepSpeed(
        "lion",
        "deepspeed",
        "deepspeed.ops.lion:FusedLion",
        _fused_lion,
        ("cuda",),
        type="Lion",
        kernels=("fused_lion",),
        variants={"sign_of_zero": -1},
    ),
    DeepSpeed(
        "lion",
        "deepspeed-cpu",
        "deepspeed.ops.lion:DeepSpeedCPULion",
        _cpu_lion,
        ("cpu",),
        type="Lion",
        kernels=("cpu_lion",),
        variants={"sign_of_zero": 1},
        state_tensors=2,  # a second moment is allocated and never used
    ),
    DeepSpeed(
        "adagrad",
        "deepspeed-cpu",
        "deepspeed.ops.adagrad:DeepSpeedCPUAdagrad",
        _cpu_adagrad,
        ("cpu",),
        type="Adagrad",
        fixed=_PLAIN_ADAGRAD,
        kernels=("cpu_adagrad",),
    ),
    DeepSpeed(
        "lamb",
        "deepspeed",
        "deepspeed.ops.lamb:FusedLamb",
        _lamb,
        ("cuda",),
        type="Lamb",
        # It folds the correction into the step size, outside of the trust ratio: another algorithm.
        fixed={"bias_correction": False},
        kernels=("fused_lamb",),
    ),
    DeepSpeedMuon(
        "muon",
        "deepspeed",
        "deepspeed.runtime.zero.muon.muon_optimizer:MuonWithAuxAdam",
        _pick(),
        ("cuda", "cpu", "xpu"),
        fixed=_PLAIN_MUON,
        variants={"norm_eps": "added", "rounded": "operations"},  # Jordan's own code
    ),
)

OPTIMIZERS: Mapping[str, DeepSpeed] = MappingProxyType({each.name: each for each in _TABLE})
"""Every one of DeepSpeed's classes, by name."""


def probe() -> dict[str, JsonValue]:
    """Return what DeepSpeed has for the default device: ``device``, ``kernels`` (name -> it builds), ``built``.

    Nothing is compiled. ``error`` says why DeepSpeed cannot be imported; None: it can.
    """
    device = kernels.default_device()
    try:
        import_deepspeed(device)
        accelerator = load("deepspeed.accelerator:get_accelerator")()
    except ModuleNotFoundError as error:
        if error.name == "deepspeed":
            return {"error": "not installed"}
        return {"error": f"{type(error).__name__}: {error}"}
    except Exception as error:  # noqa: BLE001  # a broken installation raises anything; the probe goes on
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "error": None,
        "device": device,
        "kernels": {name: _offers(accelerator, name) for name in kernels.KERNELS},
        "built": [name for name in kernels.KERNELS if kernels.built(name, device) is not None],
    }


def _offers(accelerator: Any, kernel: str) -> bool:
    try:
        builder = accelerator.create_op_builder(kernels.KERNELS[kernel].builder)
        return builder is not None and builder.name == kernel and bool(builder.is_compatible(verbose=False))
    except Exception:  # noqa: BLE001  # DeepSpeed's own checks raise, without a CUDA toolkit say
        return False
