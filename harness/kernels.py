"""Kernels that a library compiles on first use: built once, by one process, into a folder of the project's own.

Ranks never compile and never meet a lock file: they `load` what `ensure` built beforehand. Only the build process
and `load` import DeepSpeed; everything else works without torch.

    python -m harness.kernels ensure cpu_adam fused_adam
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING

import psutil

from harness import launching
from harness.cache import cache_dir
from harness.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import ModuleType


@dataclass(frozen=True)
class Kernel:
    """One extension of DeepSpeed's.

    Attributes:
        builder: class of deepspeed.ops.op_builder that compiles it.
        devices: torch device types that it exists for.
        seconds: what compiling takes on an idle core (measured), or on a usual GPU host (documented).
        on_host: it works on tensors in host memory, whatever the device.
    """

    builder: str
    devices: tuple[str, ...]
    seconds: int
    on_host: bool = False


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "fused_adam": Kernel("FusedAdamBuilder", ("cpu", "cuda", "xpu"), 45),
        "cpu_adam": Kernel("CPUAdamBuilder", ("cpu", "cuda", "xpu"), 45, on_host=True),
        "cpu_lion": Kernel("CPULionBuilder", ("cpu", "cuda"), 40, on_host=True),
        "cpu_adagrad": Kernel("CPUAdagradBuilder", ("cpu", "cuda", "xpu"), 40, on_host=True),
        "fused_lion": Kernel("FusedLionBuilder", ("cuda",), 60),
        "fused_lamb": Kernel("FusedLambBuilder", ("cuda",), 60),
        "deepspeed_shm_comm": Kernel("ShareMemCommBuilder", ("cpu",), 60),
    }
)
"""Name, as DeepSpeed calls the extension -> how it is built."""

STAMP = "built.json"
"""In a kernel's folder once it is built: tells its file."""
_POLL_S = 0.5


def default_device() -> str:
    """Return the device type that torch will use here, without importing it: cuda, xpu or cpu.

    A CUDA or ROCm build counts where the driver's device node exists too.
    """
    text = _torch_version_text()
    nodes = {"cuda": "/dev/nvidiactl", "hip": "/dev/kfd", "xpu": "/dev/dri"}
    for build, device in (("cuda", "cuda"), ("hip", "cuda"), ("xpu", "xpu")):
        if re.search(rf"^{build}\b[^=]*= '", text, re.MULTILINE) and Path(nodes[build]).exists():
            return device
    return "cpu"


def kernel_folder(device: str | None = None) -> Path:
    """Return where kernels for this interpreter, torch, DeepSpeed and processor are kept; it need not exist yet.

    Args:
        device: torch's device type; None: the default of this machine.
    """
    return cache_dir() / "kernels" / _key(device or default_device())


@functools.cache
def _key(device: str) -> str:
    """Return a name that differs wherever a built kernel cannot be loaded, or was built for other chips."""
    text = _torch_version_text()
    version = re.search(r"^__version__ = '([^']*)'", text, re.MULTILINE)
    readable = (
        f"torch{version.group(1) if version else '-none'}",
        _cxx11_abi(),
        sys.implementation.cache_tag,
        f"deepspeed{_version('deepspeed')}",
        platform.machine(),
        device,
    )
    # Extensions are compiled for the processor at hand (-march=native, the GPUs' compute capability), and a home
    # folder may be shared by unlike machines.
    details = [text, _processor_features(), os.environ.get("TORCH_CUDA_ARCH_LIST", "")]
    if device != "cpu":
        cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        details += sorted({line for card in cards for line in card.read_text().splitlines() if "Model" in line})
    digest = hashlib.sha256("\0".join([*readable, *details]).encode()).hexdigest()
    return "-".join((*readable, digest[:8]))


def _torch_folder() -> Path | None:
    found = importlib.util.find_spec("torch")  # finds a top-level package without importing it
    places = found.submodule_search_locations if found is not None else None
    return Path(next(iter(places))) if places else None


def _torch_version_text() -> str:
    """Return torch/version.py: version, git commit, CUDA, HIP and XPU of the build."""
    folder = _torch_folder()
    file = folder / "version.py" if folder else None
    return file.read_text(encoding="utf-8") if file and file.exists() else ""


def _cxx11_abi() -> str:
    """Return which of libstdc++'s ABIs torch was built with, from the names that its core library exports."""
    folder = _torch_folder()
    library = folder / "lib" / "libc10.so" if folder else None
    if library is None or not library.exists():
        return "abi-unknown"
    return "cxx11" if b"__cxx11" in library.read_bytes() else "pre-cxx11"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "-none"


def _processor_features() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    line = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return " ".join(sorted(line.group(1).split())) if line else ""


