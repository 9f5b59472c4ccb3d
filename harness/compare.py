"""Stored runs side by side: what sets them apart, what can be compared exactly, and times that are no evidence.

Two runs made at different times are two sittings: the machine drifts more between them than most differences are
worth, so that their times are shown and judge nothing. Bytes, counts and losses do not drift.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from harness.checks.curves import parting
from harness.pairing import read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.pairing import Couple
    from harness.record import Metric, RunRecord

__all__ = ["SITTINGS", "StoredComparison", "StoredPair", "compare_runs", "read"]

SITTINGS = "different sittings, not evidence"
"""The label of every time of two stored runs."""

TASK = ("workload", "size", "data", "workload_options")
"""Where these differ, nothing of two runs means the same."""

SUBJECT = ("optimizer", "optimizer_options", "strategy", "strategy_options", "precision")
"""What runs are made to be compared in."""

CONDITIONS = (
    *("device", "world_size", "global_batch", "accumulation", "threads", "seed", "steps", "warmup_steps"),
    *("lr", "schedule", "clip_norm"),
)
TRAINING = (
    *("seed", "global_batch", "accumulation", "lr", "schedule", "clip_norm", "precision", "optimizer_options"),
    *TASK,
)
"""Fields that make two runs of one algorithm the same training: their losses are one curve."""

HARDWARE = ("cpu", "architecture", "cores_usable", "cpus_logical", "memory_usable_bytes", "cores")
SOFTWARE = (
    *("torch", "torch_git", "python", "optbench", "kernel", "libc", "cpu_capability"),
    *("cuda", "hip", "xpu", "cudnn", "nccl", "driver"),
)
SETTINGS = (
    *("threads", "interop_threads", "cgroup_quota_cores", "governor", "turbo", "transparent_hugepages"),
    *("float32_matmul_precision", "cudnn_benchmark", "deterministic_algorithms", "onednn"),
)

EXACT = {
    *("parameter_bytes", "gradient_bytes", "master_weight_bytes", "optimizer_state_bytes", "buffer_bytes"),
    *("communication_buffer_bytes", "graphs", "graph_breaks", "recompiles"),
}
MEASURED = ("rss", "allocator_peak", "host_peak", "expected")
"""Words in the names of traced bytes that are measured or derived, not counted."""

Kind = Literal["task", "subject", "condition"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, ser_json_inf_nan="null")


class Difference(_Frozen):
    """One thing in which two runs are unlike."""

    what: str
    """``machine: cpu``, ``version: torch``, ``spec: global_batch``, …"""
    kind: Kind
    """``task``: the pair is refused. ``subject``: what runs are compared in. ``condition``: unlike, marked."""
    a: JsonValue
    b: JsonValue


class Exact(_Frozen):
    """A count or a number of bytes, which two runs of the same code have in common to the last digit."""

    name: str
    a: JsonValue
    b: JsonValue
    same: bool | None
    """None: one of the runs did not tell."""


class Losses(_Frozen):
    """Training losses of two runs that should be one curve."""

    steps: int
    """Compared."""
    equal_steps: int
    """From the first on, equal to the last bit."""
    largest: float | None
    """Relative difference in any step; None: not finite on one side."""
    parted_at: int | None
    """Step, from 1, from which rounding no longer explains the difference; None: it does."""


class Timed(_Frozen):
    """A time, a rate or a measured memory, from two sittings."""

    name: str
    unit: str
    a: float | None
    b: float | None
    ratio: float | None
    """b / a; None: unknown."""


class Side(_Frozen):
    """One run of a pair."""

    run_id: str
    name: str
    """The optimizer's."""
    where: str
    """Workload, strategy, precision, ranks."""
    outcome: str
    reason: str | None


