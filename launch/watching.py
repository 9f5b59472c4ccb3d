"""What the machine does beside an arm's turn: its load, stolen time, clocks, and what holds them down."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import nvml
from harness.comparison.model import Turn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from harness.comparison.model import Arm
    from launch.arms import Arms

CPUS = Path("/sys/devices/system/cpu")
WATCHED_CPUS = 64
"""Clocks are read of so many at most: each costs a file."""

HELD_DOWN = ("hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake")
"""Reasons that are the machine's trouble. A power cap is part of what an arm's own work costs."""


class Machine:
    """The cores that this process may use and the devices, from Linux's own counters and NVML's; a context.

    Args:
        arms: whose devices are watched.
        root: of the CPUs' folders.
        stat: file of their counters.

    Attributes:
        cores: how many.
    """

    def __init__(self, arms: Sequence[Arm] = (), root: Path = CPUS, stat: Path = Path("/proc/stat")) -> None:
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
        self._root, self._stat = root, stat
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        self._names = {f"cpu{number}" for number in usable}
        self.cores = len(self._names)
        self._ranks = max((arm.spec.world_size or 1 for arm in arms if arm.spec.device != "cpu"), default=0)
        self._library: nvml.Library | None = None
        self._devices: list[Any] = []

    def __enter__(self) -> Self:
        self._library = nvml.load() if self._ranks else None
        if self._library is not None:
            found = (_device(self._library, number) for number in range(self._ranks))
            self._devices = [each for each in found if each is not None]
        return self

    def __exit__(self, *_: object) -> None:
        if self._library is not None:
            self._library.close()

    def _counters(self) -> list[int]:
        """Return the counters of the cores that this process may use, added up."""
        found = [0] * 8
        try:
            with self._stat.open(encoding="ascii") as file:
                for line in file:
                    name, *fields = line.split()
                    if name in self._names:
                        found = [total + int(each) for total, each in zip(found, fields, strict=False)]
        except (OSError, ValueError):
            return [0] * 8
        return found

    def now(self) -> tuple[float, float]:
        """Return the seconds, since the machine started, that those cores were busy and that were stolen."""
        user, nice, system, _, _, irq, soft, steal = self._counters()
        return (user + nice + system + irq + soft) * self._tick_s, steal * self._tick_s

    def clock_hz(self) -> float | None:
        """Return the slowest watched GPU's SM clock, or the fastest CPU's; None: neither tells."""
        if self._library is not None and self._devices:
            binding = self._library.binding
            clocks = [
                self._library.ask("DeviceGetClockInfo", each, binding.NVML_CLOCK_SM) for each in self._devices
            ]
            return min((1e6 * each for each in clocks if each is not None), default=None)
        clocks = []
        for number in range(min(os.cpu_count() or 1, WATCHED_CPUS)):
            with contextlib.suppress(OSError, ValueError):
                clocks.append(1e3 * int((self._root / f"cpu{number}/cpufreq/scaling_cur_freq").read_text()))
        return max(clocks, default=None)

    def held_down(self) -> tuple[str, ...]:
        """Return why a watched GPU's clocks are held down just now, of `HELD_DOWN`."""
        if self._library is None:
            return ()
        bits = 0
        for each in self._devices:
            now = self._library.ask("DeviceGetCurrentClocksEventReasons", each)
            if now is None:  # the name before driver 535
                now = self._library.ask("DeviceGetCurrentClocksThrottleReasons", each)
            bits |= now or 0
        return tuple(name for name in HELD_DOWN if bits & nvml.REASONS[name])


def _device(library: nvml.Library, number: int) -> Any:
    """Return the handle of the so-manieth device that ranks can see; None: NVML does not know it.

    CUDA's own order may differ from NVML's where models are mixed; to be exact there, set
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    words = visible.split(",") if visible else []
    if words and number >= len(words):
        return None
    word = words[number].strip() if words else str(number)
    if word.isdecimal():
        return library.ask("DeviceGetHandleByIndex", int(word))
    return library.ask("DeviceGetHandleByUUID", word)


def turn_of(
    arms: Arms, machine: Machine, index: int, where: Mapping[str, int], lead: int, steps: int, origin_s: float
) -> tuple[Turn, list[float | None]]:
    """Give an arm the baton; return its turn, and the losses of all its steps.

    Args:
        arms: launched.
        machine: watched during the turn.
        index: of the arm.
        where: ``round`` and ``position``.
        lead: steps before the clock runs.
        steps: timed ones.
        origin_s: the comparison's start on the monotonic clock.

    Raises:
        ArmError: it failed, or did not answer in time.
    """
    started, (busy, stolen) = time.monotonic(), machine.now()
    found = arms.turn(index, lead, steps)
    took, (busy_after, stolen_after) = time.monotonic() - started, machine.now()
    own = found["cpu_time_s"] * (lead + steps)
    made = Turn(
        arm=index,
        **where,
        started_s=started - origin_s,
        step_time_s=tuple(found["step_time_s"]),
        phase_s=found["phase_s"],
        cpu_time_s=found["cpu_time_s"],
        involuntary_switches=found["involuntary_switches"],
        took_s=took,
        steal_s=stolen_after - stolen,
        other_load=max(0.0, busy_after - busy - own) / took,
        clock_hz=machine.clock_hz(),
        held_down=machine.held_down(),
    )
    return made, found["losses"]
