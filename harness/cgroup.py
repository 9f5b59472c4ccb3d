"""What control groups, version 1 or 2, let this process use, and what they withheld.

Every function takes the root of the file system, so that a made-up tree can stand in for the machine's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
UNLIMITED_BYTES = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of the page size; no machine has an exabyte."""


@dataclass(frozen=True)
class Throttling:
    """How often and how long a CPU quota stopped the group.

    Attributes:
        periods: scheduling periods in which the quota ran out.
        seconds: summed over CPUs.
    """

    periods: int
    seconds: float


def folders(controller: str, root: Path = ROOT) -> list[Path]:
    """Return the folders in which ``controller`` governs this process: its own group first, then the groups above.

    Args:
        controller: ``cpu`` or ``memory``.
        root: of the file system.
    """
    paths = _group_paths(root)
    found: list[Path] = []
    for mount, top, names in _mounts(root):
        governs = controller in names or not names  # version 2 has one hierarchy for all controllers
        path = paths.get(controller if names else "") if governs else None
        if path is None:
            continue
        folder = mount / _relative(path, top)
        chain = [folder, *folder.parents]
        chain = chain[: chain.index(mount) + 1]
        found += [each for each in chain if each.is_dir()]
    return found


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the CPU time a second that the tightest group allows, in cores; None: no quota."""
    quotas = []
    for folder in folders("cpu", root):
        words = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us").strip(),
            _read(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """Return the tightest group's memory limit in bytes; None: no limit."""
    limits = []
    for folder in folders("memory", root):
        text = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
        if text.isdecimal() and 0 < int(text) < UNLIMITED_BYTES:
            limits.append(int(text))
    return min(limits, default=None)


def throttling(root: Path = ROOT) -> Throttling | None:
    """Return what CPU quotas have withheld since the groups were made; None where the kernel keeps no account.

    A group counts its own quota only, so the groups above are added.
    """
    periods, seconds, known = 0, 0.0, False
    for folder in folders("cpu", root):
        counts = _counts(folder / "cpu.stat")
        if "nr_throttled" in counts:
            known = True
            periods += counts["nr_throttled"]
            # version 2 counts microseconds, version 1 nanoseconds
            seconds += counts.get("throttled_usec", 0) * 1e-6 + counts.get("throttled_time", 0) * 1e-9
    return Throttling(periods, seconds) if known else None


def _group_paths(root: Path) -> dict[str, str]:
    """Return controller -> this process's group; version 2's under the empty name."""
    paths = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _mounts(root: Path) -> list[tuple[Path, str, frozenset[str]]]:
    """Return each mounted hierarchy: where, the group at its top, its controllers (none for version 2)."""
    found = []
    for line in _read(root / "proc/self/mountinfo").splitlines():
        head, dash, tail = line.partition(" - ")
        fields, kind = head.split(), tail.split()
        if not dash or len(fields) < 5 or not kind or kind[0] not in {"cgroup", "cgroup2"}:
            continue
        controllers = kind[2].split(",") if kind[0] == "cgroup" and len(kind) > 2 else []
        found.append((root / fields[4].lstrip("/"), fields[3], frozenset(controllers)))
    return found


def _relative(path: str, top: str) -> str:
    """Return a group's path below what is mounted.

    A container may see the host's path of its group but mount that group itself; then the mount is the group.
    """
    if ".." in path.split("/"):  # the group lies outside what this namespace may see
        return ""
    if top == "/":
        return path.lstrip("/")
    if path == top or path.startswith(f"{top}/"):
        return path[len(top) :].lstrip("/")
    return ""


def _counts(path: Path) -> dict[str, int]:
    """Read lines of ``name count``."""
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
