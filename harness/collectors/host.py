"""The host between turns: CPU time, steal, load, context switches, page faults, threads, CPU quota."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import psutil

from harness import cgroup, system
from harness.interfaces import Reading
from harness.record import MetricInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from harness.cgroup import Throttling
    from harness.interfaces import Observed, StepResult


def _total(name: str, unit: str = "1") -> MetricInfo:
    return MetricInfo(name=name, unit=unit, better="lower", across_ranks="sum")


def _node(name: str, unit: str = "1") -> MetricInfo:
    return MetricInfo(name=name, unit=unit, better="lower", scope="node", over_steps="mean")


USAGE = {
    "ru_utime": _total("cpu_user_time_s", "s"),
    "ru_stime": _total("cpu_system_time_s", "s"),
    "ru_nvcsw": _total("context_switches_voluntary"),
    "ru_nivcsw": _total("context_switches_involuntary"),
    "ru_minflt": _total("page_faults_minor"),
    "ru_majflt": _total("page_faults_major"),
}
"""Fields of getrusage(2): this process from before the first step to after the last, evaluations included."""

THREADS = MetricInfo(name="threads", unit="1", better="neither", over_steps="max")
STEAL = _node("node_steal_ratio")
"""Share of the node's CPU time in which a virtual CPU was ready and the hypervisor ran something else."""
BUSY = MetricInfo(name="node_cpu_busy_ratio", unit="1", better="neither", scope="node", over_steps="mean")
LOAD = _node("node_load_average")
"""Runnable and uninterruptible tasks, averaged by the kernel over the last minute."""
THROTTLED_PERIODS = MetricInfo(name="cgroup_throttled_periods", unit="1", better="lower", scope="node")
THROTTLED_TIME = MetricInfo(name="cgroup_throttled_time_s", unit="s", better="lower", scope="node")
QUOTA = MetricInfo(name="cgroup_quota_cores", unit="1", better="neither", scope="node", across_ranks="min")


class Host:
    """What the operating system counted. Reads files between turns only; one rank of each node speaks for it."""

    def __init__(self) -> None:
        self._speaks_for_node = False
        self._usage = resource.getrusage(resource.RUSAGE_SELF)
        self._times: system.CpuTimes | None = None
        self._throttling: Throttling | None = None
        self._process = psutil.Process()
        self._steps = 0
        self._reported = 0

    def start(self, observed: Observed) -> None:
        """Read every counter once."""
        self._speaks_for_node = observed.world.local_rank == 0
        self._usage = resource.getrusage(resource.RUSAGE_SELF)
        if self._speaks_for_node:
            self._times = system.cpu_times()
            self._throttling = cgroup.throttling()

    def observe(self, step: int, result: StepResult) -> None:
        """Count the steps."""
        self._steps = step + 1

    def turn(self) -> Iterable[Reading]:
        """Report threads, and for the node what share of its CPU time was busy and stolen since the last turn."""
        if self._steps == self._reported:
            return
        self._reported = self._steps
        at = (self._steps,)
        yield Reading(THREADS, series=(_known(self._process.num_threads),), steps=at)
        if not self._speaks_for_node:
            return
        before, self._times = self._times, system.cpu_times()
        busy, steal = system.shares(before, self._times)
        yield Reading(BUSY, series=(busy,), steps=at)
        yield Reading(STEAL, series=(steal,), steps=at)
        yield Reading(LOAD, series=(_known(lambda: os.getloadavg()[0]),), steps=at)

    def evaluated(self, step: int, train_time_s: float, values: Mapping[str, float]) -> None:
        """Nothing to take."""

    def stop(self) -> Iterable[Reading]:
        """Report what was counted since the start."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        for field, info in USAGE.items():
            yield Reading(info, value=getattr(usage, field) - getattr(self._usage, field))
        if not self._speaks_for_node:
            return
        before, after = self._throttling, cgroup.throttling()
        known = before is not None and after is not None
        periods = after.periods - before.periods if known and before and after else None
        seconds = after.seconds - before.seconds if known and before and after else None
        yield Reading(THROTTLED_PERIODS, value=periods)
        yield Reading(THROTTLED_TIME, value=seconds)
        yield Reading(QUOTA, value=cgroup.cpu_quota())


def _known(ask: Callable[[], float | int]) -> float | int | None:
    try:
        return ask()
    except (OSError, psutil.Error):
        return None
