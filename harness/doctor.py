"""What this machine can run, how fast its memory is, how quiet it is now, and what each missing part needs."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import psutil
from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness import gauges, links, plan, registry, system
from harness.entry_points import Fault  # noqa: TC001  # pydantic evaluates it
from harness.remedies import Missing, missing
from harness.reports import faults, quantities
from harness.spec import RunSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.machine import Machine

STEAL_LIMIT, JITTER_LIMIT = 0.02, 1.5
"""Above these a machine is called noisy: differences of some percent between runs then mean little."""


class Part(BaseModel):
    """Something that can be named on the command line, and whether it runs here."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str
    runs: bool
    reason: str | None = None
    """Why it does not, and what would fix it."""


class Process(BaseModel):
    """A process of somebody else's that takes CPU time now."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    pid: int
    name: str
    cores: float
    stuck: bool


class Noise(BaseModel):
    """How quiet the machine was while it was examined; None: not told."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    steal_ratio: float | None
    load_average: float | None
    timer_resolution_s: float
    jitter_ratio: float
    """p99 over the median of equal pieces of work on one core; 1 is perfect."""
    processes: tuple[Process, ...]


class Doctor(BaseModel):
    """One examination."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    hostname: str
    system: str
    cpu: str
    cores_usable: int
    cores_present: int
    memory_usable_bytes: int
    memory_present_bytes: int
    memory_bandwidth_bytes_per_s: float | None
    """Measured while examined, all usable cores at work; other load on the machine lowers it."""
    accelerators: tuple[str, ...]
    links: links.Links
    """Collectives between the present ranks."""
    versions: dict[str, str | None]
    optimizers: tuple[Part, ...]
    strategies: tuple[Part, ...]
    noise: Noise
    missing: tuple[Missing, ...]
    entry_points: tuple[Fault, ...] = ()
    """Of installed packages: those that are not used, and why."""
    advice: tuple[str, ...]
    """What makes measurements here doubtful, and what to do about it."""


def examine(machine: Machine) -> Doctor:
    """Examine this machine, which takes some fifteen seconds, most of them between ranks.

    Args:
        machine: what the probe found here.
    """
    noise = measure_noise()
    return Doctor(
        hostname=machine.hostname,
        system=machine.system,
        cpu=machine.cpu,
        cores_usable=machine.cores,
        cores_present=psutil.cpu_count() or machine.cores,
        memory_usable_bytes=machine.memory_bytes,
        memory_present_bytes=int(psutil.virtual_memory().total),
        memory_bandwidth_bytes_per_s=gauges.memory_bandwidth(machine.cores, psutil.virtual_memory().available),
        accelerators=tuple(
            f"{each.name}, {quantities.size(each.memory_bytes)}, {each.type} {each.capability or ''}".rstrip()
            for each in machine.accelerators
        ),
        links=links.measure(machine),
        versions=_versions(machine),
        optimizers=tuple(_optimizers(machine)),
        strategies=tuple(_strategies(machine)),
        noise=noise,
        missing=tuple(missing(machine)),
        entry_points=tuple(registry.faults()),
        advice=tuple(advice(noise, machine.cores)),
    )


def measure_noise(duration_s: float = 0.5) -> Noise:
    """Watch the machine for a while, with one core busy.

    Args:
        duration_s: for how long.
    """
    company, before = gauges.Company(), system.cpu_times()
    steadiness = gauges.steadiness(duration_s)
    _, steal = system.shares(before, system.cpu_times())
    return Noise(
        steal_ratio=steal,
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        timer_resolution_s=gauges.timer_resolution_s(),
        jitter_ratio=steadiness.jitter_ratio,
        processes=tuple(
            Process(pid=each.pid, name=each.name, cores=each.cores, stuck=each.stuck) for each in company.busy()
        ),
    )


def advice(noise: Noise, cores: int) -> Iterator[str]:
    """Yield what makes measurements doubtful, with the remedy.

    Args:
        noise: as measured.
        cores: usable ones.
    """
    if noise.steal_ratio is not None and noise.steal_ratio > STEAL_LIMIT:
        yield (
            f"{noise.steal_ratio:.0%} of CPU time is stolen by other virtual machines: "
            "use a dedicated host, or compare interleaved runs only"
        )
    taken = sum(each.cores for each in noise.processes)
    if taken > 0.1 * cores:
        names = ", ".join(dict.fromkeys(each.name for each in noise.processes[:3]))
        yield f"other processes take {taken:.1f} of {cores} cores ({names}): end them or wait before measuring"
    if any(each.stuck for each in noise.processes):
        stuck = ", ".join(f"{each.name} ({each.pid})" for each in noise.processes if each.stuck)
        yield f"stuck in the kernel: {stuck}; check disks, network file systems and drivers (dmesg)"
    if noise.jitter_ratio > JITTER_LIMIT:
        yield (
            f"equal work takes {noise.jitter_ratio:.1f} times its median at p99: "
            "raise --steps, and trust medians of many steps only"
        )


def _versions(machine: Machine) -> dict[str, str | None]:
    packages = {name: version for name, version in machine.packages.items() if version is not None}
    return {
        "python": machine.python,
        "torch": machine.torch,
        **{name: version for name, version in packages.items() if name != "torch"},
        **machine.compilers,
    }


def _optimizers(machine: Machine) -> Iterator[Part]:
    for name in registry.OPTIMIZERS.names():
        reason = plan.optimizer_runs_here(name, machine)
        yield Part(name=name, runs=reason is None, reason=reason)


def _strategies(machine: Machine) -> Iterator[Part]:
    """Ask each strategy with the first optimizer that it takes for the simplest workload."""
    traits = plan.workload_traits("linear_regression")
    optimizers = [registry.OPTIMIZERS.get(name) for name in registry.OPTIMIZERS.names()]
    for name in registry.STRATEGIES.names():
        chosen = registry.strategy(name)
        reasons = []
        for optimizer in optimizers:
            asked = RunSpec(workload="linear_regression", optimizer=optimizer.name, strategy=name)
            spec = plan.resolve(asked, traits, optimizer, chosen, machine)
            reasons.append(plan.refusal(chosen, spec, traits, optimizer.traits, machine))
            if reasons[-1] is None:
                break
        runs = None in reasons and machine.torch is not None
        reason = next(iter(reasons), None) or "torch is missing: pip install torch"
        yield Part(name=name, runs=runs, reason=None if runs else reason)


def render(doctor: Doctor) -> RenderableType:
    """Return the examination for people, readable in 80 columns and without colour."""
    parts: list[RenderableType] = [_machine_table(doctor), Text("")]
    parts += [_heading("Noise now"), _noise_table(doctor.noise), Text("")]
    parts += _links_parts(doctor.links)
    parts += [_heading("Can run"), _able_table(doctor), Text("")]
    unable = _unable_table([*doctor.optimizers, *doctor.strategies])
    if unable.row_count:
        parts += [_heading("Cannot run"), unable, Text("")]
    if doctor.missing:
        parts += [_heading("Missing"), _missing_table(doctor.missing), Text("")]
    parts.append(faults.table(doctor.entry_points))
    parts += [Text(f"! {line}", style="yellow") for line in doctor.advice]
    if not doctor.advice:
        parts.append(Text("Quiet enough to measure.", style="green"))
    return Group(*parts)


def _heading(text: str) -> Text:
    return Text(text, style="bold")


def _pairs() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    return table


def _machine_table(doctor: Doctor) -> Table:
    table = _pairs()
    table.add_row("host", Text(f"{doctor.hostname}, {doctor.system}"))
    table.add_row("cpu", Text(f"{doctor.cpu}: {doctor.cores_usable} of {doctor.cores_present} cores usable"))
    usable, present = quantities.size(doctor.memory_usable_bytes), quantities.size(doctor.memory_present_bytes)
    table.add_row("memory", Text(f"{usable} of {present} usable"))
    bandwidth = doctor.memory_bandwidth_bytes_per_s
    measured = "-" if bandwidth is None else f"{quantities.rate(bandwidth)}B/s"
    table.add_row("bandwidth", Text(f"{measured} measured now (STREAM add, {doctor.cores_usable} threads)"))
    table.add_row("accelerators", Text("\n".join(doctor.accelerators) or "none"))
    for name in ("python", "torch"):
        table.add_row(name, Text(doctor.versions.get(name) or "missing"))
    rest = [
        f"{k} {_short(v)}" for k, v in doctor.versions.items() if v is not None and k not in {"python", "torch"}
    ]
    table.add_row("versions", Text(", ".join(rest) or "-"))
    return table


def _short(version: str) -> str:
    """Return the number out of what a compiler says of itself."""
    numbers = re.findall(r"(?<![\w.])\d+(?:\.\d+)+(?:\+\w+)?", re.sub(r"\([^)]*\)", "", version))
    return str(numbers[-1]) if numbers else version


def _noise_table(noise: Noise) -> Table:
    table = _pairs()
    table.add_row("steal", "-" if noise.steal_ratio is None else f"{noise.steal_ratio:.1%} of CPU time")
    table.add_row("load", "-" if noise.load_average is None else f"{noise.load_average:.2f} over the last minute")
    table.add_row("jitter", f"{noise.jitter_ratio:.2f} (p99 / median of equal work)")
    table.add_row("timer", f"{quantities.seconds(noise.timer_resolution_s)} resolution")
    heavy = [f"{each.name} ({each.pid}) {each.cores:.1f} cores" for each in noise.processes[:5]]
    table.add_row("others", Text("\n".join(heavy) or "none"))
    return table


def _links_parts(found: links.Links) -> list[RenderableType]:
    """Return the collectives' bus bandwidths, a row a message size; or why there are none."""
    ranks = f"{found.ranks} rank{'s' if found.ranks > 1 else ''} on {'CPUs' if found.device == 'cpu' else 'GPUs'}"
    if not found.rates:
        return [_heading(f"Between {ranks}"), Text(f"not measured: {found.reason or 'unknown'}"), Text("")]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("message", no_wrap=True)
    sizes: dict[int, list[str]] = {}
    for rate in found.rates:
        told = f"{quantities.rate(rate.bus_bandwidth_bytes_per_s)}B/s in {quantities.seconds(rate.time_s)}"
        sizes.setdefault(rate.message_bytes, []).append(told)
    for name in dict.fromkeys(rate.collective for rate in found.rates):
        table.add_column(name.replace("_", "-"), justify="right", no_wrap=True)
    for size, told_of in sizes.items():
        table.add_row(quantities.size(size), *told_of)
    return [_heading(f"Between {ranks}: bus bandwidth over {found.backend}"), table, Text("")]


