"""What the families of installed packages share: one remedy where the package is missing, one probe."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness import installing
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


def absent(package: str, family: str, machine: Machine, install: str | None = None) -> str | None:
    """Return why a package cannot be used on that machine, and the command that brings it; None: it can.

    Args:
        package: the distribution's name.
        family: whose probe tells whether the import works.
        machine: what the probe found.
        install: what to do about it; None: install our extra.
    """
    install = install or f"run {installing.install('third-party')}"
    if machine.packages.get(package) is None:
        return f"{package} is not installed; {install}"
    error = machine.families.get(family, {}).get("error")
    return None if error is None else f"{package} cannot be imported: {error}; {install}"


def import_error(module: str) -> dict[str, JsonValue]:
    """Return ``error``: why the module cannot be imported; None: it can. For a family's ``probe``."""
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  # a build for another torch raises anything; the probe goes on
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": None}


def no_compiler(spec: RunSpec, machine: Machine, what: str) -> str | None:
    """Return why torch.compile, which ``what`` calls itself, cannot work on the spec's device."""
    device = device_type(spec, machine)
    if device == "cpu" and machine.compilers.get("c++") is None:
        return (
            f"{what} compiles its step, and torch.compile needs a C++ compiler for CPUs: none was found; "
            "run apt-get install g++ (or your system's like), or set CXX"
        )
    triton = machine.families.get("compiled", {})
    if device in {"cuda", "xpu"} and "triton" in triton and triton["triton"] is None:
        return f"{what} compiles its step, and torch.compile needs Triton on {device}; run pip install triton"
    return None


class ThirdParty(Implementation):
    """A class of an installed package.

    Args:
        algorithm: name of what it computes.
        word: the part of the name after the slash.
        target: ``module:Class``.
        more: options of this class beyond the algorithm's, with defaults.
        arguments: further arguments of `Implementation`.
    """

    package = ""
    """The distribution's name."""
    family = ""
    """Whose probe tells whether the import works."""

    def __init__(
        self,
        algorithm: str,
        word: str,
        target: str,
        *,
        more: Mapping[str, JsonValue] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(ALGORITHMS[algorithm], word, target, **arguments)
        self.more = dict(more or {})

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return which package is missing or broken, and the command that brings it."""
        return absent(self.package, self.family, machine)

    def options(self, machine: Machine) -> Mapping[str, JsonValue]:
        """Return the algorithm's hyperparameters and what this class adds."""
        del machine
        return {**self.algorithm.options, **self.more}

    def hyperparameters(self, spec: RunSpec) -> dict[str, Any]:
        """Return lr and every option by its canonical name."""
        return {**self.more, **super().hyperparameters(spec)}

    def arguments(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """Return the constructor's keywords for these hyperparameters, every flag explicit."""
        return {name: value for name, value in chosen.items() if name not in self.fixed}

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Construct the class over the groups."""
        chosen = self.hyperparameters(spec)
        cls: type[torch.optim.Optimizer] = load(self.target)
        listed = torch_groups(groups, chosen["lr"], chosen.get("weight_decay"))
        return construct(cls, listed, **self.arguments(chosen))
