"""What was measured: Metric, Environment, RunRecord, Outcome; and the version of their stored form.

History of ``SCHEMA_VERSION``:
    1 (2026-11): first.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

SCHEMA_VERSION = 1

Outcome = Literal[
    "completed",
    "unsupported",
    "failed",
    "out_of_memory",
    "timed_out",
    "diverged",
    "wrong",
    "incomplete",
    "missing",
    "unreadable",
]
"""How a run ended. Everything but ``completed`` comes with a reason.

The last two are a reader's words, and no run is stored with them: its folder is gone, or its files cannot be read.
"""

Scope = Literal["rank", "node", "job"]
Better = Literal["higher", "lower", "neither"]
AcrossRanks = Literal["max", "mean", "sum", "min", "first"]
OverSteps = Literal["median", "last", "mean", "sum", "max"]


class MetricInfo(BaseModel):
    """What a metric means, so that generic code can reduce and render it."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str
    """Ends in its unit where it has one: ``_s``, ``_bytes``, ``_joules``, ``_per_s``."""
    unit: str
    """SI unit, or ``1`` for a pure number."""
    better: Better
    scope: Scope = "rank"
    """What one value describes. A metric of the node is reported by one rank of each node."""
    across_ranks: AcrossRanks = "max"
    """How the ranks' values become the job's; sample by sample for a series. Unknown values are left out."""
    over_steps: OverSteps = "median"
    """How a series becomes one value."""
    skip_warmup: bool = True
    """Whether a series' statistics leave the warm-up steps out."""
    keep_series: bool = False
    """Whether the record carries the whole curve (the rank files always do)."""
    at_least_beside: str | None = None
    """A metric of the same run: where that is above 0 on any rank, or unknown, this one is a lower bound."""


class Metric(MetricInfo):
    """One metric of one run."""

    value: float | int | None
    """The job's one number; None: unknown."""
    at_least: bool = False
    """The value is a lower bound: more was there than could be told apart."""
    per_rank: tuple[float | int | None, ...] = ()
    """Each rank's own value, by rank."""
    quantiles: dict[str, float] | None = None
    """p10, p50, p90 and p99 of the job's series."""
    series: tuple[float | int | None, ...] | None = None
    """The job's curve, a value a step; or, with ``series_steps``, a value an evaluation."""
    series_steps: tuple[int, ...] | None = None
    """The step count after which each value of ``series`` was taken; None: after every step from the first."""


def is_curve(metric: Metric) -> bool:
    """Whether a metric's numbers are the points of a curve, a loss say, rather than a sample of one quantity."""
    return metric.series is not None and metric.over_steps == "last"


def is_evaluation(metric: Metric) -> bool:
    """Whether a workload's ``evaluate`` gave the metric: a curve with a point an evaluation."""
    return is_curve(metric) and metric.series_steps is not None


class Environment(BaseModel):
    """What ran where. Facts that a library or the system did not tell are absent or None."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    hardware: dict[str, JsonValue] = Field(default_factory=dict)
    """CPU model, cores, memory, accelerators, clocks."""
    software: dict[str, JsonValue] = Field(default_factory=dict)
    """Python, torch build, CUDA, NCCL, driver, kernel, package versions."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Threads, affinity, cgroup quota, environment variables that steer the libraries."""
    source: dict[str, JsonValue] = Field(default_factory=dict)
    """git commit and dirtiness of the user's folder and of optbench's own."""
    command: tuple[str, ...] = ()
    """The exact command line that started the run."""


class RunRecord(BaseModel):
    """A run as a reader sees it: what was asked, how it ended, what it measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, ser_json_inf_nan="strings")

    schema_version: int = SCHEMA_VERSION
    kind: Literal["run"] = "run"
    run_id: str
    spec: dict[str, JsonValue]
    """RunSpec with every default resolved."""
    outcome: Outcome
    reason: str | None = None
    environment: Environment = Field(default_factory=Environment)
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    """What really ran: classes, flags, constructor arguments, the operators of a step, parameter count; and
    ``optimizer_traits``, what the optimizer declares."""
    verification: dict[str, JsonValue] = Field(default_factory=dict)
    """What is proved of the optimizer: certificate, outcome, reason, cause, reference; empty: nobody asked."""
    metrics: dict[str, Metric] = Field(default_factory=dict)
    started_unix_s: float | None = None
    ended_unix_s: float | None = None
    notes: tuple[str, ...] = ()
    """What a reader should know before trusting the numbers."""

    @property
    def algorithm(self) -> str:
        """What the optimizer's traits say that it computes; where they are unknown, its name tells."""
        traits = self.facts.get("optimizer_traits")
        declared = traits.get("algorithm") if isinstance(traits, dict) else None
        return str(declared or self.spec.get("optimizer")).partition("/")[0]
