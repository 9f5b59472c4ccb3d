"""NVIDIA Apex's fused optimizers, with the hyperparameters of the algorithms' native classes.

Apex is built from source against the torch at hand. The package called ``apex`` on the Python package index is
another project.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.optimizers.algorithms import ALGORITHMS
from harness.optimizers.construct import construct, torch_groups
from harness.optimizers.implementation import Implementation, device_type
from harness.rates import remember_peak
from harness.registry import load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from pydantic import JsonValue
    from torch import Tensor

    from harness.interfaces import ParamGroup
    from harness.machine import Machine
    from harness.spec import RunSpec

    Arguments = Callable[[dict[str, Any]], dict[str, Any]]
    """From canonical hyperparameters to the constructor's keywords."""

BUILD = (
    "git clone https://github.com/NVIDIA/apex && cd apex && "
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation ."
)
"""How Apex is installed; it needs nvcc of the CUDA version that torch was built with."""

_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "absent": f"Apex is not installed; build it from source: {BUILD}",
        "unrelated": (
            "the installed package apex is another project of that name, not NVIDIA's; "
            f"run pip uninstall apex, then build from source: {BUILD}"
        ),
        "no-kernels": f"Apex is installed without its CUDA kernels (amp_C); build it again with them: {BUILD}",
        "no-cuda": "Apex's kernels are installed, but they need a CUDA device and there is none here",
        "broken": f"Apex cannot be imported; build it again for this torch: {BUILD}",
    }
)
"""What `probe` found -> why nothing of Apex can run, and what to do."""


_COUNTLESS = ("FusedSGD", "FusedAdagrad")
"""Classes that count no steps; the others do for a whole group."""


class Apex(Implementation):
    """A class of apex.optimizers.

    Args:
        algorithm: name of what it computes.
        class_name: in apex.optimizers.
        arguments: translates hyperparameters.
        word: the part of the name after the slash.
        fixed: options that it knows one value of only.
    """

    def __init__(
        self,
        algorithm: str,
        class_name: str,
        arguments: Arguments,
        word: str = "apex",
        fixed: Mapping[str, JsonValue] | None = None,
    ) -> None:
        traits = {
            "dtensor": "no",  # the kernels read raw addresses
            "capturable": class_name == "FusedAdam",
            "takes_grad_scaler": class_name == "FusedMixedPrecisionLamb",
        }
        target = f"apex.optimizers:{class_name}"
        variants: dict[str, JsonValue] = {} if class_name in _COUNTLESS else {"counts": "group"}
        super().__init__(ALGORITHMS[algorithm], word, target, fixed=fixed, traits=traits, variants=variants)
        self._arguments = arguments

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return which part of Apex is missing, and the command that brings it."""
        found = machine.families.get("apex", {})
        if found.get("state") != "ok":
            return absence(found)
        device = device_type(spec, machine)
        if device != "cuda":
            return f"Apex's kernels are for CUDA devices, and this run is on {device}; leave --device cpu out"
        return None

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Construct the class, every flag explicit."""
        chosen = self.hyperparameters(spec)
        listed = torch_groups(groups, chosen["lr"], chosen.get("weight_decay"))
        cls: type[torch.optim.Optimizer] = load(self.target)
        arguments = self._arguments(chosen)
        rates = [float(group["lr"]) for group in listed]
        if "capturable" in arguments:
            arguments["capturable"] = spec.strategy_options.get("cuda_graph") is True
        if arguments.get("capturable"):
            listed = [{**group, "lr": _in_tensor(rate)} for group, rate in zip(listed, rates, strict=True)]
        optimizer = construct(cls, listed, **arguments)
        _restore_rates(optimizer, rates)
        return optimizer


def absence(found: Mapping[str, JsonValue]) -> str:
    """Return why nothing of Apex can run, from what `probe` found, and the command that changes it."""
    reason = _REASONS.get(str(found.get("state", "absent")), _REASONS["broken"])
    detail = found.get("detail")
    return f"{reason} (found: {detail})" if detail else reason


def _in_tensor(rate: float) -> Tensor:
    """Return a rate as a capturable step wants it in a group: Apex moves it to the parameters' device."""
    import torch

    return torch.tensor(rate, dtype=torch.float32)


def _restore_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Give each group its own rate: FusedMixedPrecisionLamb writes the default's tensor over them."""
    import torch

    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
            group["initial_lr"] = rate
    remember_peak(optimizer)


def _pick(chosen: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: chosen[name] for name in names}


def _adam(chosen: dict[str, Any]) -> dict[str, Any]:
    return {
        **_pick(chosen, "lr", "betas", "eps", "weight_decay", "amsgrad"),
        "bias_correction": True,
        "adam_w_mode": bool(chosen.get("decoupled_weight_decay", True)),
        "set_grad_none": True,
        "capturable": False,
        "master_weights": False,
    }


def _sgd(chosen: dict[str, Any]) -> dict[str, Any]:
    return {
        **_pick(chosen, "lr", "momentum", "dampening", "weight_decay", "nesterov"),
        "wd_after_momentum": False,
        "materialize_master_grads": True,
        "set_grad_none": True,
    }


