"""How a process becomes a rank: one copy for runs, counts, proofs, comparisons and the bandwidth measurement.

`begin` comes first, without torch; `enter` sets up torch, the device and the process group as a run has them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
from typing import TYPE_CHECKING

from harness import launching, user_path
from harness.errors import UnsupportedError
from harness.interfaces import World
from harness.registry import strategy

if TYPE_CHECKING:
    from datetime import timedelta

    import torch

    from harness.spec import RunSpec

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def begin() -> None:
    """Be a rank from now on: end with torchrun, tell that this code runs, find the user's modules, dump stacks.

    Imports no torch.
    """
    die_with_parent()
    launching.announce(number("RANK", 0))
    user_path.extend()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the launcher asks a hanging rank where it is


def die_with_parent() -> None:
    """Ask Linux to kill this rank when torchrun dies, whatever kills it; elsewhere torchrun must do so."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os.kill(os.getpid(), signal.SIGKILL)


def number(variable: str, default: int) -> int:
    """Return the number that torchrun has set a variable to; ``default``: there was no torchrun."""
    return int(os.environ.get(variable, default))


def enter(spec: RunSpec, timeout: timedelta | None = None) -> World:
    """Set up this rank as a run of the spec has it: threads, arithmetic, device, process group.

    In a process that has joined already, the process group stays as it is.

    Args:
        spec: resolved.
        timeout: of a collective; None: torch's own.

    Raises:
        UnsupportedError: the spec asks for an accelerator and this process sees none.
    """
    import torch

    torch.set_num_threads(spec.threads or 1)
    joined = join(spec.device, together=not strategy(spec.strategy).one_rank, timeout=timeout)
    arithmetic(spec)
    return joined


def join(kind: str | None, *, together: bool = True, timeout: timedelta | None = None) -> World:
    """Find this rank's device and join the others.

    Args:
        kind: ``accelerator``, or the CPU.
        together: False: the strategy is for one rank, which needs no process group.
        timeout: of a collective; None: torch's own.

    Raises:
        UnsupportedError: an accelerator is asked for and this process sees none.
    """
    import torch.distributed as dist

    local_rank = number("LOCAL_RANK", 0)
    device = _device(kind, local_rank)
    if not together:
        return World(0, 1, local_rank, device, None)
    size, rank = number("WORLD_SIZE", 1), number("RANK", 0)
    if size == 1 and "MASTER_ADDR" not in os.environ:  # started without torchrun
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    backend = dist.get_default_backend_for_device(device)
    if not dist.is_initialized():
        bound = device if device.type != "cpu" else None
        dist.init_process_group(backend, timeout=timeout, device_id=bound)
    return World(rank, size, local_rank, device, backend)


def _device(kind: str | None, local_rank: int) -> torch.device:
    import torch

    if kind != "accelerator":
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        raise UnsupportedError("this process sees no accelerator; run optbench doctor, or use --device cpu")
    torch.accelerator.set_device_index(local_rank)
    return torch.device(found.type, local_rank)


def arithmetic(spec: RunSpec) -> None:
    """Fp32 means fp32: TF32 in matrix products and convolutions under ``tf32`` only."""
    import torch

    tf32 = spec.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
