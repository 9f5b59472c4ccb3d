"""From the rank files of one run to its record: metrics reduced over ranks and steps, and how the run ended."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard, get_args

from pydantic import ValidationError

from harness.errors import CorruptFileError
from harness.rankfile import RankFile, read_rank_file
from harness.record import Environment, Metric, MetricInfo, Outcome, RunRecord
from harness.sealed import parse, read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    Number = float | int
    Value = Number | None

RANK_FILE = re.compile(r"rank-(0|[1-9]\d{0,5})\.jsonl")
MAX_WORLD_SIZE = 2**20  # a folder from a stranger must not choose the size of a list
OUTCOMES: tuple[str, ...] = get_args(Outcome)
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass
class RankMetric:
    """One metric as one rank reported it.

    Attributes:
        value: of the whole run.
        series: count of steps done -> sample.
        counted: the samples came with their step counts, as evaluations do.
    """

    value: Value = None
    series: dict[int, Value] = field(default_factory=dict)
    counted: bool = False


def quantile(ordered: Sequence[Number], q: float) -> Number:
    """Return the quantile of sorted numbers, interpolated linearly between order statistics.

    Hyndman & Fan (1996), "Sample Quantiles in Statistical Packages", definition 7: numpy's default.
    """
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    weight = position - low
    first, second = ordered[low], ordered[min(low + 1, len(ordered) - 1)]
    return first if weight == 0 or first == second else first * (1 - weight) + second * weight


def _sum(values: Sequence[Number]) -> Number:
    if all(isinstance(value, int) for value in values):
        return sum(values)
    if all(math.isfinite(value) for value in values):
        try:
            return math.fsum(values)
        except OverflowError:
            return sum(float(value) for value in values)
    return sum(float(value) for value in values)


def _median(values: Sequence[Number]) -> Number:
    return quantile(sorted(values), 0.5)


REDUCTIONS: dict[str, Callable[[Sequence[Number]], Number]] = {
    "max": max,
    "min": min,
    "sum": _sum,
    "mean": lambda values: _sum(values) / len(values),
    "median": _median,
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
}


def reduce_values(how: str, values: Iterable[Value]) -> Value:
    """Reduce numbers to one. Unknown ones are left out; a NaN among the rest gives NaN, as in numpy.

    Args:
        how: a key of ``REDUCTIONS``.
        values: in order of rank or step.

    Returns:
        None where nothing is known.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    if how not in {"first", "last"} and any(math.isnan(value) for value in known):
        return math.nan
    return REDUCTIONS[how](known)


def merge_series(how: str, series: Sequence[Mapping[int, Value]]) -> dict[int, Value]:
    """Reduce the ranks' series sample by sample.

    A step counts once every rank that reports the metric has it, so that the job's value never comes from some of
    them only: the series of a run whose ranks ended apart is as long as the shortest. ``first`` takes the lowest
    rank's series whole.
    """
    if how == "first" or len(series) == 1:
        return dict(series[0]) if series else {}
    shared = set(series[0]).intersection(*series[1:])
    return {step: reduce_values(how, [one[step] for one in series]) for step in sorted(shared)}


def over_steps(info: MetricInfo, series: Mapping[int, Value], warmup_steps: int) -> Value:
    """Reduce a series to one value, without the warm-up where the metric says so; None if no sample is left."""
    return reduce_values(info.over_steps, _timed(info, series, warmup_steps))


def _timed(info: MetricInfo, series: Mapping[int, Value], warmup_steps: int) -> list[Value]:
    first = warmup_steps if info.skip_warmup else -1
    return [value for step, value in sorted(series.items()) if step > first]


def reduce_metric(info: MetricInfo, ranks: Mapping[int, RankMetric], world_size: int, warmup_steps: int) -> Metric:
    """Reduce one metric over the ranks that reported it, then over steps.

    Args:
        info: how.
        ranks: rank -> what it reported.
        world_size: length of ``per_rank``, which a metric of the whole job has none of.
        warmup_steps: how many steps a series' statistics leave out where ``info.skip_warmup``.
    """
    reported = [ranks[rank] for rank in sorted(ranks)]
    with_series = [one.series for one in reported if one.series]
    own = {
        rank: over_steps(info, one.series, warmup_steps) if one.series else one.value
        for rank, one in ranks.items()
    }
    per_rank = () if info.scope == "job" else tuple(own.get(rank) for rank in range(world_size))
    fields = info.model_dump()
    if not with_series:
        value = reduce_values(info.across_ranks, (one.value for one in reported))
        return Metric(**fields, value=value, per_rank=per_rank)
    job = merge_series(info.across_ranks, with_series)
    steps = tuple(sorted(job))
    every_step = steps == tuple(range(1, len(steps) + 1)) and not any(one.counted for one in reported)
    return Metric(
        **fields,
        value=over_steps(info, job, warmup_steps),
        per_rank=per_rank,
        quantiles=_quantiles(_timed(info, job, warmup_steps)),
        series=tuple(job[step] for step in steps) if info.keep_series else None,
        series_steps=steps if info.keep_series and not every_step else None,
    )