def _adagrad(chosen: dict[str, Any]) -> dict[str, Any]:
    return {**_pick(chosen, "lr", "eps", "weight_decay"), "set_grad_none": True, "adagrad_w_mode": False}


def _lamb(chosen: dict[str, Any]) -> dict[str, Any]:
    return {**_mixed_precision_lamb_base(chosen), "set_grad_none": True}


def _mixed_precision_lamb(chosen: dict[str, Any]) -> dict[str, Any]:
    return {**_mixed_precision_lamb_base(chosen), "step": 0, "reduced_precision_dtype": None}


def _mixed_precision_lamb_base(chosen: dict[str, Any]) -> dict[str, Any]:
    return {
        **_pick(chosen, "lr", "bias_correction", "betas", "eps", "weight_decay"),
        "amsgrad": False,
        "adam_w_mode": True,
        "grad_averaging": True,
        # Off: the kernels divide by norm / max_grad_norm where the norm is larger, so that 0 would not do.
        "max_grad_norm": float("inf"),
        # By default Apex adapts only the tensors that decay; the paper adapts every one.
        "use_nvlamb": True,
    }


def _novograd(chosen: dict[str, Any]) -> dict[str, Any]:
    names = ("lr", "betas", "eps", "weight_decay", "bias_correction", "reg_inside_moment", "grad_averaging")
    return {**_pick(chosen, *names, "norm_type", "init_zero"), "amsgrad": False, "set_grad_none": True}


_PLAIN_ADAM: dict[str, JsonValue] = {"amsgrad": False, "maximize": False}
_PLAIN_SGD: dict[str, JsonValue] = {"maximize": False}
_PLAIN_ADAGRAD: dict[str, JsonValue] = {"lr_decay": 0.0, "initial_accumulator_value": 0.0, "maximize": False}

_TABLE = (
    Apex("adamw", "FusedAdam", _adam, fixed=_PLAIN_ADAM),
    Apex("adam", "FusedAdam", _adam, fixed=_PLAIN_ADAM),
    Apex("sgd", "FusedSGD", _sgd, fixed=_PLAIN_SGD),
    Apex("sgd-momentum", "FusedSGD", _sgd, fixed=_PLAIN_SGD),
    Apex("sgd-nesterov", "FusedSGD", _sgd, fixed=_PLAIN_SGD),
    Apex("adagrad", "FusedAdagrad", _adagrad, fixed=_PLAIN_ADAGRAD),
    Apex("lamb", "FusedLAMB", _lamb),
    Apex("lamb", "FusedMixedPrecisionLamb", _mixed_precision_lamb, word="apex-mixed-precision"),
    Apex("novograd", "FusedNovoGrad", _novograd),
)

OPTIMIZERS: Mapping[str, Apex] = MappingProxyType({each.name: each for each in _TABLE})
"""Every one of Apex's classes, by name."""


def probe() -> dict[str, JsonValue]:
    """Return ``state`` (absent, unrelated, broken, no-kernels, no-cuda or ok) and, where it helps, ``detail``.

    ``import apex`` succeeds without kernels, and with the other project of that name; the kernels themselves are
    asked for by the name that the optimizers use.
    """
    try:
        package = importlib.import_module("apex")
    except ModuleNotFoundError as error:
        if error.name == "apex":
            return {"state": "absent"}
        return {"state": _owner(), "detail": f"import apex raised {type(error).__name__}: {error}"}
    except Exception as error:  # noqa: BLE001  # a build for another torch raises anything; the probe goes on
        return {"state": _owner(), "detail": f"import apex raised {type(error).__name__}: {error}"}
    if not _is_nvidias():
        return {"state": "unrelated", "detail": f"{getattr(package, '__file__', None)} has no apex.optimizers"}
    return _kernels()


def _is_nvidias() -> bool:
    try:
        return importlib.util.find_spec("apex.optimizers") is not None
    except (ImportError, ValueError):  # apex is a single file, or was put together by hand
        return "apex.optimizers" in sys.modules


def _owner() -> str:
    """Tell a broken Apex from the other project, which does not import on today's Python either."""
    found = importlib.util.find_spec("apex")
    places = found.submodule_search_locations if found is not None else None
    return "broken" if any((Path(place) / "optimizers").is_dir() for place in places or ()) else "unrelated"


def _kernels() -> dict[str, JsonValue]:
    import torch

    try:
        importlib.import_module("apex.optimizers")
    except Exception as error:  # noqa: BLE001  # as above
        return {"state": "broken", "detail": f"import apex.optimizers raised {type(error).__name__}: {error}"}
    try:
        kernels = importlib.import_module("amp_C")
    except ImportError as error:
        return {"state": "no-kernels", "detail": str(error)}
    if not hasattr(kernels, "multi_tensor_adam"):
        return {"state": "no-kernels", "detail": "amp_C has no multi_tensor_adam"}
    return {"state": "ok" if torch.cuda.is_available() else "no-cuda"}
