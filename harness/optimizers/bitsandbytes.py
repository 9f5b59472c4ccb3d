"""bitsandbytes' optimizers: state in 8 bits by blocks of 256 elements, or in 32; paged between GPU and host.

Its LAMB and LARS are left out: they clip the update's norm instead of scaling by the trust ratio, and in 8 bits do
neither. Its Adam decays weights as AdamW does, so that only AdamW is offered. Tensors of fewer elements than
``min_8bit_size`` keep their state in float32.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.optimizers.algorithms import ALGORITHMS
from harness.optimizers.implementation import device_type
from harness.optimizers.third_party import ThirdParty, import_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from pydantic import JsonValue

    from harness.machine import Machine
    from harness.spec import RunSpec

BLOCK = 256
"""Elements that share a float32 scale."""

_FORMATS = {"8bit": "bitsandbytes-8bit", "32bit": "bitsandbytes"}
"""The end of a class's name -> the implementation's."""


class BitsAndBytes(ThirdParty):
    """A class of bitsandbytes.optim.

    Args:
        algorithm: name of what it computes.
        class_name: without the number of bits.
        bits: ``8bit`` or ``32bit``.
        paged: state lies in CUDA's unified memory.
        fixed: options that it knows one value of only.
        renamed: an option of the algorithm -> the constructor's word.
        dropped: options that the constructor does not take.
        devices: torch device types whose tensors it takes.
    """

    package = family = "bitsandbytes"

    def __init__(
        self,
        algorithm: str,
        class_name: str,
        bits: str,
        *,
        paged: bool = False,
        fixed: Mapping[str, JsonValue] | None = None,
        devices: tuple[str, ...] = ("cpu", "cuda", "xpu"),
    ) -> None:
        word = _FORMATS[bits].replace("bitsandbytes", "bitsandbytes-paged") if paged else _FORMATS[bits]
        quantised = bits == "8bit"
        tensors = ALGORITHMS[algorithm].state_tensors
        narrow: dict[str, Any] = {"state_bytes": tensors * (1 + 4 / BLOCK), "state_dtypes": ("uint8",)}
        super().__init__(
            algorithm,
            word,
            f"bitsandbytes.optim:{'Paged' if paged else ''}{class_name}{bits}",
            fixed=fixed,
            more={"min_8bit_size": 4096} if quantised else {},
            traits={
                **(narrow if quantised else {}),
                "state_follows_parameters": False,
                # Kernels read addresses, and a step on DTensors raises.
                "dtensor": "no",
            },
        )
        self._paged, self._quantised, self._devices = paged, quantised, devices

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return what is missing: the package, or a device that this class works on."""
        device = device_type(spec, machine)
        if self._paged and device != "cuda":
            resident = self.name.replace("-paged", "")
            return f"{self.name} pages through CUDA's unified memory, and this run is on {device}; use {resident}"
        if device not in self._devices:
            instead = f"use {self.algorithm.name}/{_FORMATS['8bit']}"
            return f"bitsandbytes has no working {self.target.rpartition(':')[2]} for {device}; {instead}"
        return super().unavailable(spec, machine)

    def disproved(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Say so where every tensor was too small for its state to be quantised."""
        if not self._quantised or any("absmax1" in kept for kept in optimizer.state.values()):
            return None
        return (
            "no state was quantised: each tensor has fewer than min_8bit_size elements; "
            f"use {self.algorithm.name}/{_FORMATS['32bit']}, or --set optimizer.min_8bit_size=1"
        )


_PLAIN: Mapping[str, dict[str, JsonValue]] = MappingProxyType(
    {
        "AdamW": {"amsgrad": False, "maximize": False},
        "Lion": {},
        "SGD": {"dampening": 0.0, "nesterov": False, "maximize": False},
        "RMSprop": {"momentum": 0.0, "centered": False, "maximize": False},
        "Adagrad": {"lr_decay": 0.0, "initial_accumulator_value": 0.0, "maximize": False},
        "AdEMAMix": {},
    }
)
_ALGORITHM_OF = {
    "AdamW": "adamw",
    "Lion": "lion",
    "SGD": "sgd-momentum",
    "RMSprop": "rmsprop",
    "Adagrad": "adagrad",
    "AdEMAMix": "ademamix",
}
_PAGED = ("AdamW", "Lion", "AdEMAMix")
_GPUS = ("cuda", "xpu")
_BROKEN_ON_CPU = ("AdEMAMix32bit",)
"""0.50.2 raises there: its two moments in one tensor meet another shape."""

_TABLE = tuple(
    BitsAndBytes(
        algorithm,
        name,
        bits,
        paged=paged,
        fixed=_PLAIN[name],
        devices=_GPUS if f"{name}{bits}" in _BROKEN_ON_CPU else ("cpu", *_GPUS),
    )
    for name, algorithm in _ALGORITHM_OF.items()
    for bits in _FORMATS
    for paged in ((False, True) if name in _PAGED else (False,))
)

OPTIMIZERS: Mapping[str, BitsAndBytes] = MappingProxyType({each.name: each for each in _TABLE})
"""Every one of bitsandbytes' classes that computes a known algorithm, by name."""


def probe() -> dict[str, JsonValue]:
    """Return ``error``: why bitsandbytes cannot be imported; None: it can."""
    return import_error("bitsandbytes.optim")
