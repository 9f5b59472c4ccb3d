"""What ranks inherit from launchers, and the sign by which they tell that they have begun.

torchrun takes every one of its options from a variable ``PET_<OPTION>`` too (torch.distributed.argparse_util), and
libraries take a process for a rank where ``RANK`` is set. Inside a pod, or under another launcher, such variables
are meant for somebody else: processes of ours start without them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

STEERING_PREFIXES = (
    "MV2_COMM_WORLD_",
    "OMPI_COMM_WORLD_",
    "PET_",
    "PMIX_",
    "PMI_",
    "TORCHELASTIC_",
    "TORCH_ELASTIC_",
)
STEERING_NAMES = frozenset(
    {
        "CROSS_RANK",
        "CROSS_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_SIZE",
        "LOCAL_WORLD_SIZE",
        "LOGLEVEL",  # torchrun's loggers take it, and fail on a word that they do not know
        "MASTER_ADDR",
        "MASTER_PORT",
        "NODE_RANK",
        "PYTHON_EXEC",  # torchrun would start another interpreter
        "RANK",
        "ROLE_NAME",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
        "TORCH_WORKER_SERVER_SOCKET",
        "WORLD_SIZE",
    }
)
"""Variables that steer launchers, or say which rank of which world a process is."""

CONNECTING = ("GLOO_", "MASTER_", "NCCL_", "TORCH_", "TP_", "USE_LIBUV")
"""Beginnings of variables that stay, since users mean them, but decide whether ranks find each other."""

BEGUN = "OPTBENCH_BEGUN"
"""Names the folder in which every rank puts a file once its own code runs."""

BEGIN_S = 60.0
"""How long a world on this machine may take until its first rank runs: torchrun imports torch before."""

CONSEQUENCES = ("closed by peer", "Connection re", "Broken pipe")
"""What ranks say whose peer is gone."""

TAIL_LINES = 3


def steers(name: str) -> bool:
    """Say whether a variable steers launchers or their ranks."""
    return name in STEERING_NAMES or name.startswith(STEERING_PREFIXES)


def clean(base: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what steers launchers."""
    return {name: value for name, value in base.items() if not steers(name)}


def announce(rank: int | str) -> None:
    """Tell whoever started this rank that its code runs now."""
    folder = os.environ.get(BEGUN)
    if folder and Path(folder).is_dir():
        (Path(folder) / f"begun-{rank}").touch()


def begun(folder: Path) -> bool:
    """Say whether a rank of the world that was given the folder runs."""
    return any(folder.glob("begun-*"))


def announce_failure(rank: int | str, reason: str) -> None:
    """Tell whoever started this rank why it ends: in a file, since anybody may write to its output."""
    folder = os.environ.get(BEGUN)
    if folder and Path(folder).is_dir():
        (Path(folder) / f"failed-{rank}").write_text(reason, encoding="utf-8")


def failure(folder: Path) -> str | None:
    """Return the reason of the rank that failed first, if one has told; not that its peers were gone."""
    told = sorted(folder.glob("failed-*"), key=lambda each: each.stat().st_mtime_ns)
    reasons = [each.read_text(encoding="utf-8", errors="replace") for each in told]
    causes = [each for each in reasons if not any(words in each for words in CONSEQUENCES)]
    return next(iter(causes or reasons), None)


def not_begun(
    waited_s: float, where: str, environment: Mapping[str, str], log: Path | None, *, kept: bool = False
) -> str:
    """Return why a world is given up in which no rank has begun.

    Args:
        waited_s: since its start, in seconds.
        where: the place of the rendezvous.
        environment: of whoever started it.
        log: of torchrun; None: it has none.
        kept: the log stays where it is, so that it can be named.
    """
    removed = sorted(filter(steers, environment))
    connecting = sorted(
        f"{name}={value}"
        for name, value in environment.items()
        if name.startswith(CONNECTING) and not steers(name)
    )
    parts = [f"no rank began within {waited_s:.3g} s; torchrun's rendezvous: {where}"]
    if connecting:
        parts.append(f"variables that decide whether ranks find each other: {', '.join(connecting)}")
    if removed:
        parts.append(f"variables of another launcher, which were left out: {', '.join(removed)}")
    if log is not None and log.exists():
        name, last = str(log) if kept else "its log", tail(log)
        parts.append(f"{name} ends with: {last}" if last else f"{name} is empty")
    return "; ".join(parts)


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log as one, without empty ones and the command that it begins with."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    told = [line.strip()[:300] for line in text.splitlines() if line.strip() and not line.startswith("$ ")]
    return " | ".join(told[-lines:])
