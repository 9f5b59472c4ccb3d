"""What ran where: hardware, software, settings, source. A fact that cannot be had is None and costs no other."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import harness
from harness import cgroup, nvml, system, user_path
from harness.cgroup import ROOT
from harness.record import Environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import JsonValue

    from harness.interfaces import World

    Questions = Mapping[str, Callable[[], JsonValue]]

GIT_TIMEOUT_S = 3.0

PORCELAIN = r"# branch\.\w|[12u] \S{2} "
"""How lines of ``git status --porcelain=v2`` begin; a wrapper of git may print others."""

COMMAND = "OPTBENCH_COMMAND"
"""Carries the words of the command line that started the run, as a JSON list, to the ranks."""

PREFIXES = (
    "ACCELERATE_",
    "ATEN_",
    "CUBLAS_",
    "CUDA_",
    "CUDNN_",
    "DEEPSPEED_",
    "DNNL_",
    "DS_",
    "GLOO_",
    "GOMP_",
    "HIP_",
    "HSA_",
    "KMP_",
    "MALLOC_",
    "MIOPEN_",
    "MKL_",
    "NCCL_",
    "NUMEXPR_",
    "NVIDIA_TF32_",
    "NVIDIA_VISIBLE_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "PYTORCH_",
    "RCCL_",
    "ROCR_",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "TORCH_",
    "TRITON_",
    "XPU_",
    "ZE_",
)
"""Environment variables that steer libraries begin with one of these; no others are recorded."""

NAMES = ("LD_PRELOAD", "PYTHONHASHSEED", "PYTHONMALLOC", "PYTHONOPTIMIZE", "PYTHONSAFEPATH")

SECRET = re.compile("TOKEN|SECRET|PASS|CREDENTIAL|AUTH|PRIVATE|KEY", re.IGNORECASE)
"""A variable with such a word in its name is never recorded, whatever it begins with."""


def capture(world: World | None = None) -> Environment:
    """Return the environment of this process. Imports torch.

    Args:
        world: the rank that asks; None: a process of its own.
    """
    import torch  # a reader of records need not have it

    with warnings.catch_warnings(), nvml.loaded() as library:
        warnings.simplefilter("ignore")  # torch warns when asked for a flag that a later version renames
        return Environment(
            hardware={**answers(hardware()), **answers(_devices(torch, library))},
            software={**answers(software()), **answers(_torch_software(torch, library))},
            settings={**answers(settings()), **answers(_torch_settings(torch)), **_world(world)},
            source=answers(_source()),
            command=command(),
        )


def answers(questions: Questions) -> dict[str, JsonValue]:
    """Ask each question; one that fails is answered by None."""
    found: dict[str, JsonValue] = {}
    for name, ask in questions.items():
        try:
            found[name] = ask()
        except Exception:  # noqa: BLE001  # a fact that cannot be had must cost neither the run nor another fact
            found[name] = None
    return found


def command() -> tuple[str, ...]:
    """Return the words that started the run: the launcher's, or those of this process."""
    try:
        words = json.loads(os.environ[COMMAND])
    except (KeyError, ValueError):
        return tuple(sys.argv)
    return tuple(map(str, words)) if isinstance(words, list) else tuple(sys.argv)


def hardware(root: Path = ROOT) -> Questions:
    """Return the questions about processor and memory.

    Args:
        root: of the file system whose /proc and /sys are read.
    """
    cpu = root / "sys/devices/system/cpu"
    return {
        "hostname": socket.gethostname,
        "architecture": platform.machine,
        "cpu": lambda: system.cpu_model(root),
        "cpus_logical": psutil.cpu_count,
        "cores_physical": lambda: psutil.cpu_count(logical=False),
        "cores_usable": lambda: system.cores_usable(root),
        "sockets": lambda: _sockets(root),
        "numa_nodes": lambda: len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or None,
        "cpu_max_hz": lambda: int(_read(cpu / "cpu0/cpufreq/cpuinfo_max_freq")) * 1000,
        "smt": lambda: _read(cpu / "smt/active") == "1",
        "virtual": lambda: _has_flag(root, "hypervisor"),
        "memory_bytes": lambda: int(psutil.virtual_memory().total),
        "memory_usable_bytes": lambda: system.memory_usable(root),
        "swap_bytes": lambda: int(psutil.swap_memory().total),
    }


def software() -> Questions:
    """Return the questions about Python, the operating system and packages."""
    return {
        "optbench": lambda: harness.__version__,
        "python": platform.python_version,
        "python_build": lambda: sys.version,
        "python_executable": lambda: sys.executable,
        "system": platform.system,
        "kernel": platform.release,
        "distribution": lambda: platform.freedesktop_os_release()["PRETTY_NAME"],
        "libc": lambda: os.confstr("CS_GNU_LIBC_VERSION"),
        "packages": lambda: {name: version for name, version in system.packages().items() if version is not None},
    }


