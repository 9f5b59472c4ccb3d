"""The classes of torch.optim with their ``step`` under torch.compile.

The step is the one over many tensors at once (``foreach``) where the class has it, since the compiler then fuses
across tensors, and ``capturable`` where that exists, which lets the learning rate be a tensor: with a float, every
new rate would compile the step again. torch's own fused kernels are no base: nothing is left to compile.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from harness.optimizers.algorithms import ALGORITHMS
from harness.optimizers.implementation import device_type
from harness.optimizers.torch_native import CLASSES, FLAGS, Native

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from harness.interfaces import ParamGroup
    from harness.machine import Machine
    from harness.optimizers.algorithms import Algorithm
    from harness.spec import RunSpec

_UNTRACEABLE: Mapping[str, str] = MappingProxyType(
    {
        "lbfgs": "LBFGS evaluates the loss inside its step: compiling it would compile the model too",
        "sparseadam": "torch.compile cannot trace sparse gradients",
    }
)

_GRAPHS = "optbench_captured_calls"
"""Attribute of an optimizer: operators that torch.compile had captured in this process before it was built."""


class Compiled(Native):
    """A class of torch.optim whose step is compiled when it first runs.

    Args:
        algorithm: what it computes.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__(algorithm, "compiled")

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return why the step cannot be compiled here."""
        if self.algorithm.name in _UNTRACEABLE:
            return f"{_UNTRACEABLE[self.algorithm.name]}; use {self.algorithm.name}/forloop"
        device = device_type(spec, machine)
        if device == "cpu" and machine.compilers.get("c++") is None:
            return (
                "torch.compile needs a C++ compiler for CPUs, and none was found; "
                "run apt-get install g++ (or your system's like), or set CXX"
            )
        found = machine.families.get("compiled", {})
        if device in {"cuda", "xpu"} and "triton" in found and found["triton"] is None:
            return f"torch.compile needs Triton on {device}, and it is not installed; run pip install triton"
        return super().unavailable(spec, machine)

    def flags(self, spec: RunSpec) -> dict[str, bool]:
        """Return foreach and capturable on where the class has them, every other flag off."""
        del spec
        return {flag: flag in {"foreach", "capturable"} for flag in FLAGS[self.class_name]}

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Construct as ever, then hold learning rates in tensors and wrap each class's step."""
        import torch

        optimizer = super().build(groups, spec)
        setattr(optimizer, _GRAPHS, captured_calls())
        parts: Sequence[torch.optim.Optimizer] = getattr(optimizer, "parts", ()) or (optimizer,)
        for part in parts:
            for group in part.param_groups:
                device = group["params"][0].device
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)
            vars(part)["step"] = torch.compile(part.step)
        return optimizer

    def disproved(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Say so where torch.compile has captured nothing since the optimizer was built."""
        if captured_calls() > getattr(optimizer, _GRAPHS):
            return None
        return (
            f"torch.compile captured no operator of {self.class_name}.step: nothing was compiled; "
            f"use {self.algorithm.name}/forloop or foreach"
        )


def captured_calls() -> int:
    """Return how many operators torch.compile has put into graphs in this process.

    Counted rather than graphs, since a step that breaks at once leaves graphs with nothing in them.
    """
    from torch._dynamo.utils import counters

    return int(counters["stats"]["calls_captured"])


OPTIMIZERS: Mapping[str, Compiled] = MappingProxyType(
    {compiled.name: compiled for compiled in (Compiled(ALGORITHMS[name]) for name in CLASSES)}
)
"""Every class of torch.optim, compiled, by name."""


def probe() -> dict[str, JsonValue]:
    """Return the version of Triton, which compiles for GPUs; None: not installed."""
    try:
        triton = importlib.import_module("triton")
    except ImportError:
        return {"triton": None}
    return {"triton": str(getattr(triton, "__version__", "unknown"))}