def _quantiles(values: Iterable[Value]) -> dict[str, float] | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    if any(math.isnan(value) for value in known):
        return dict.fromkeys(QUANTILES, math.nan)
    return {name: float(quantile(known, q)) for name, q in QUANTILES.items()}


@dataclass(frozen=True)
class Ranks:
    """The rank files of a run.

    Attributes:
        files: rank -> what could be read.
        world_size: ranks there should be.
        steps: steps asked for; None: unknown.
        problems: of files and lines that cannot be trusted.
    """

    files: dict[int, RankFile]
    world_size: int
    steps: int | None
    problems: tuple[str, ...]

    @property
    def missing(self) -> list[int]:
        """Ranks that left no file."""
        return [rank for rank in range(self.world_size) if rank not in self.files]

    def all_of(self, kind: str) -> list[tuple[int, float, dict[str, Any]]]:
        """Return rank, time and fields of every line of one kind, by rank."""
        return [
            (rank, line.time_unix_s, line.fields)
            for rank, file in sorted(self.files.items())
            for line in file.of_kind(kind)
        ]

    def steps_done(self, rank: int) -> int:
        """Return how many steps the rank's samples cover."""
        ends = [
            line.fields["step"] + max(map(len, line.fields["samples"].values()), default=0)
            for line in self.files[rank].of_kind("samples")
            if line.fields.get("steps") is None
        ]
        return max(ends, default=0)


def read_ranks(folder: Path, spec: Mapping[str, Any]) -> Ranks:
    """Read every rank file of a run leniently.

    Args:
        folder: of the run.
        spec: as stored; world_size and steps are taken from it.

    Raises:
        FutureVersionError: a newer optbench wrote a file.
        OSError: the folder cannot be read.
    """
    files: dict[int, RankFile] = {}
    problems: list[str] = []
    for path in sorted(folder.iterdir()):
        match = RANK_FILE.fullmatch(path.name)
        if match:
            rank = int(match[1])
            try:
                files[rank] = read_rank_file(path, lenient=True)
            except OSError as error:
                problems.append(f"{path}: cannot be read: {error.strerror}")
                continue
            problems += files[rank].problems
    begun = [line.fields.get("world_size") for file in files.values() for line in file.of_kind("begin")]
    claims = [size for size in (spec.get("world_size"), *begun) if _is_count(size)]
    world_size = min(max([*claims, *(rank + 1 for rank in files)], default=0), MAX_WORLD_SIZE)
    steps = spec.get("steps")
    return Ranks(files, world_size, steps if _is_count(steps) else None, tuple(problems))


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_spec(folder: Path) -> dict[str, Any]:
    """Read a run's ``spec.json``.

    Raises:
        CorruptFileError: it is missing or no JSON object.
    """
    path = folder / "spec.json"
    try:
        return parse(read_bytes(path))
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path}: is missing: the folder holds no run") from error
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path}: cannot be read: {error}") from error


def summarise(
    folder: Path,
    outcome: Outcome | None = None,
    reason: str | None = None,
    notes: Sequence[str] = (),
    environment: Environment | None = None,
) -> RunRecord:
    """Make a run's record from its rank files.

    Args:
        folder: ``results/<run_id>``.
        outcome: how the launcher saw it end; None: as the ranks wrote. ``completed`` is believed only where every
            rank's file is whole and says so.
        reason: the launcher's; None: the ranks'.
        notes: to put before the ranks' own.
        environment: where no rank wrote one, because none started, say.

    Raises:
        CorruptFileError: there is no spec to be read.
        FutureVersionError: a newer optbench wrote a file.
    """
    spec = read_spec(folder)
    ranks = read_ranks(folder, spec)
    metrics, remarks = _metrics(ranks, spec)
    told, why = _outcome(ranks)
    if outcome is None or (outcome == "completed" and told != "completed"):
        outcome, reason = told, why
    else:
        reason = reason or why
    found, complaint = _environment(ranks)
    written = [str(fields.get("text")) for _, _, fields in ranks.all_of("note")]
    facts: dict[str, Any] = {}
    for _, _, fields in ranks.all_of("facts"):
        facts |= fields["facts"] if isinstance(fields.get("facts"), dict) else {}
    times = [line.time_unix_s for file in ranks.files.values() for line in file.lines]
    return RunRecord(
        run_id=folder.name,
        spec=spec,
        outcome=outcome,
        reason=reason,
        environment=found or environment or Environment(),
        facts=facts,
        metrics=metrics,
        started_unix_s=min(times, default=None),
        ended_unix_s=max(times, default=None),
        notes=tuple(dict.fromkeys([*notes, *written, *complaint, *remarks, *ranks.problems])),
    )


