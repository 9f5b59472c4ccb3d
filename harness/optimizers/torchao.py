"""torchao's optimizers: AdamW with its moments in few bits, and AdamW on the host for parameters on a GPU.

The low-bit classes compile their step when it first runs, once for each shape of a parameter. Tensors of fewer
than 4096 elements, or whose number of elements is no multiple of the block size, keep their moments in float32.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.optimizers.construct import construct, torch_groups
from harness.optimizers.implementation import device_type
from harness.optimizers.third_party import ThirdParty, import_error, no_compiler
from harness.registry import load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from harness.interfaces import ParamGroup, WorkloadTraits
    from harness.machine import Machine
    from harness.spec import RunSpec

_PLAIN_ADAM: dict[str, JsonValue] = {"maximize": False}


class LowBit(ThirdParty):
    """AdamW with both moments in codes of few bits, each block of elements with a float32 scale of its own.

    Args:
        word: the part of the name after the slash.
        class_name: in torchao.optim.
        code_bytes: of one element.
        block: elements that share a scale, unless the option says otherwise.
        dtype: of the codes.
    """

    package = family = "torchao"

    def __init__(self, word: str, class_name: str, code_bytes: float, block: int, dtype: str) -> None:
        super().__init__(
            "adamw",
            word,
            f"torchao.optim:{class_name}",
            fixed=_PLAIN_ADAM,
            more={"block_size": block, "bf16_stochastic_round": False},
            traits={
                "state_bytes": 2 * (code_bytes + 4 / block),
                "state_dtypes": (dtype,),
                "state_follows_parameters": False,
                "compiled": True,
            },
        )

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return what is missing: the package, or what torch.compile needs."""
        return super().unavailable(spec, machine) or no_compiler(spec, machine, self.name)

    def disproved(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Say so where every tensor was too small for its moments to be quantised."""
        from torch.distributed.tensor import DTensor

        for kept in optimizer.state.values():
            moment = kept.get("exp_avg")
            local = moment.to_local() if isinstance(moment, DTensor) else moment
            if hasattr(local, "codes"):
                return None
        return (
            "no moment was quantised: each tensor has fewer than 4096 elements, or a number of them that is no "
            "multiple of block_size; use adamw/foreach, or a larger size of the workload"
        )


class Offloaded(ThirdParty):
    """torch's AdamW on the host, fused, for parameters on one GPU.

    Gradients go to the host while backward runs, hence before anything averages, clips or unscales them.
    """

    package = family = "torchao"

    def __init__(self) -> None:
        super().__init__(
            "adamw",
            "torchao-cpu-offload",
            "torchao.optim:CPUOffloadOptimizer",
            more={"minimal_size": 4096},
            traits={"dtensor": "no", "gradients_in_backward": True},
        )

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return what is missing: the package, or a GPU to offload from."""
        device = device_type(spec, machine)
        if device not in {"cuda", "xpu"}:
            return f"torchao offloads from a CUDA or XPU device, and this run is on {device}; use adamw/fused"
        return super().unavailable(spec, machine)

    def unsupported(self, spec: RunSpec, workload: WorkloadTraits, machine: Machine) -> str | None:
        """Refuse, beside what every implementation does, what would change gradients after they were copied."""
        early = "copies each gradient to the host while backward runs"
        if (reason := super().unsupported(spec, workload, machine)) is not None:
            return reason
        if workload.optimizer_only:
            return f"{self.name} {early}, and {spec.workload} has no backward; use adamw/fused"
        if spec.strategy != "single":
            return f"{self.name} {early}, before any strategy averages it over ranks; use --strategy single"
        if spec.clip_norm is not None:
            return f"{self.name} {early}, before it is clipped; leave clip_norm out, or use adamw/fused"
        if spec.precision == "fp16":
            return f"{self.name} {early}, before its scale is taken out; use --precision bf16"
        return None

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Construct it around torch's fused AdamW, which works on the host here."""
        chosen = self.hyperparameters(spec)
        listed = torch_groups(groups, chosen["lr"], chosen["weight_decay"])
        own = {
            "optimizer_class": load("torch.optim:AdamW"),
            "offload_gradients": False,  # would drop them between micro-batches
            "minimal_size": chosen.pop("minimal_size"),
        }
        flags: dict[str, Any] = {"foreach": False, "fused": True, "capturable": False, "differentiable": False}
        cls: type[torch.optim.Optimizer] = load(self.target)
        return construct(cls, listed, **own, **chosen, **flags)


_TABLE: tuple[ThirdParty, ...] = (
    LowBit("torchao-8bit", "AdamW8bit", 1, 256, "uint8"),
    LowBit("torchao-4bit", "AdamW4bit", 0.5, 128, "uint4"),
    LowBit("torchao-fp8", "AdamWFp8", 1, 256, "float8_e4m3fn"),
    Offloaded(),
)

OPTIMIZERS: Mapping[str, ThirdParty] = MappingProxyType({each.name: each for each in _TABLE})
"""Every one of torchao's classes, by name."""


def probe() -> dict[str, JsonValue]:
    """Return ``error``: why torchao's optimizers cannot be imported; None: they can."""
    return import_error("torchao.optim")
