"""Stored runs side by side: what sets them apart, what can be compared exactly, and times that are no evidence.

Two runs made at different times are two sittings: the machine drifts more between them than most differences are
worth, so that their times are shown and judge nothing. Bytes, counts and losses do not drift.
"""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from harness.checks.curves import parting
from harness.likeness import TASK, Difference, differences, table
from harness.pairing import nearest, read
from harness.spec import OPTION_TABLES
from harness.varying import unusual, varying, word_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.pairing import Couple
    from harness.record import Metric, RunRecord

__all__ = ["SITTINGS", "StoredComparison", "StoredPair", "compare_runs", "read"]

SITTINGS = "different sittings, not evidence"
"""The label of every time of two stored runs."""

TRAINING = (
    *("seed", "global_batch", "accumulation", "lr", "schedule", "clip_norm", "precision", "optimizer_options"),
    *TASK,
)
"""Fields that make two runs of one algorithm the same training: their losses are one curve."""

SHOWN = ("optimizer", "workload", "size", "strategy", "precision", "world_size")
"""Fields by which a run is named in any case."""

OPTIONS = {
    "workload": "--workload",
    "size": "--size",
    "strategy": "--strategy",
    "precision": "--precision",
    "world_size": "--nproc",
    "device": "--device",
    "lr": "--lr",
    "seed": "--seed",
}
"""Fields that ``optbench compare`` has an option for."""

WORLD = ("workload", "global_batch", "device")
"""Fields that the arms of a live comparison share."""

SETTINGS = ("data", "global_batch", "accumulation", "threads", "schedule", "clip_norm")
"""Fields that a live comparison takes by ``--set``."""

