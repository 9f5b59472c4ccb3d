"""What to run: RunSpec, Sweep. Frozen, validated; every error of a file at once, with its place."""

from __future__ import annotations

import difflib
import itertools
import math
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from harness.errors import InvalidInputError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

Precision = Literal["fp32", "tf32", "bf16", "bf16-pure", "bf16-master", "fp16"]
"""How numbers are held and multiplied.

``fp32``: all of it, no TF32. ``tf32``: matrix products and convolutions in TF32 (CUDA). ``bf16``: autocast over
fp32 parameters. ``bf16-pure``: parameters, gradients and what the optimizer keeps in bf16. ``bf16-master``: bf16
parameters and gradients, updates applied to fp32 master weights. ``fp16``: autocast with a gradient scaler.
"""
Schedule = Literal["constant", "warmup-cosine"]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]

DEFAULT_COLLECTORS = (
    *("timing", "memory", "host", "nvml", "convergence", "compiler"),
    *("ledger", "communication"),  # from a few further steps, traced once these are done
)


def default_warmup(steps: int) -> int:
    """Return how many of ``steps`` are left out of timing unless the user says: a fifth, ten at most."""
    return 0 if steps < 2 else max(1, min(10, steps // 5))


class RunSpec(BaseModel):
    """One workload x optimizer x strategy x precision x world size x seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, strict=True)

    workload: str
    """A registered name, or ``package.module:Class``."""
    size: str | None = None
    """One of the workload's named sizes; None: its default."""
    data: str | None = None
    """A file for the workload to read instead of its own data (a token file for language models)."""
    workload_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the workload beside size and data."""
    optimizer: str
    """``algorithm/implementation``, or ``package.module:Class``."""
    optimizer_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Hyperparameters, by the names of the algorithm's native class; lr has a field of its own."""
    strategy: str = "single"
    """How the model is spread over ranks."""
    strategy_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Options of the strategy, such as ddp's bucket_cap_mb."""
    precision: Precision = "fp32"
    """fp32: float32 throughout, TF32 off. bf16: autocast to bfloat16, float32 parameters."""
    device: Literal["cpu", "accelerator"] | None = None
    """None: the accelerator where there is one."""
    world_size: Annotated[int, Field(ge=1)] | None = None
    """Ranks; None: every accelerator, or 2 CPU ranks; 1 under a strategy for one rank."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads a rank; None: usable cores / ranks on CPUs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Data, initialisation and dropout derive from it alone."""
    steps: Annotated[int, Field(ge=1)] = 100
    """Optimizer steps in all, warm-up included."""
    warmup_steps: Annotated[int, Field(ge=0)] = -1  # filled in below, so that a record always shows a number
    """The first steps, which train but are left out of timing; default: a fifth of steps, ten at most."""
    turn_steps: Annotated[int, Field(ge=1)] = 10
    """Steps between two readings of host and device counters."""
    global_batch: Annotated[int, Field(ge=1)] | None = None
    """Samples a step over all ranks and micro-batches; None: the size's own."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-batches a step and rank."""
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Global L2 norm that gradients are clipped to; None: no clipping."""
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Peak learning rate; None: the algorithm's default."""
    schedule: Schedule = "constant"
    """Factor on lr over steps. warmup-cosine: linear rise over a tenth of the steps, then half a cosine to 0."""
    evaluate_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between evaluations; None: a quarter of the steps. The last step is always evaluated."""
    timeout_s: Seconds = 1800.0
    """Wall-clock limit of the whole run; past it all of its processes end."""
    collectors: tuple[str, ...] = DEFAULT_COLLECTORS
    """What observes the run."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if isinstance(values, dict):
            values = dict(values)
            steps = values.get("steps", 100)
            if values.get("warmup_steps") is None and isinstance(steps, int):
                values["warmup_steps"] = default_warmup(steps)
            if isinstance(values.get("collectors"), list):  # TOML and JSON know no tuples
                values["collectors"] = tuple(values["collectors"])
        return values

    @model_validator(mode="after")
    def _check(self) -> RunSpec:
        for table in OPTION_TABLES.values():
            for key, value in getattr(self, table).items():
                if not _finite(value):
                    raise ValueError(f"{table}.{key} = {value} is not finite; options must be")
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} leaves none of steps = {self.steps} to time; "
                f"use at most {self.steps - 1}"
            )
        return self

    @property
    def evaluation_interval(self) -> int:
        """Steps between two evaluations."""
        return self.evaluate_every or max(1, self.steps // 4)


OPTION_TABLES = {
    "workload": "workload_options",
    "optimizer": "optimizer_options",
    "strategy": "strategy_options",
}
"""The first word of ``--set word.option=value`` and the table of RunSpec that it writes to."""

SYNONYMS = {
    "nproc": "world_size",
    "ranks": "world_size",
    "batch_size": "global_batch",
    "learning_rate": "lr",
    "warmup": "warmup_steps",
    "timeout": "timeout_s",
    "gradient_accumulation_steps": "accumulation",
    "max_norm": "clip_norm",
}
"""Words of other tools, for the remedy only."""


class Sweep(BaseModel):
    """Many runs under one name, in the order in which they were asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str
    runs: tuple[RunSpec, ...]


def suggest(word: str, known: Sequence[str]) -> str | None:
    """Return the remedy for an unknown word: the near ones, else all of them."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(known)}" if known else None


def parse_assignment(text: str) -> tuple[tuple[str, ...], JsonValue]:
    """Read ``key=value``, ``optimizer.key=value`` or ``optimizer.table.key=value``.

    The value is TOML, or else a bare word.

    Raises:
        InvalidInputError: without ``=``, or with an empty key.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InvalidInputError([Problem(f"--set {text}", "expected key=value", "write --set lr=0.01")])
    try:
        parsed: JsonValue = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    head, dot, option = key.partition(".")
    if dot and head in OPTION_TABLES:
        return (OPTION_TABLES[head], *option.split(".")), parsed
    return tuple(key.split(".")), parsed


def override(cell: Mapping[str, Any], path: tuple[str, ...], value: JsonValue) -> dict[str, Any]:
    """Return a copy of ``cell`` with the value at ``path`` replaced."""
    head, *rest = path
    changed = dict(cell)
    inner = changed.get(head)
    changed[head] = override(inner if isinstance(inner, dict) else {}, tuple(rest), value) if rest else value
    return changed


def expand(
    cells: Sequence[tuple[str, Mapping[str, Any]]],
    checks: Mapping[str, Callable[[str], str | None]],
) -> tuple[RunSpec, ...]:
    """Multiply out the lists of each raw cell and validate every product.

    A list in a scalar field is an axis: ``optimizer = ["adamw/foreach", "adamw/fused"]`` gives two runs.
    The last axis of a cell, in the order written, varies fastest.

    Args:
        cells: where each cell stands (file and path) and its raw fields.
        checks: for a field, what is wrong with a name in it, or None.

    Raises:
        InvalidInputError: with every problem of every cell.
    """
    problems: list[Problem] = []
    specs: list[RunSpec] = []
    for where, cell in cells:
        problems += _name_problems(where, cell, checks)
        axes = {k: v if isinstance(v, list) and _is_axis(k) else [v] for k, v in cell.items()}
        empty = [f"{where}.{key}" for key, values in axes.items() if not values]
        problems += [
            Problem(place, "an empty list names no run", "give at least one value, or leave it out")
            for place in empty
        ]
        axes = {key: values for key, values in axes.items() if values}  # so that the cell's other errors show too
        found: dict[Problem, None] = {}  # one entry, though every product of the cell repeats it
        for values in itertools.product(*axes.values()):
            try:
                specs.append(RunSpec.model_validate(dict(zip(axes, values, strict=True))))
            except ValidationError as error:
                found |= dict.fromkeys(each for each in _problems(where, error) if each.where not in empty)
        problems += found
    if problems:
        raise InvalidInputError(list(dict.fromkeys(problems)))
    return tuple(specs)


def load_sweep(
    path: Path,
    checks: Mapping[str, Callable[[str], str | None]],
    overrides: Sequence[tuple[tuple[str, ...], JsonValue]] = (),
) -> Sweep:
    """Read a sweep file: ``name``, ``[defaults]`` and ``[[runs]]``, whose keys are RunSpec's fields.

    Args:
        path: the TOML file.
        checks: as for `expand`.
        overrides: assignments that win over the file, in every run.

    Raises:
        InvalidInputError: with every error of the file and its place.
    """
    document = _read_toml(path)
    problems = [
        Problem(f"{path}: {key}", "unknown key", suggest(key, ["name", "defaults", "runs"]))
        for key in document
        if key not in {"name", "defaults", "runs"}
    ]
    defaults, runs, name = document.get("defaults", {}), document.get("runs"), document.get("name", path.stem)
    if not isinstance(name, str):
        problems.append(Problem(f"{path}: name", f"expected a string, found {name!r}"))
    if not isinstance(defaults, dict):
        problems.append(Problem(f"{path}: defaults", "expected a table", "write [defaults]"))
        defaults = {}
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        problems.append(Problem(f"{path}: runs", "the sweep names no run", "add a [[runs]] table for each"))
        runs = []
    cells = []
    for index, run in enumerate(runs):
        cell = merge(defaults, run)
        for key, value in overrides:
            cell = override(cell, key, value)
        cells.append((f"{path}: runs[{index}]", cell))
    specs: tuple[RunSpec, ...] = ()
    try:
        specs = expand(cells, checks)
    except InvalidInputError as error:
        problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    return Sweep(name=name, runs=specs)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError([Problem(str(path), f"cannot be read: {error.strerror}")]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError([Problem(str(path), f"is not valid TOML: {error}")]) from error


def merge(defaults: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Lay a run's fields over the defaults; option tables are merged key by key."""
    merged = dict(defaults)
    for key, value in run.items():
        old = merged.get(key)
        both_tables = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = {**old, **value} if both_tables else value  # type: ignore[dict-item]  # checked just above
    return merged


def _finite(value: JsonValue) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_finite(inner) for inner in value.values())
    return all(_finite(inner) for inner in value) if isinstance(value, list) else True