def settings(root: Path = ROOT) -> Questions:
    """Return the questions about what steers speed outside of torch.

    Args:
        root: of the file system whose /proc and /sys are read.
    """
    return {
        "affinity": lambda: list(system.affinity_mask()),
        "cgroup_quota_cores": lambda: cgroup.cpu_quota(root),
        "cgroup_memory_limit_bytes": lambda: cgroup.memory_limit_bytes(root),
        "governor": lambda: governor(root),
        "turbo": lambda: turbo(root),
        "transparent_hugepages": lambda: _chosen(_read(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        "niceness": lambda: os.getpriority(os.PRIO_PROCESS, 0),
        "variables": lambda: dict(variables(os.environ)),
    }


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that steer libraries, by an allow-list; never one whose name sounds like a secret."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if (name in NAMES or name.startswith(PREFIXES)) and not SECRET.search(name)
    }


def governor(root: Path = ROOT) -> str | None:
    """Return the frequency governors in use, joined by ``+`` where cores differ; None: nothing is scaled."""
    policies = (root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_governor")
    return "+".join(sorted({_read(path) for path in policies})) or None


def turbo(root: Path = ROOT) -> bool | None:
    """Return whether cores may exceed their base frequency; None: the kernel does not say."""
    cpu = root / "sys/devices/system/cpu"
    for file, enabled in ((cpu / "intel_pstate/no_turbo", "0"), (cpu / "cpufreq/boost", "1")):
        if file.is_file():
            return _read(file) == enabled
    return None


def git_state(folder: Path) -> dict[str, JsonValue] | None:
    """Return commit, branch and whether tracked files differ from it; None: no repository, or git failed.

    Args:
        folder: anywhere inside the work tree.
    """
    words = ["git", "-C", str(folder), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_TIMEOUT_S,
            env=environment,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line for line in done.stdout.splitlines() if re.match(PORCELAIN, line)]
    heads = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch."))
    commit, branch = heads.get("branch.oid"), heads.get("branch.head")
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "dirty": any(not line.startswith("#") for line in lines),
    }


def _source() -> Questions:
    own = Path(harness.__file__).resolve().parents[1]
    user = Path(os.environ.get(user_path.VARIABLE) or Path.cwd())
    return {
        "optbench_version": lambda: harness.__version__,
        # An installed package may lie inside somebody else's repository, whose state says nothing about it.
        "optbench": lambda: git_state(own) if (own / ".git").exists() else None,
        "folder": lambda: str(user),
        "user": lambda: git_state(user),
    }


def _torch_software(torch: Any, library: nvml.Library | None) -> Questions:
    return {
        "torch": lambda: str(torch.__version__),
        "torch_git": lambda: torch.version.git_version,
        "torch_config": lambda: torch.__config__.show().splitlines(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability,
        "cuda": lambda: torch.version.cuda,
        "hip": lambda: torch.version.hip,
        "xpu": lambda: torch.version.xpu,
        "cudnn": torch.backends.cudnn.version,
        "nccl": lambda: ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else None,
        "driver": lambda: library.ask("SystemGetDriverVersion") if library else _driver(),
        "driver_cuda": lambda: library.ask("SystemGetCudaDriverVersion_v2") if library else None,
    }


def _torch_settings(torch: Any) -> Questions:
    backends = torch.backends
    return {
        "threads": torch.get_num_threads,
        "interop_threads": torch.get_num_interop_threads,
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "default_dtype": lambda: str(torch.get_default_dtype()),
        "cuda_matmul_allow_tf32": lambda: backends.cuda.matmul.allow_tf32,
        "cudnn_allow_tf32": lambda: backends.cudnn.allow_tf32,
        "cuda_matmul_bf16_reduced_reduction": lambda: bool(
            backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        ),
        "cudnn_benchmark": lambda: backends.cudnn.benchmark,
        "cudnn_deterministic": lambda: backends.cudnn.deterministic,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
        "onednn": lambda: backends.mkldnn.enabled,
        "start_method": lambda: torch.multiprocessing.get_start_method(allow_none=True),
    }


def _world(world: World | None) -> dict[str, JsonValue]:
    if world is None:
        return {}
    return {"world_size": world.size, "backend": world.backend, "device": str(world.device)}


def _devices(torch: Any, library: nvml.Library | None) -> Questions:
    return {"accelerators": lambda: _accelerators(torch, library)}


def _accelerators(torch: Any, library: nvml.Library | None) -> list[JsonValue]:
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator().type
    return [
        answers(_accelerator(torch, library, torch.device(kind, index)))
        for index in range(torch.accelerator.device_count())
    ]


def _accelerator(torch: Any, library: nvml.Library | None, device: Any) -> Questions:
    properties = torch.get_device_module(device.type).get_device_properties(device)
    handle = library.device(device) if library and device.type == "cuda" and torch.version.hip is None else None

    def ask(what: str, *arguments: Any) -> Any:
        return library.ask(f"DeviceGet{what}", handle, *arguments) if library and handle is not None else None

    def clock(kind: str) -> int | None:
        megahertz = ask("MaxClockInfo", getattr(library.binding, kind)) if library else None
        return None if megahertz is None else int(megahertz) * 1_000_000

    def limit() -> float | None:
        milliwatts = ask("PowerManagementLimit")
        return None if milliwatts is None else milliwatts / 1000

    return {
        "type": lambda: device.type,
        "index": lambda: device.index,
        "name": lambda: str(properties.name),
        "uuid": lambda: str(properties.uuid),
        "memory_bytes": lambda: int(properties.total_memory),
        "capability": lambda: f"{properties.major}.{properties.minor}",
        "multiprocessors": lambda: int(properties.multi_processor_count),
        "max_sm_clock_hz": lambda: clock("NVML_CLOCK_SM"),
        "max_memory_clock_hz": lambda: clock("NVML_CLOCK_MEM"),
        "power_limit_watts": limit,
        "persistence": lambda: None if (mode := ask("PersistenceMode")) is None else bool(mode),
        "ecc": lambda: None if (modes := ask("EccMode")) is None else bool(modes[0]),
    }


def _driver() -> str | None:
    found = re.search(r"Kernel Module\D*(\d[\d.]*)", _read(Path("/proc/driver/nvidia/version")))
    return found[1] if found else None


def _sockets(root: Path) -> int | None:
    packages = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology/physical_package_id")
    return len({_read(path) for path in packages}) or None


def _has_flag(root: Path, flag: str) -> bool | None:
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return flag in found[1].split() if found else None


def _chosen(text: str) -> str | None:
    """Return the word in brackets, the kernel's mark of the choice that holds."""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else None


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()