class StoredPair(_Frozen):
    """Two runs side by side."""

    a: Side
    b: Side
    refused: str | None
    """Why nothing is compared; None: it is."""
    differences: tuple[Difference, ...]
    exact: tuple[Exact, ...] = ()
    losses: Losses | None = None
    losses_unlike: str | None = None
    """Why losses are not compared."""
    timed: tuple[Timed, ...] = ()
    """Evidence of nothing: see ``SITTINGS``."""

    @property
    def unlike(self) -> tuple[Difference, ...]:
        """Conditions in which the runs differ."""
        return tuple(each for each in self.differences if each.kind == "condition")

    @property
    def changed(self) -> tuple[Exact, ...]:
        """Counts and bytes that differ."""
        return tuple(each for each in self.exact if each.same is False)


class StoredComparison(_Frozen):
    """Stored runs, pair by pair."""

    kind: Literal["stored comparison"] = "stored comparison"
    pairs: tuple[StoredPair, ...]
    alone: tuple[Side, ...] = ()
    """Runs without a partner."""

    @property
    def refused(self) -> bool:
        """Whether nothing at all could be compared."""
        return all(pair.refused is not None for pair in self.pairs)


def compare_runs(couples: Sequence[Couple]) -> StoredComparison:
    """Compare stored runs.

    Args:
        couples: as `read` gives them.
    """
    return StoredComparison(
        pairs=tuple(_pair(a, b) for a, b in couples if a is not None and b is not None),
        alone=tuple(_side(each) for couple in couples if None in couple for each in couple if each is not None),
    )


def _pair(a: RunRecord, b: RunRecord) -> StoredPair:
    differences = tuple(_differences(a, b))
    refused = _refusal(a, b, differences)
    if refused is not None:
        return StoredPair(a=_side(a), b=_side(b), refused=refused, differences=differences)
    unlike = _other_training(a, b)
    return StoredPair(
        a=_side(a),
        b=_side(b),
        refused=None,
        differences=differences,
        exact=tuple(_exact(a, b)),
        losses=_losses(a, b) if unlike is None else None,
        losses_unlike=unlike,
        timed=tuple(_timed(a, b)),
    )


def _side(record: RunRecord) -> Side:
    spec = record.spec
    where = [spec.get("workload"), spec.get("size"), spec.get("strategy"), spec.get("precision")]
    return Side(
        run_id=record.run_id,
        name=str(spec.get("optimizer") or "unknown"),
        where=" ".join([*(str(each) for each in where if each is not None), f"x{spec.get('world_size') or '?'}"]),
        outcome=record.outcome,
        reason=record.reason,
    )


def _refusal(a: RunRecord, b: RunRecord, differences: Sequence[Difference]) -> str | None:
    task = [each.what.removeprefix("spec: ") for each in differences if each.kind == "task"]
    if task:
        return f"they train different things: {', '.join(task)} differ"
    ended = [f"{record.run_id} is {record.outcome.replace('_', ' ')}" for record in (a, b) if not _counts(record)]
    return f"no result to compare: {' and '.join(ended)}" if ended else None


def _counts(record: RunRecord) -> bool:
    """Whether a run's numbers are results: a speed counts only if the answer is right."""
    return record.outcome == "completed"


def _differences(a: RunRecord, b: RunRecord) -> Iterator[Difference]:
    for kind, fields in (("task", TASK), ("subject", SUBJECT), ("condition", CONDITIONS)):
        yield from _unlike("spec", kind, a.spec, b.spec, fields)  # type: ignore[arg-type]  # one of three words
    left, right = a.environment, b.environment
    yield from _unlike("machine", "condition", left.hardware, right.hardware, HARDWARE)
    yield from _unlike("machine", "condition", _gpus(a), _gpus(b), ("accelerators",))
    yield from _unlike("version", "condition", left.software, right.software, SOFTWARE)
    yield from _all_unlike("version", _table(left.software, "packages"), _table(right.software, "packages"))
    yield from _unlike("setting", "condition", left.settings, right.settings, SETTINGS)
    yield from _all_unlike("variable", _table(left.settings, "variables"), _table(right.settings, "variables"))
    for name in ("optbench", "user"):
        code = (_table(left.source, name), _table(right.source, name))
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


def _table(of: Mapping[str, JsonValue], name: str) -> Mapping[str, JsonValue]:
    found = of.get(name)
    return found if isinstance(found, dict) else {}


