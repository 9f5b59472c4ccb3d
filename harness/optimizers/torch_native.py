"""Every class of torch.optim, as each implementation that torch has of it: forloop, foreach, fused."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import UnsupportedError
from harness.optimizers.algorithms import ALGORITHMS
from harness.optimizers.arrangement import is_matrix, split
from harness.optimizers.construct import construct, torch_groups
from harness.optimizers.implementation import Implementation, device_type
from harness.registry import load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from harness.interfaces import ParamGroup
    from harness.machine import Machine
    from harness.optimizers.algorithms import Algorithm
    from harness.spec import RunSpec

CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "adadelta": "Adadelta",
        "adafactor": "Adafactor",
        "adagrad": "Adagrad",
        "adam": "Adam",
        "adamw": "AdamW",
        "adamax": "Adamax",
        "asgd": "ASGD",
        "lbfgs": "LBFGS",
        "muon": "Muon",
        "nadam": "NAdam",
        "radam": "RAdam",
        "rmsprop": "RMSprop",
        "rprop": "Rprop",
        "sgd": "SGD",
        "sgd-momentum": "SGD",
        "sgd-nesterov": "SGD",
        "sparseadam": "SparseAdam",
    }
)
"""Algorithm -> its class in torch.optim."""

_READS_RATE = {("Adadelta", "forloop"), ("RMSprop", "forloop")}
"""Capturable by flag, but a rate in a tensor, as a CUDA graph needs it, is read on the host in every step (2.11 to
2.14: ``alpha=-lr``, ``value=-lr``)."""

_FOREACH = ("foreach", "differentiable")
_CAPTURABLE = (*_FOREACH, "capturable")
FLAGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Adadelta": _CAPTURABLE,
        "Adafactor": ("foreach",),
        "Adagrad": (*_FOREACH, "fused"),
        "Adam": (*_CAPTURABLE, "fused"),
        "AdamW": (*_CAPTURABLE, "fused"),
        "Adamax": _CAPTURABLE,
        "ASGD": _CAPTURABLE,
        "LBFGS": (),
        "Muon": (),
        "NAdam": _CAPTURABLE,
        "RAdam": _CAPTURABLE,
        "RMSprop": _CAPTURABLE,
        "Rprop": _CAPTURABLE,
        "SGD": (*_FOREACH, "fused"),
        "SparseAdam": (),
    }
)
"""Class -> the flags that choose how it computes (torch 2.9 and later), none of them a hyperparameter."""

SPARSE: Mapping[tuple[str, str], Literal["no", "yes", "only"]] = MappingProxyType(
    {
        ("SGD", "forloop"): "yes",
        ("SGD", "foreach"): "yes",
        ("Adagrad", "forloop"): "yes",
        ("SparseAdam", "forloop"): "only",
    }
)
"""Class and implementation that take sparse gradients. Adagrad's foreach silently runs its for-loop on them and
the fused kernels raise, so neither is offered."""

_PLAIN_TENSORS_ONLY = frozenset(
    {
        *((name, word) for name in ("Adafactor", "Rprop") for word in ("forloop", "foreach", "compiled")),
        *((name, "fused") for name in ("Adagrad", "SGD")),
        ("LBFGS", "forloop"),
        ("SparseAdam", "forloop"),
    }
)
"""Class and implementation that raise on DTensors (torch 2.13): operators without a rule for shards."""

_FUSED_OPERATORS = {
    "Adagrad": "aten::_fused_adagrad_",
    "Adam": "aten::_fused_adam_",
    "AdamW": "aten::_fused_adamw_",
}
_FUSED_OPERATORS["SGD"] = "aten::_fused_sgd_"
_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


class Native(Implementation):
    """A class of torch.optim with its flags set.

    Args:
        algorithm: what it computes.
        word: ``forloop``, ``foreach`` or ``fused``.
    """

    def __init__(self, algorithm: Algorithm, word: str) -> None:
        self.class_name = CLASSES[algorithm.name]
        self.word = word
        super().__init__(
            algorithm,
            word,
            f"torch.optim:{self.class_name}",
            sparse=SPARSE.get((self.class_name, word), "no"),
            traits={
                "dtensor": "no" if (self.class_name, word) in _PLAIN_TENSORS_ONLY else "yes",
                "capturable": "capturable" in FLAGS[self.class_name]
                and (self.class_name, word) not in _READS_RATE,
                "compiled": word == "compiled",
                "strides": "alike" if word == "fused" else "any",  # the kernels go through raw addresses
            },
        )

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return why this torch, or this device, has no such implementation."""
        if machine.torch is None:
            return "PyTorch is not installed; run pip install torch"
        constructor = machine.constructors.get(self.target)
        if constructor is None or constructor.error is not None or constructor.open_ended:
            return None  # a missing class is reported with its own reason
        if self.word in {"foreach", "fused"} and self.word not in constructor.parameters:
            return f"torch {machine.torch} has no {self.word} {self.class_name}; use {self.algorithm.name}/forloop"
        return self._no_fused_kernel(device_type(spec, machine), machine)

    def _no_fused_kernel(self, device: str, machine: Machine) -> str | None:
        fused = machine.families.get("native", {}).get("fused")
        if self.word != "fused" or not isinstance(fused, dict):
            return None
        devices = fused.get(self.class_name)
        if not isinstance(devices, list) or device in devices:
            return None
        return (
            f"torch {machine.torch} has no fused {self.class_name} kernel for {device}; "
            f"use {self.algorithm.name}/foreach"
        )

    def options(self, machine: Machine) -> Mapping[str, JsonValue]:
        """Return the algorithm's options, and those that this torch's class has beyond them."""
        options = dict(self.algorithm.options)
        constructor = machine.constructors.get(self.target)
        if constructor is not None:
            known = {*options, *FLAGS[self.class_name], "lr"}
            options |= {key: value for key, value in constructor.parameters.items() if key not in known}
        return options

    def flags(self, spec: RunSpec) -> dict[str, bool]:
        """Return every flag of the class, on or off; ``capturable`` is on for a CUDA graph."""
        captured = spec.strategy_options.get("cuda_graph") is True
        on = {self.word, *(["capturable"] if captured else [])}
        return {flag: flag in on for flag in FLAGS[self.class_name]}

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Construct the class; Muon and SparseAdam get a companion for what they cannot take."""
        return _BUILDERS.get(self.class_name, _build_plain)(self, groups, spec)


def _build_plain(self: Native, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
    chosen = self.hyperparameters(spec)
    return _over(load(self.target), groups, chosen, self.flags(spec))


def _over(
    cls: Callable[..., torch.optim.Optimizer],
    groups: Sequence[ParamGroup],
    chosen: Mapping[str, Any],
    flags: Mapping[str, bool],
) -> torch.optim.Optimizer:
    return construct(cls, torch_groups(groups, chosen["lr"], chosen.get("weight_decay")), **chosen, **flags)


def _build_lbfgs(self: Native, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
    """LBFGS knows one group: it works on the concatenation of all parameters."""
    chosen = self.hyperparameters(spec)
    if len({group.lr_scale for group in groups}) > 1:
        raise UnsupportedError("LBFGS takes one learning rate for all parameters; this model scales some")
    parameters = [parameter for group in groups for parameter in group.parameters]
    cls: type[torch.optim.Optimizer] = load(self.target)
    return construct(cls, parameters, **chosen)


def _build_muon(self: Native, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
    """Muon for the 2-D matrices inside the model, AdamW for the rest."""
    chosen = self.hyperparameters(spec)
    companion = companion_options(chosen)
    matrices, rest = split_matrices(groups)
    if not matrices and all(group.parameters for group in groups):  # an empty group's are on another rank
        raise UnsupportedError("the model has no 2-D weight inside it for Muon; use adamw")
    flags = dict.fromkeys(FLAGS["AdamW"], False)
    parts = [_over(load(self.target), matrices, chosen, self.flags(spec))] if matrices else []
    if rest:
        parts.append(_over(load("torch.optim:AdamW"), rest, companion, flags))
    return _combined(parts)


def companion_options(chosen: dict[str, Any]) -> dict[str, Any]:
    """Take the ``adamw_…`` options out of Muon's, and return them under AdamW's names."""
    taken = {name.removeprefix("adamw_"): chosen.pop(name) for name in list(chosen) if name.startswith("adamw_")}
    taken["lr"] = chosen["lr"] if taken["lr"] is None else taken["lr"]
    return {**taken, "amsgrad": False, "maximize": False}


def split_matrices(groups: Sequence[ParamGroup]) -> tuple[list[ParamGroup], list[ParamGroup]]:
    """Return the groups' 2-D matrices, which Muon takes, and everything else."""
    return split(groups, is_matrix)