def _environment(ranks: Ranks) -> tuple[Environment | None, list[str]]:
    for rank, _, fields in ranks.all_of("environment"):
        try:
            return Environment.model_validate(fields), []
        except ValidationError as error:
            return None, [f"rank {rank}'s environment cannot be read: {error.error_count()} fields are wrong"]
    return None, []


def _outcome(ranks: Ranks) -> tuple[Outcome, str | None]:
    """Return how the ranks' own lines say that the run ended, and why.

    The first error by time is the cause: a rank that fails takes the others' collectives with it.
    """
    errors = sorted(ranks.all_of("error"), key=lambda one: one[1])
    if errors:
        rank, _, fields = errors[0]
        step = fields.get("step")
        place = f"rank {rank}" if step is None else f"rank {rank}, after {step} steps"
        return _as_outcome(fields.get("outcome")), f"{place}: {fields.get('reason')}"
    if not ranks.files:
        return "incomplete", ranks.problems[0] if ranks.problems else "no rank left a file"
    cut = [rank for rank, file in sorted(ranks.files.items()) if not file.ended]
    if ranks.problems or ranks.missing or cut:
        return "incomplete", _where_ended(ranks, cut)
    ends = [_as_outcome(fields.get("outcome")) for _, _, fields in ranks.all_of("end")]
    failures = [end for end in ends if end != "completed"]
    return (failures[0], "a rank ended so without saying why") if failures else ("completed", None)


def _as_outcome(text: object) -> Outcome:
    for known in get_args(Outcome):
        if known == text:
            outcome: Outcome = known
            return outcome
    return "failed"


def _where_ended(ranks: Ranks, cut: Sequence[int]) -> str:
    """Say which ranks stopped where; ranks that stopped alike share a clause."""
    of = "" if ranks.steps is None else f" of {ranks.steps}"
    places = {rank: f"cut off after {ranks.steps_done(rank)}{of} steps" for rank in cut}
    places |= dict.fromkeys(ranks.missing, "no file")
    groups: dict[str, list[int]] = {}
    for rank, place in sorted(places.items()):
        groups.setdefault(place, []).append(rank)
    clauses = [f"{_ranks(members)}: {place}" for place, members in groups.items()]
    return "; ".join([*clauses, *ranks.problems])


def _ranks(members: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in members[:4])
    more = f" and {len(members) - 4} more" if len(members) > 4 else ""
    return f"rank{'s' if len(members) > 1 else ''} {shown}{more}"


def _metrics(ranks: Ranks, spec: Mapping[str, Any]) -> tuple[dict[str, Metric], list[str]]:
    """Reduce every metric, in the order in which ranks described them; and say what was left out."""
    infos: dict[str, MetricInfo] = {}
    remarks: list[str] = []
    for rank, _, fields in ranks.all_of("metric"):
        try:
            info = MetricInfo.model_validate(fields.get("info"))
        except ValidationError as error:
            remarks.append(f"rank {rank} describes a metric wrongly: {error.errors()[0]['msg']}")
            continue
        infos.setdefault(info.name, info)
    reported: dict[str, dict[int, RankMetric]] = {name: {} for name in infos}
    for rank, file in ranks.files.items():
        for name, metric in _reported(file).items():
            if name in infos:
                reported[name][rank] = metric
            else:
                remarks.append(f"rank {rank} gives numbers of {name} without its meaning; they are left out")
    lengths = Counter(ranks.steps_done(rank) for rank in ranks.files)
    if len(lengths) > 1 and not all(file.ended for file in ranks.files.values()):
        remarks.append(
            f"ranks ended after {min(lengths)} to {max(lengths)} steps; series hold the steps that all have"
        )
    warmup = spec.get("warmup_steps")
    skipped = warmup if _is_count(warmup) else 0
    found = {name: reduce_metric(infos[name], reported[name], ranks.world_size, skipped) for name in infos}
    return {name: _bounded(metric, found) for name, metric in found.items()}, remarks


def _bounded(metric: Metric, others: Mapping[str, Metric]) -> Metric:
    """Mark a lower bound."""
    beside = others.get(metric.at_least_beside or "")
    if beside is None or metric.value is None or all(value == 0 for value in beside.per_rank):
        return metric
    return metric.model_copy(update={"at_least": True})


def _reported(file: RankFile) -> dict[str, RankMetric]:
    """Collect a rank's numbers by metric; a later one for the same step wins."""
    metrics: dict[str, RankMetric] = {}
    for line in file.of_kind("values"):
        for name, value in line.fields["values"].items():
            metrics.setdefault(name, RankMetric()).value = value
    for line in file.of_kind("samples"):
        for name, samples in line.fields["samples"].items():
            metric = metrics.setdefault(name, RankMetric())
            counts = line.fields.get("steps")
            metric.counted |= counts is not None
            first = line.fields.get("step") or 0
            metric.series |= dict(zip(counts or range(first + 1, first + 1 + len(samples)), samples, strict=True))
    return metrics
