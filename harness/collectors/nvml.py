"""What an NVIDIA GPU says of itself, through NVML, between turns: power, energy, clocks, throttling, company."""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING, Any

from harness import nvml
from harness.interfaces import Reading
from harness.record import MetricInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from harness.interfaces import Observed, StepResult

    Number = float | int | None

ENERGY = MetricInfo(name="energy_joules", unit="J", better="lower", across_ranks="sum")
"""From before the first step to after the last, checks and evaluations included; summed over ranks."""

LEAST_S = 2.0
"""Energy of a shorter run is unknown: the driver's counter moves in steps of up to a tenth of a second."""

SERIES = {
    "power": MetricInfo(
        name="gpu_power_watts", unit="W", better="neither", across_ranks="sum", over_steps="mean", skip_warmup=True
    ),
    "sm_clock": MetricInfo(name="gpu_sm_clock_hz", unit="Hz", better="neither", across_ranks="min"),
    "memory_clock": MetricInfo(name="gpu_memory_clock_hz", unit="Hz", better="neither", across_ranks="min"),
    "temperature": MetricInfo(name="gpu_temperature_celsius", unit="°C", better="neither", over_steps="max"),
    "memory": MetricInfo(name="gpu_memory_used_bytes", unit="B", better="lower", over_steps="max"),
    "utilisation": MetricInfo(
        name="gpu_utilisation_ratio", unit="1", better="neither", across_ranks="mean", over_steps="mean"
    ),
    "others": MetricInfo(name="gpu_other_processes", unit="1", better="lower", over_steps="max"),
}
"""Read once a turn. Memory and utilisation are the whole device's, whoever uses it."""

THROTTLING = {
    name: MetricInfo(name=f"gpu_throttle_{name}_ratio", unit="1", better="lower", over_steps="mean")
    for name in nvml.REASONS
}
"""Share of the turns at whose end the reason held."""


class Gauge:
    """One GPU's instruments; each that refuses reads None.

    Args:
        library: an initialised NVML.
        handle: of the device.
    """

    def __init__(self, library: nvml.Library, handle: Any) -> None:
        self._library = library
        self._handle = handle

    def energy(self) -> float | None:
        """Return the joules spent since the driver was loaded."""
        return _scaled(self._ask("TotalEnergyConsumption"), 1e-3)

    def power(self) -> float | None:
        """Return the watts drawn, as the driver averages them."""
        return _scaled(self._ask("PowerUsage"), 1e-3)

    def series(self) -> dict[str, Number]:
        """Return this instant's value of each of `SERIES`."""
        binding = self._library.binding
        memory, rates = self._ask("MemoryInfo"), self._ask("UtilizationRates")
        return {
            "power": self.power(),
            "sm_clock": _scaled(self._ask("ClockInfo", binding.NVML_CLOCK_SM), 1e6),
            "memory_clock": _scaled(self._ask("ClockInfo", binding.NVML_CLOCK_MEM), 1e6),
            "temperature": self._ask("Temperature", binding.NVML_TEMPERATURE_GPU),
            "memory": None if memory is None else int(memory.used),
            "utilisation": None if rates is None else rates.gpu / 100,
            "others": self._others(),
        }

    def reasons(self) -> int | None:
        """Return the bits of `REASONS` that hold."""
        bits: int | None = self._ask("CurrentClocksEventReasons")
        if bits is None:  # drivers before 535 know the older name alone
            bits = self._ask("CurrentClocksThrottleReasons")
        return bits

    def _others(self) -> int | None:
        """Count the processes that compute on the device beside this one.

        In a container the driver's process ids are the host's; this process is on its device in any case.
        """
        processes = self._ask("ComputeRunningProcesses")
        if processes is None:
            return None
        strangers = [process for process in processes if process.pid != os.getpid()]
        return len(strangers) if len(strangers) < len(processes) else max(0, len(processes) - 1)

    def _ask(self, what: str, *arguments: Any) -> Any:
        return self._library.ask(f"DeviceGet{what}", self._handle, *arguments)


class NVML:
    """Power, energy, clocks, temperature, throttling, memory and other processes of this rank's GPU.

    Reports nothing on devices that are not NVIDIA's. Where NVML is missing every metric is None, and one that the
    device refuses is None alone.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._applies = False
        self._library: nvml.Library | None = None
        self._gauge: Gauge | None = None
        self._energy: float | None = None
        self._began_s = 0.0
        self._power: list[tuple[float, float]] = []
        self._steps = 0
        self._reported = 0

    def start(self, observed: Observed) -> None:
        """Find the rank's device and read its energy counter."""
        self._applies = observed.world.device.type == "cuda" and not _is_rocm()
        if not self._applies:
            return
        self._library = nvml.load()
        if self._library is None:
            return
        handle = self._library.device(observed.world.device)
        if handle is None:
            return
        self._gauge = Gauge(self._library, handle)
        self._began_s = self._clock()
        self._energy = self._gauge.energy()
        self._note_power(self._gauge.power())

    def observe(self, step: int, result: StepResult) -> None:
        """Count the steps."""
        self._steps = step + 1

    def turn(self) -> Iterable[Reading]:
        """Read the instruments."""
        if self._gauge is None or self._steps == self._reported:
            return
        self._reported = self._steps
        at = (self._steps,)
        values, reasons = self._gauge.series(), self._gauge.reasons()
        self._note_power(values["power"])
        for key, info in SERIES.items():
            yield Reading(info, series=(values[key],), steps=at)
        for key, info in THROTTLING.items():
            held = None if reasons is None else int(bool(reasons & nvml.REASONS[key]))
            yield Reading(info, series=(held,), steps=at)

    def evaluated(self, step: int, train_time_s: float, values: Mapping[str, float]) -> None:
        """Nothing to take."""

    def stop(self) -> Iterable[Reading]:
        """Report the energy spent, and give the library back."""
        if not self._applies:
            return
        if self._gauge is None:
            for info in (*SERIES.values(), *THROTTLING.values()):
                yield Reading(info, value=None)
        yield Reading(ENERGY, value=self._spent())
        if self._library is not None:
            self._library.close()
        self._library = self._gauge = None

    def _spent(self) -> float | None:
        """Return the joules by the device's counter; without one, the integral of power; None below `LEAST_S`."""
        if self._gauge is None:
            return None
        now = self._gauge.energy()
        self._note_power(self._gauge.power())
        if self._clock() - self._began_s < LEAST_S:
            return None
        if now is not None and self._energy is not None:
            return now - self._energy
        return trapezoid(self._power) if len(self._power) > 1 else None

    def _note_power(self, watts: Number) -> None:
        if watts is not None:
            self._power.append((self._clock(), watts))


def trapezoid(samples: Iterable[tuple[float, float]]) -> float:
    """Return the integral over samples (x, y) by the trapezoidal rule."""
    return sum((after - before) * (low + high) / 2 for (before, low), (after, high) in itertools.pairwise(samples))


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor


def _is_rocm() -> bool:
    import torch  # ROCm calls its devices cuda, and NVML does not know them

    return torch.version.hip is not None