def _build_sparse_adam(self: Native, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
    """SparseAdam for what has sparse gradients, Adam with the same moments for the rest."""
    chosen = self.hyperparameters(spec)
    sparse, dense = split(groups, lambda group, _: group.role == "sparse")
    if not sparse:
        raise UnsupportedError("no parameter has sparse gradients here; use adam")
    parts = [_over(load(self.target), sparse, chosen, self.flags(spec))]
    if dense:
        adam = {**ALGORITHMS["adam"].options, **chosen}
        parts.append(_over(load("torch.optim:Adam"), dense, adam, dict.fromkeys(FLAGS["Adam"], False)))
    return _combined(parts)


def _combined(parts: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    from harness.optimizers.composite import Composite

    return Composite(parts)


_BUILDERS: Mapping[str, Callable[[Native, Sequence[ParamGroup], RunSpec], torch.optim.Optimizer]] = (
    MappingProxyType({"LBFGS": _build_lbfgs, "Muon": _build_muon, "SparseAdam": _build_sparse_adam})
)
"""The classes that need more than parameters, options and flags."""

OPTIMIZERS: Mapping[str, Native] = MappingProxyType(
    {
        native.name: native
        for name, class_name in CLASSES.items()
        for native in (Native(ALGORITHMS[name], word) for word in ("forloop", "foreach", "fused"))
        if native.word == "forloop" or native.word in FLAGS[class_name]
    }
)
"""Every implementation that torch has, by name."""


def probe() -> dict[str, JsonValue]:
    """Return ``fused``: for each class the devices that its fused kernel is registered for."""
    import torch

    def has(operator: str, device: str) -> bool:
        try:
            return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operator, device.upper()))  # noqa: SLF001
        except RuntimeError:  # an operator or a device that this torch does not know
            return False

    return {
        "fused": {
            name: [device for device in _FUSED_DEVICES if has(operator, device)]
            for name, operator in _FUSED_OPERATORS.items()
        }
    }
