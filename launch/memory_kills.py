"""Whether the kernel killed for memory: counters that rise by one for each victim."""

from __future__ import annotations

from pathlib import Path

from harness.cgroup import folders


def count(root: Path = Path("/")) -> int | None:
    """Return the out-of-memory kills seen by this process's groups and by the machine; None: not told.

    A kill may count in several of them; callers look at differences only.

    Args:
        root: where /proc and /sys are mounted.
    """
    files = [
        folder / name for folder in folders("memory", root) for name in ("memory.events", "memory.oom_control")
    ]
    known = [value for path in (*files, root / "proc/vmstat") if (value := _kills(path)) is not None]
    return sum(known) if known else None


def _kills(path: Path) -> int | None:
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == "oom_kill"), None)
