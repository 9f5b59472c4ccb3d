"""Whether the kernel killed for memory: counters that rise by one for each victim."""

from __future__ import annotations

from pathlib import Path


def count(root: Path = Path("/")) -> int | None:
    """Return the out-of-memory kills seen by this process's cgroup, else by the machine; None: not told.

    Args:
        root: where /proc and /sys are mounted.
    """
    own = _cgroup_kills(root)
    machine = _field(root / "proc/vmstat", "oom_kill")
    known = [value for value in (own, machine) if value is not None]
    return sum(known) if known else None  # both rise; only the difference is looked at


def _cgroup_kills(root: Path) -> int | None:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2: one hierarchy
            found = _field(root / "sys/fs/cgroup" / path.lstrip("/") / "memory.events", "oom_kill")
        elif "memory" in controllers.split(","):
            found = _field(root / "sys/fs/cgroup/memory" / path.lstrip("/") / "memory.oom_control", "oom_kill")
        else:
            continue
        if found is not None:
            return found
    return None


def _field(path: Path, name: str) -> int | None:
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == name), None)
