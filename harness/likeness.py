"""In what two stored runs are unlike: what they train, what they compare, and under which conditions they ran."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.record import RunRecord

TASK = ("workload", "size", "data", "workload_options")
"""Where these differ, nothing of two runs means the same."""

SUBJECT = ("optimizer", "optimizer_options", "strategy", "strategy_options", "precision")
"""What runs are made to be compared in."""

CONDITIONS = (
    *("device", "world_size", "global_batch", "accumulation", "threads", "seed", "steps", "warmup_steps"),
    *("lr", "schedule", "clip_norm"),
)
HARDWARE = ("cpu", "architecture", "cores_usable", "cpus_logical", "memory_usable_bytes", "cores")
SOFTWARE = (
    *("torch", "torch_git", "python", "optbench", "kernel", "libc", "cpu_capability"),
    *("cuda", "hip", "xpu", "cudnn", "nccl", "driver"),
)
SETTINGS = (
    *("threads", "interop_threads", "cgroup_quota_cores", "governor", "turbo", "transparent_hugepages"),
    *("float32_matmul_precision", "cudnn_benchmark", "deterministic_algorithms", "onednn"),
)

Kind = Literal["task", "subject", "condition"]


class Difference(BaseModel):
    """One thing in which two runs are unlike."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, ser_json_inf_nan="null")

    what: str
    """``machine: cpu``, ``version: torch``, ``spec: global_batch``, …"""
    kind: Kind
    """``task``: the pair is refused. ``subject``: what runs are compared in. ``condition``: unlike, marked."""
    a: JsonValue
    b: JsonValue


def differences(a: RunRecord, b: RunRecord) -> Iterator[Difference]:
    """Yield each thing in which two runs are unlike: spec, machine, versions, settings, code, what really ran."""
    for kind, fields in (("task", TASK), ("subject", SUBJECT), ("condition", CONDITIONS)):
        yield from _unlike("spec", kind, a.spec, b.spec, fields)  # type: ignore[arg-type]  # one of three words
    left, right = a.environment, b.environment
    yield from _unlike("machine", "condition", left.hardware, right.hardware, HARDWARE)
    yield from _unlike("machine", "condition", _gpus(a), _gpus(b), ("accelerators",))
    yield from _unlike("version", "condition", left.software, right.software, SOFTWARE)
    yield from _all_unlike("version", table(left.software, "packages"), table(right.software, "packages"))
    yield from _unlike("setting", "condition", left.settings, right.settings, SETTINGS)
    yield from _all_unlike("variable", table(left.settings, "variables"), table(right.settings, "variables"))
    for name in ("optbench", "user"):
        code = (table(left.source, name), table(right.source, name))
        yield from _unlike(f"code of {name}", "condition", *code, ("commit", "dirty"))
    left_ran, right_ran = _ran(a), _ran(b)
    told = [name for name in left_ran if left_ran[name] is not None and right_ran[name] is not None]
    yield from _unlike("ran", "subject", left_ran, right_ran, told)


def _unlike(
    where: str, kind: Kind, a: Mapping[str, JsonValue], b: Mapping[str, JsonValue], names: Sequence[str]
) -> Iterator[Difference]:
    for name in names:
        left, right = a.get(name), b.get(name)
        if left != right:
            yield Difference(what=f"{where}: {name}", kind=kind, a=left, b=right)


def _all_unlike(where: str, a: Mapping[str, JsonValue], b: Mapping[str, JsonValue]) -> Iterator[Difference]:
    return _unlike(where, "condition", a, b, sorted((a.keys() | b.keys()) - {"torch"}))


def table(of: Mapping[str, JsonValue], name: str) -> Mapping[str, JsonValue]:
    """Return a table inside of a table of facts; an empty one where there is none."""
    found = of.get(name)
    return found if isinstance(found, dict) else {}


def _gpus(record: RunRecord) -> dict[str, JsonValue]:
    found = record.environment.hardware.get("accelerators")
    listed = found if isinstance(found, list) else []
    kept = ("name", "memory_bytes", "power_limit_watts", "max_sm_clock_hz")
    return {"accelerators": [{key: each.get(key) for key in kept} for each in listed if isinstance(each, dict)]}


def _ran(record: RunRecord) -> dict[str, JsonValue]:
    return {"class": table(record.facts, "optimizer").get("class"), "ran_as": record.facts.get("ran_as")}
