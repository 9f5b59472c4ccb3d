"""What a machine lacks, what that costs, and the command that brings it."""

from __future__ import annotations

import platform
import shutil
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from harness import nvml
from harness.cgroup import ROOT
from harness.installing import install

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.machine import Machine


THIRD_PARTY = ("torchao", "bitsandbytes", "heavyball", "pytorch-optimizer", "schedulefree")
"""Distributions that the extra of that name installs."""


class Missing(BaseModel):
    """A part that would let more run, or say more."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    part: str
    why: str
    remedy: str


def missing(machine: Machine, root: Path = ROOT) -> Iterator[Missing]:
    """Yield each part that is absent, what it costs and the command that brings it.

    Args:
        machine: what the probe found.
        root: of the file system whose device files tell of a GPU.
    """
    if machine.torch is None:
        error = machine.torch_build.get("error")
        why = f"nothing can run: {error}" if error else "nothing can run"
        yield Missing(part="torch", why=why, remedy="pip install torch  (https://pytorch.org/get-started)")
    if machine.compilers.get("c++") is None:
        yield Missing(
            part="C++ compiler",
            why="compiled optimizers and DeepSpeed's kernels cannot be built",
            remedy=_install("g++", darwin="xcode-select --install"),
        )
    if machine.compilers.get("ninja") is None:
        yield Missing(
            part="ninja", why="DeepSpeed's and Apex's kernels cannot be built", remedy="pip install ninja"
        )
    if machine.packages.get("deepspeed") is None:
        yield Missing(part="DeepSpeed", why="its optimizers cannot run", remedy=install("deepspeed"))
    if absent := [name for name in THIRD_PARTY if machine.packages.get(name) is None]:
        yield Missing(part=", ".join(absent), why="their optimizers cannot run", remedy=install("third-party"))
    yield from _missing_for_gpus(machine, root)
    if shutil.which("git") is None:
        yield Missing(part="git", why="records carry no commit", remedy=_install("git"))


def _missing_for_gpus(machine: Machine, root: Path) -> Iterator[Missing]:
    nvidia = next(root.glob("dev/nvidia[0-9]*"), None) is not None
    on_cuda = machine.device_type == "cuda" and machine.torch_build.get("hip") is None
    if nvidia and machine.torch is not None and not machine.accelerators:
        built = machine.torch_build.get("cuda")
        why = "torch is built without CUDA" if built is None else f"torch, built for CUDA {built}, cannot use it"
        yield Missing(
            part="a torch that sees the NVIDIA GPU",
            why=f"runs use the CPU: {why}",
            remedy="install the build that fits the driver: https://pytorch.org/get-started",
        )
    if not on_cuda:
        return  # Apex and NVML have nothing to work with
    if machine.packages.get("apex") is None:
        yield Missing(
            part="NVIDIA Apex",
            why="its optimizers cannot run",
            remedy="build it from https://github.com/NVIDIA/apex with APEX_CPP_EXT=1 APEX_CUDA_EXT=1; "
            "the index's package apex is a different project",
        )
    if machine.compilers.get("nvcc") is None:
        yield Missing(
            part="nvcc",
            why="CUDA kernels of DeepSpeed and Apex cannot be built",
            remedy="install the CUDA toolkit of torch's CUDA version and set CUDA_HOME",
        )
    with nvml.loaded() as library:
        if library is None:
            yield Missing(
                part="NVML",
                why="no power, energy, clocks or temperature",
                remedy="make libnvidia-ml.so.1 visible (containers: NVIDIA_DRIVER_CAPABILITIES=utility)",
            )


def _install(package: str, darwin: str | None = None) -> str:
    """Return the command that installs a system package with the manager that is here."""
    if platform.system() == "Darwin":
        return darwin or f"brew install {package}"
    managers = {"apt-get": "apt-get install", "dnf": "dnf install", "apk": "apk add", "zypper": "zypper install"}
    names = {"dnf": {"g++": "gcc-c++"}, "zypper": {"g++": "gcc-c++"}}
    for manager, words in managers.items():
        if shutil.which(manager):
            return f"{words} {names.get(manager, {}).get(package, package)}"
    return f"install {package} with the system's package manager"