def _able_table(doctor: Doctor) -> Table:
    """Return one row an implementation, with the algorithms that it runs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("implementation", no_wrap=True)
    table.add_column("algorithms", overflow="fold")
    by_implementation: dict[str, list[str]] = {}
    for part in doctor.optimizers:
        if part.runs:
            algorithm, _, implementation = part.name.partition("/")
            by_implementation.setdefault(implementation or part.name, []).append(algorithm)
    for implementation, algorithms in by_implementation.items():
        table.add_row(Text(implementation), Text(" ".join(algorithms)))
    able = " ".join(part.name for part in doctor.strategies if part.runs)
    table.add_row("strategies", Text(able or "none"))
    return table


def _unable_table(parts: Sequence[Part]) -> Table:
    """Return one row a reason, with what it keeps from running."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("what", overflow="fold", ratio=2)
    table.add_column("why, and what to do", overflow="fold", ratio=3)
    by_reason: dict[str, list[str]] = {}
    for part in parts:
        if not part.runs:
            by_reason.setdefault(part.reason or "unknown", []).append(part.name)
    for reason, names in by_reason.items():
        table.add_row(Text(" ".join(names)), Text(reason))
    return table


def _missing_table(parts: Sequence[Missing]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("part", "without it", "remedy"):
        table.add_column(column, overflow="fold")
    for part in parts:
        table.add_row(Text(part.part), Text(part.why), Text(part.remedy))
    return table