EXACT = {
    *("parameter_bytes", "gradient_bytes", "master_weight_bytes", "optimizer_state_bytes", "buffer_bytes"),
    *("communication_buffer_bytes", "graphs", "graph_breaks", "recompiles"),
}
MEASURED = ("rss", "allocator_peak", "host_peak", "expected")
"""Words in the names of traced bytes that are measured or derived, not counted."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, ser_json_inf_nan="null")


class Exact(_Frozen):
    """A count or a number of bytes, which two runs of the same code have in common to the last digit."""

    name: str
    a: JsonValue
    b: JsonValue
    same: bool | None
    """None: one of the runs did not tell, or told a lower bound only."""
    a_at_least: bool = False
    """``a`` is a lower bound."""
    b_at_least: bool = False


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
    live: tuple[str, ...] | None = None
    """Words of ``optbench`` that time both in one sitting. None: a file of arms says it, no command line does;
    empty: nothing does.
    """

    @property
    def unlike(self) -> tuple[Difference, ...]:
        """Conditions in which the runs differ."""
        return tuple(each for each in self.differences if each.kind == "condition")

    @property
    def bounded(self) -> tuple[Exact, ...]:
        """Counts and bytes that cannot be compared: of one run at least, a lower bound is all that is known."""
        return tuple(each for each in self.exact if each.a_at_least or each.b_at_least)

    @property
    def changed(self) -> tuple[Exact, ...]:
        """Counts and bytes that differ."""
        return tuple(each for each in self.exact if each.same is False)


class Unmatched(_Frozen):
    """Runs of two folders that are no pairs."""

    left: int
    """Of the first folder, without a partner."""
    right: int
    differ: dict[str, int]
    """Field -> how many runs of the first folder it keeps from the most alike of the second."""
    a: Side | None = None
    """The two that are most alike; None: a side has none that can be read."""
    b: Side | None = None
    fields: dict[str, tuple[JsonValue, JsonValue]] = {}
    """In which these two differ, with both values."""


class StoredComparison(_Frozen):
    """Stored runs, pair by pair."""

    kind: Literal["stored comparison"] = "stored comparison"
    pairs: tuple[StoredPair, ...]
    alone: tuple[Side, ...] = ()
    """Runs without a partner."""
    unmatched: Unmatched | None = None
    """Why they have none; None: all of one side have."""

    @property
    def refused(self) -> bool:
        """Whether nothing at all could be compared."""
        return all(pair.refused is not None for pair in self.pairs)


def compare_runs(couples: Sequence[Couple]) -> StoredComparison:
    """Compare stored runs.

    Args:
        couples: as `read` gives them.
    """
    left = [a for a, b in couples if a is not None and b is None]
    right = [b for a, b in couples if a is None and b is not None]
    return StoredComparison(
        unmatched=_unmatched(left, right) if left and right else None,
        pairs=tuple(_pair(a, b) for a, b in couples if a is not None and b is not None),
        alone=_alone([*left, *right]),
    )


def _alone(records: Sequence[RunRecord]) -> tuple[Side, ...]:
    """Return runs without a partner, each with whatever tells it from the others."""
    words = varying([record.spec for record in records], shown=SHOWN)
    sides = [(_side(record), told) for record, told in zip(records, words, strict=True)]
    return tuple(side.model_copy(update={"where": f"{side.where} {told}".strip()}) for side, told in sides)


def _unmatched(left: Sequence[RunRecord], right: Sequence[RunRecord]) -> Unmatched:
    found = nearest(left, right)
    if found is None:
        return Unmatched(left=len(left), right=len(right), differ={})
    specs = [{**record.spec, "algorithm": record.algorithm} for record in found.pair]
    return Unmatched(
        left=len(left),
        right=len(right),
        differ=dict(found.differ),
        a=_side(found.pair[0]),
        b=_side(found.pair[1]),
        fields={field: (specs[0].get(field), specs[1].get(field)) for field in found.fields},
    )


def _pair(a: RunRecord, b: RunRecord) -> StoredPair:
    found = tuple(differences(a, b))
    refused = _refusal(a, b, found)
    if refused is not None:
        return StoredPair(a=_side(a), b=_side(b), refused=refused, differences=found)
    unlike = _other_training(a, b)
    return StoredPair(
        a=_side(a),
        b=_side(b),
        refused=None,
        differences=found,
        exact=tuple(_exact(a, b)),
        losses=_losses(a, b) if unlike is None else None,
        losses_unlike=unlike,
        timed=tuple(_timed(a, b)),
        live=_live(a, b),
    )


def _live(a: RunRecord, b: RunRecord) -> tuple[str, ...] | None:
    """Return the words of a live comparison.

    None where the runs differ in more than the optimizer's name; none where their arms could not be compared.
    """
    if any(a.spec.get(field) != b.spec.get(field) for field in WORLD):
        return ()
    if any(a.spec.get(field) != b.spec.get(field) for field in (*OPTIONS, *SETTINGS, *OPTION_TABLES.values())):
        return None
    words = [word for record in (a, b) for word in ("--arm", str(record.spec.get("optimizer")))]
    told = {"workload": a.spec.get("workload")} | unusual(a.spec, shown=("workload", "optimizer"))
    for name, value in told.items():
        option = OPTIONS.get(name)
        if option is not None:
            words += [option, word_of(value)]
        elif name in SETTINGS or name.partition(".")[0] in OPTION_TABLES:
            if isinstance(value, dict):
                return None
            words += ["--set", f"{name}={json.dumps(value)}"]
    return ("compare", *words)


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


def _exact(a: RunRecord, b: RunRecord) -> Iterator[Exact]:
    names = [name for name in dict.fromkeys([*a.metrics, *b.metrics]) if _is_exact(name)]
    for name in names:
        left, right = a.metrics.get(name), b.metrics.get(name)
        values: list[JsonValue] = [each.value if each is not None else None for each in (left, right)]
        bounds = [each is not None and each.at_least for each in (left, right)]
        if any(bounds):
            a_bound, b_bound = bounds
            yield Exact(name=name, a=values[0], b=values[1], same=None, a_at_least=a_bound, b_at_least=b_bound)
            continue
        yield _counted(name, *values)
        ranks: list[list[JsonValue]] = [list(each.per_rank) if each else [] for each in (left, right)]
        if values[0] == values[1] and len(ranks[0]) == len(ranks[1]) and ranks[0] != ranks[1]:
            yield Exact(name=f"{name} by rank", a=ranks[0], b=ranks[1], same=False)
    operators = table(a.facts, "step_operators"), table(b.facts, "step_operators")
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
    fields = [field for field in TRAINING if a.spec.get(field) != b.spec.get(field)]
    if a.algorithm != b.algorithm:
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