def built(name: str, device: str | None = None) -> Path | None:
    """Return the compiled extension's file, or None where it has not been built, or not to the end."""
    stamp = kernel_folder(device) / name / STAMP
    try:
        file = Path(json.loads(stamp.read_text(encoding="utf-8"))["file"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return file if file.exists() else None


def load(name: str, device: str | None = None) -> ModuleType:
    """Import a built kernel and hand it to DeepSpeed, so that it neither calls ninja nor takes a lock.

    Raises:
        UnsupportedError: where it has not been built.
    """
    file = built(name, device)
    if file is None:
        raise UnsupportedError(
            f"DeepSpeed's kernel {name} is not compiled yet; run python -m harness.kernels ensure {name}"
        )
    builder = importlib.import_module("deepspeed.ops.op_builder.builder").OpBuilder
    loaded: dict[str, ModuleType] = builder._loaded_ops  # noqa: SLF001  # where DeepSpeed looks before it builds
    if name not in loaded:
        found = importlib.util.spec_from_file_location(name, file)
        assert found is not None, "an extension's file name ends in .so"
        assert found.loader is not None, "and so it has a loader"
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        loaded[name] = module
    return loaded[name]


def ensure(
    names: Sequence[str], announce: Callable[[str], None], device: str | None = None
) -> dict[str, str | None]:
    """Build what is not built yet, while other optbench processes wait.

    Args:
        names: keys of KERNELS.
        announce: gets one line at a time, about what is built, how long it usually takes, and who is waited for.
        device: torch's device type that the kernels are for; None: the default of this machine.

    Returns:
        For each name None, or why it could not be built, with the file that holds the compiler's output.
    """
    device = device or default_device()
    results: dict[str, str | None] = {name: _unknown(name, device) for name in names}

    def missing() -> list[str]:
        return [name for name, error in results.items() if error is None and built(name, device) is None]

    if not missing():
        return results
    folder = kernel_folder(device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, announce):
            waiting = missing()  # another process may have built them meanwhile
            for name in waiting:
                _clear(folder / name, announce)
            if waiting:
                results |= _build_elsewhere(waiting, device, folder, announce)
    except OSError as error:
        reason = (
            f"the kernel cache {folder} cannot be written: {error.strerror}; set OPTBENCH_CACHE to another folder"
        )
        results |= dict.fromkeys(missing(), reason)
    return results


def _unknown(name: str, device: str) -> str | None:
    kernel = KERNELS.get(name)
    if kernel is None:
        return f"no kernel is called {name}; known: {', '.join(KERNELS)}"
    if device not in kernel.devices:
        return f"DeepSpeed has no {name} kernel for {device}"
    return None


@contextlib.contextmanager
def _alone(folder: Path, announce: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock; it dies with its holder, so that it is never stale."""
    with (folder / "building").open("a+", encoding="utf-8") as file:
        announced = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not announced:
                    announce(f"Waiting for another optbench process that compiles kernels{_holder(folder)}")
                    announced = True
                time.sleep(_POLL_S)
        file.truncate(0)
        file.write(f"{platform.node()} {os.getpid()}\n")
        file.flush()
        yield


def _holder(folder: Path) -> str:
    words = (folder / "building").read_text(encoding="utf-8").split()
    return f" (process {words[1]} on {words[0]})" if len(words) == 2 else ""


def _clear(folder: Path, announce: Callable[[str], None]) -> None:
    """Remove what a killed build left: nobody else builds here while we hold the lock."""
    if not folder.exists():
        return
    if (folder / "lock").exists():
        announce(f"Removing the stale lock of a build that was killed: {folder / 'lock'}")
    shutil.rmtree(folder)


def _build_elsewhere(
    names: Sequence[str], device: str, folder: Path, announce: Callable[[str], None]
) -> dict[str, str | None]:
    """Run the build process and pass its progress on."""
    minutes = max(1, round(sum(KERNELS[name].seconds for name in names) / 2 / 60))
    announce(
        f"Compiling {', '.join(names)} for DeepSpeed, once, into {folder} "
        f"(usually about {minutes} min on 2 idle cores, several times that on busy ones)"
    )
    log = folder / "build.log"
    environment = {
        **launching.clean(os.environ),
        "TORCH_EXTENSIONS_DIR": str(folder),
        "DS_ACCELERATOR": device,
        # ninja is installed beside the interpreter, whose environment need not be activated.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")])
        ),
    }
    reading, writing = os.pipe()  # not standard output, to which whatever is imported may print
    words = [str(os.getpid()), str(writing), device, *names]
    results: dict[str, str | None] = {}
    with (
        os.fdopen(reading, encoding="utf-8") as reports,
        log.open("w", encoding="utf-8") as output,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.kernel_builder", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(writing,),
            process_group=0,  # with its compilers, so that all can be ended together
        ) as process,
    ):
        try:
            os.close(writing)  # the builder's copy is the last: its end ends the reading
            for line in reports:
                name, error = _report(line, folder, announce)
                results[name] = error
            process.wait()
        finally:  # Ctrl-C included: the group does not get the terminal's signal
            if process.poll() is None:
                process.send_signal(signal.SIGSTOP)  # so that it starts nothing meanwhile
                kill_below(process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    reason = f"the build process ended with status {process.returncode}; its output: {log}"
    return {name: results.get(name, reason) for name in names}


def _report(line: str, folder: Path, announce: Callable[[str], None]) -> tuple[str, str | None]:
    told = json.loads(line)
    name, error = str(told["name"]), told["error"]
    if error is None:
        announce(f"Compiled {name} in {told['seconds']:.0f} s")
        return name, None
    log = folder / f"{name}.log"
    output = f"; the compiler's output: {log}" if log.exists() else ""
    reason = f"DeepSpeed's kernel {name} could not be built: {error}{output}"
    announce(reason)
    return name, reason


def kill_below(pid: int) -> None:
    """Kill what a process has started, and they in turn: ninja gives each compiler a process group of its own."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        doomed: list[psutil.Process] = []
        while found := [each for each in root.children(recursive=True) if each not in doomed]:
            for each in found:
                with contextlib.suppress(psutil.Error):
                    each.suspend()  # first all of them, so that none starts another meanwhile
            doomed += found
        for each in doomed:
            with contextlib.suppress(psutil.Error):
                each.kill()


def main(words: Sequence[str], output: IO[str]) -> int:
    """Run ``ensure NAME…``."""
    verb, *names = words or ["help"]
    if verb != "ensure" or not names:
        print(f"usage: python -m harness.kernels ensure NAME…  (names: {', '.join(KERNELS)})", file=output)
        return 2
    try:
        errors = ensure(names, lambda line: print(line, file=output, flush=True))
    except KeyboardInterrupt:
        return 130
    for error in filter(None, errors.values()):
        print(error, file=output)
    return 1 if any(errors.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stderr))