def _is_axis(field: str) -> bool:
    return field != "collectors" and field not in OPTION_TABLES.values()


def _name_problems(
    where: str, cell: Mapping[str, Any], checks: Mapping[str, Callable[[str], str | None]]
) -> list[Problem]:
    problems = []
    for field, check in checks.items():
        value = cell.get(field)
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str):
                remedy = check(name)
                if remedy is not None:
                    problems.append(Problem(f"{where}.{field}", f"unknown name {name!r}", remedy))
    return problems


def _problems(where: str, error: ValidationError) -> list[Problem]:
    """Turn pydantic's report into ours: one problem a key, its path, the near keys."""
    fields = list(RunSpec.model_fields)
    problems = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        place = f"{where}.{path}" if path else where
        key = str(item["loc"][0]) if item["loc"] else ""
        if item["type"] == "extra_forbidden":
            remedy = f"did you mean {SYNONYMS[key]}?" if key in SYNONYMS else suggest(key, fields)
            problems.append(Problem(place, "unknown key", remedy))
        elif item["type"] == "missing":
            problems.append(Problem(place, "is missing", f"add {key} = …"))
        elif item["type"] == "value_error":
            problems.append(Problem(place, item["msg"].removeprefix("Value error, ")))
        else:
            told = item["msg"].replace("valid tuple", "valid list").replace("valid dictionary", "table")
            problems.append(Problem(place, f"{told}, found {item['input']!r}"))
    return problems