def _gpus(record: RunRecord) -> dict[str, JsonValue]:
    found = record.environment.hardware.get("accelerators")
    listed = found if isinstance(found, list) else []
    kept = ("name", "memory_bytes", "power_limit_watts", "max_sm_clock_hz")
    return {"accelerators": [{key: each.get(key) for key in kept} for each in listed if isinstance(each, dict)]}


def _ran(record: RunRecord) -> dict[str, JsonValue]:
    return {"class": _table(record.facts, "optimizer").get("class"), "ran_as": record.facts.get("ran_as")}


def _exact(a: RunRecord, b: RunRecord) -> Iterator[Exact]:
    names = [name for name in dict.fromkeys([*a.metrics, *b.metrics]) if _is_exact(name)]
    for name in names:
        left, right = a.metrics.get(name), b.metrics.get(name)
        values: list[JsonValue] = [each.value if each is not None else None for each in (left, right)]
        yield _counted(name, *values)
        ranks: list[list[JsonValue]] = [list(each.per_rank) if each else [] for each in (left, right)]
        if values[0] == values[1] and len(ranks[0]) == len(ranks[1]) and ranks[0] != ranks[1]:
            yield Exact(name=f"{name} by rank", a=ranks[0], b=ranks[1], same=False)
    operators = _table(a.facts, "step_operators"), _table(b.facts, "step_operators")
    if all(operators):
        for name in sorted(operators[0].keys() | operators[1].keys()):
            yield _counted(f"operator {name}", operators[0].get(name, 0), operators[1].get(name, 0))


def _counted(name: str, a: JsonValue, b: JsonValue) -> Exact:
    return Exact(name=name, a=a, b=b, same=None if a is None or b is None else a == b)


def _is_exact(name: str) -> bool:
    traced = name.startswith(("ledger_", "communication_")) and name.endswith(("_bytes", "_per_step"))
    return name in EXACT or (traced and not any(word in name for word in MEASURED))


def _other_training(a: RunRecord, b: RunRecord) -> str | None:
    """Say why two runs are not one training; None: they are, and should have one loss curve."""
    names = [str(record.spec.get("optimizer")) for record in (a, b)]
    fields = [field for field in TRAINING if a.spec.get(field) != b.spec.get(field)]
    if names[0] != names[1] and names[0].partition("/")[0] != names[1].partition("/")[0]:
        fields = ["algorithm", *fields]
    if fields:
        return f"{', '.join(fields)} differ{'s' if len(fields) == 1 else ''}"
    return None if all(_curve(record) for record in (a, b)) else "a run recorded none"


def _curve(record: RunRecord) -> Sequence[float | int | None]:
    metric = record.metrics.get("train_loss")
    return (metric.series or ()) if metric is not None and metric.series_steps is None else ()


def _losses(a: RunRecord, b: RunRecord) -> Losses:
    pairs = list(zip(_curve(a), _curve(b), strict=False))
    equal = sum(1 for _ in itertools.takewhile(lambda pair: _same(*pair), pairs))
    largest = max((_apart(*pair) for pair in pairs), default=0.0)
    return Losses(
        steps=len(pairs),
        equal_steps=equal,
        largest=largest if math.isfinite(largest) else None,
        parted_at=parting(a, b),
    )


def _same(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def _apart(a: float | None, b: float | None) -> float:
    if _same(a, b):
        return 0.0
    if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))


def _timed(a: RunRecord, b: RunRecord) -> Iterator[Timed]:
    for name, left in a.metrics.items():
        right = b.metrics.get(name)
        if right is not None and left.better != "neither" and _is_timed(name):
            values = _finite(left), _finite(right)
            ratio = values[1] / values[0] if values[0] and values[1] is not None else None
            yield Timed(name=name, unit=left.unit, a=values[0], b=values[1], ratio=ratio)


def _is_timed(name: str) -> bool:
    return name.endswith(("_s", "_joules")) or name in {"rss_peak_bytes", "peak_allocated_bytes"}


def _finite(metric: Metric) -> float | None:
    return metric.value if metric.value is not None and math.isfinite(metric.value) else None
