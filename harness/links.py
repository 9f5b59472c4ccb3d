"""How fast collectives are between the ranks that this machine has: a torchrun world of its own, for some seconds.

Each rank runs this module as a program. Bandwidths are those of NCCL's own tests (NVIDIA/nccl-tests,
doc/PERFORMANCE.md): the algorithm bandwidth is the size of the whole tensor over the time; the bus bandwidth is
that times 2(N-1)/N for all-reduce and (N-1)/N for all-gather and reduce-scatter, N the number of ranks. That makes
it comparable with the hardware's, whatever N is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from harness import launching
from harness import world as joining
from harness.leaving import leave_world

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from harness.machine import Machine

Collective = Literal["all_reduce", "all_gather", "reduce_scatter"]
COLLECTIVES: tuple[Collective, ...] = get_args(Collective)

MESSAGE_BYTES = tuple(1 << power for power in (10, 14, 18, 22, 26))
"""1 KiB to 64 MiB: from latency to bandwidth."""

MEASURE_S, MOST_ROUNDS = 0.25, 200
"""For each collective and size: about so long, and so many times at most."""

LIMIT_S = 90.0
"""For the whole world, its start included, which takes seconds; past it the ranks are ended."""


class Rate(BaseModel):
    """One collective at one size."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    collective: Collective
    message_bytes: int
    """Of the whole tensor: what all-reduce is given, all-gather puts out, reduce-scatter takes in."""
    time_s: float
    """The slowest rank's mean of rounds done one after another."""
    algorithm_bandwidth_bytes_per_s: float
    bus_bandwidth_bytes_per_s: float


class Links(BaseModel):
    """What was measured between the present ranks."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    ranks: int
    device: Literal["cpu", "accelerator"]
    backend: str | None = None
    rates: tuple[Rate, ...] = ()
    reason: str | None = None
    """Why nothing was measured."""


def measure(machine: Machine, limit_s: float = LIMIT_S, base: Mapping[str, str] = os.environ) -> Links:
    """Start a rank on each accelerator, or two on the CPUs, and time their collectives; some ten seconds.

    Args:
        machine: what the probe found here.
        limit_s: for everything; past it the ranks are ended.
        base: the environment to start them in.
    """
    ranks = len(machine.accelerators) or 2
    device: Literal["cpu", "accelerator"] = "accelerator" if machine.accelerators else "cpu"

    def nothing(reason: str) -> Links:
        return Links(ranks=ranks, device=device, reason=reason)

    if machine.torch is None:
        return nothing("torch is missing: pip install torch")
    if ranks == 1:
        return nothing("one accelerator has nobody to exchange with")
    with tempfile.TemporaryDirectory(prefix="optbench-links-") as folder:
        found, log = Path(folder) / "links.json", Path(folder) / "log"
        told = _run(ranks, device, found, log, limit_s, base)
        if told is not None:
            return nothing(told)
        try:
            return Links.model_validate_json(found.read_bytes())
        except (OSError, ValidationError):
            return nothing("the ranks ended without a result")


def _run(ranks: int, device: str, found: Path, log: Path, limit_s: float, base: Mapping[str, str]) -> str | None:
    """Run the world to its end; return what went wrong, or None."""
    settings = {
        **launching.clean(base),
        launching.BEGUN: str(found.parent),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    if device == "cpu":
        settings["CUDA_VISIBLE_DEVICES"] = ""
        if sys.platform == "linux":
            settings.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: no name needs to be resolved
    words = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc-per-node={ranks}"]
    words += ["--max-restarts=0", "-m", "harness.links", device, str(found)]
    with log.open("wb") as output:
        world = subprocess.Popen(
            [sys.executable, *words],
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = world.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            if not launching.begun(found.parent):
                return launching.not_begun(limit_s, "torchrun's own choice (--standalone)", base, log)
            return f"not done after {limit_s:.0f} s"
        finally:
            _end(world)
    if code == 0:
        return None
    return _printable(launching.failure(found.parent) or _why(log, code))


def _end(world: subprocess.Popen[bytes]) -> None:
    """End torchrun, which ends its ranks; those that it leaves die with it."""
    for ask in (signal.SIGTERM, signal.SIGKILL):
        if world.poll() is not None:
            return
        world.send_signal(ask)
        with contextlib.suppress(subprocess.TimeoutExpired):
            world.wait(timeout=10)


def _why(log: Path, code: int) -> str:
    """Return the last error that the ranks wrote."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.strip() for line in lines if "Error" in line and "ChildFailedError" not in line]
    return errors[0].partition("]:")[2].strip() or errors[0] if errors else f"torchrun ended with code {code}"


def _printable(told: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in told)[:300]


def bus_share(collective: Collective, ranks: int) -> float:
    """Return the bus bandwidth of a collective over its algorithm bandwidth."""
    share = (ranks - 1) / ranks
    return 2 * share if collective == "all_reduce" else share


def main(device_kind: str, found: Path) -> None:
    """Be one rank: time every collective at every size; rank 0 writes what came out."""
    joining.begin()
    try:
        _timed(device_kind, found)
    except Exception as error:
        launching.announce_failure(joining.number("RANK", 0), f"{type(error).__name__}: {error}")
        raise


def _timed(device_kind: str, found: Path) -> None:
    world = joining.join(device_kind)
    ranks, device = world.size, world.device
    rates = []
    for collective in COLLECTIVES:
        for size in MESSAGE_BYTES:
            message_bytes = size // (4 * ranks) * 4 * ranks
            spent = _time(_collective(collective, message_bytes, ranks, device), device)
            rates.append(
                {
                    "collective": collective,
                    "message_bytes": message_bytes,
                    "time_s": spent,
                    "algorithm_bandwidth_bytes_per_s": message_bytes / spent,
                    "bus_bandwidth_bytes_per_s": message_bytes / spent * bus_share(collective, ranks),
                }
            )
    if world.rank == 0:
        document = {"ranks": ranks, "device": device_kind, "backend": world.backend, "rates": rates}
        found.write_text(json.dumps(document), encoding="utf-8")
    leave_world()


def _collective(
    collective: Collective, message_bytes: int, ranks: int, device: torch.device
) -> Callable[[], object]:
    """Return one round over a tensor of so many bytes in all, fp32."""
    import torch
    import torch.distributed as dist

    whole = torch.zeros(message_bytes // 4, device=device)
    part = torch.zeros(message_bytes // 4 // ranks, device=device)
    # Looked up: 2.13 renames the tensor forms, and warns of the old names.
    gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    rounds: dict[Collective, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: gather(whole, part),
        "reduce_scatter": lambda: scatter(part, whole),
    }
    return rounds[collective]


def _time(once: Callable[[], object], device: torch.device) -> float:
    """Return the mean seconds of a round on the slowest rank; rank 0 decides how many there are."""
    import torch
    import torch.distributed as dist

    def spent(rounds: int) -> float:
        dist.barrier()
        started = time.perf_counter()
        for _ in range(rounds):
            once()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        slowest = torch.tensor([(time.perf_counter() - started) / rounds], dtype=torch.float64, device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest)

    spent(1)  # connects
    estimate = spent(2)
    return spent(
        max(2, min(MOST_ROUNDS, int(MEASURE_S / estimate)))
    )  # the same on all: it came from an all-reduce


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
