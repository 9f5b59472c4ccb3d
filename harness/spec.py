"""What to run: RunSpec, Sweep. Frozen, validated; every error of a file at once, with its place."""

from __future__ import annotations

import difflib
import itertools
import json
import math
import tomllib
from types import MappingProxyType
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
    """A registered name, ``package.module:Class``, or ``file.py:Class`` with an absolute path."""
    size: str | None = None
    """One of the workload's named sizes; None: its default."""
    data: str | None = None
    """A file for the workload to read instead of its own data (a token file for language models)."""
    workload_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the workload beside size and data."""
    optimizer: str
    """``algorithm/implementation``, ``package.module:Class``, or ``file.py:Class`` with an absolute path."""
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
    notes: tuple[str, ...] = ()
    """What was made of lists of options, in words."""


class NameChecks(dict[str, "Callable[[str], str | None]"]):
    """What is asked about names: by field, what is wrong with a name in it, or None. `harness.plan` knows more."""

    def __init__(self, checks: Mapping[str, Callable[[str], str | None]] = MappingProxyType({})) -> None:
        super().__init__(checks)
        self.notes: list[str] = []
        """What was made of lists of options."""

    def locate(self, cell: Mapping[str, Any], *folders: Path) -> dict[str, Any]:
        """Return the raw fields with files that they name made absolute; relative ones begin in the folders."""
        del folders
        return dict(cell)

    def defaults(self, word: str, name: str) -> Mapping[str, JsonValue] | None:
        """Return the options of a workload, optimizer or strategy with their defaults; None: nothing is known."""
        del word, name
        return None


def suggest(word: str, known: Sequence[str]) -> str | None:
    """Return the remedy for an unknown word: the near ones, else all of them."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(known)}" if known else None


def parse_assignment(text: str) -> tuple[tuple[str, ...], JsonValue]:
    """Read ``key=value``, ``optimizer.key=value`` or ``optimizer.table.key=value``.

    The value is TOML, or else a bare word.

    Values with commas between them are a list: ``0,0.1`` is ``[0, 0.1]``.

    Raises:
        InvalidInputError: without ``=``, or with an empty key.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InvalidInputError([Problem(f"--set {text}", "expected key=value", "write --set lr=0.01")])
    parts = [_word(part) for part in listed(value)]
    parsed = parts[0] if len(parts) == 1 else parts
    head, dot, option = key.partition(".")
    if dot and head in OPTION_TABLES:
        return (OPTION_TABLES[head], *option.split(".")), parsed
    return tuple(key.split(".")), parsed


def _word(text: str) -> JsonValue:
    """Read a value as TOML, or else as the bare word that it is."""
    try:
        parsed: JsonValue = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
    return parsed


def listed(text: str) -> list[str]:
    """Return what stands between commas, but for those in quotes and brackets: ``[1,2],[3,4]`` is two texts."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        if character == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts if all(part.strip() for part in parts) else [text]


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

    A list in a scalar field is an axis: ``optimizer = ["adamw/foreach", "adamw/fused"]`` gives two runs. So is a
    list in an option, unless the option's default is a list: then a flat list is one value, and a list of lists is
    an axis. The last axis of a cell, in the order written, varies fastest.

    Args:
        cells: where each cell stands (file and path) and its raw fields.
        checks: for a field, what is wrong with a name in it, or None.

    Raises:
        InvalidInputError: with every problem of every cell.
    """
    names = checks if isinstance(checks, NameChecks) else NameChecks(checks)
    problems: list[Problem] = []
    specs: list[RunSpec] = []
    for where, cell in cells:
        problems += _name_problems(where, cell, names)
        products, empty = _products(cell, names)
        problems += [
            Problem(f"{where}.{place}", "an empty list names no run", "give at least one value, or leave it out")
            for place in empty
        ]
        empty = {f"{where}.{place}" for place in empty}
        found: dict[Problem, None] = {}  # one entry, though every product of the cell repeats it
        for product in products:
            try:
                specs.append(RunSpec.model_validate(product))
            except ValidationError as error:
                found |= dict.fromkeys(each for each in _problems(where, error) if each.where not in empty)
        problems += found
    if problems:
        raise InvalidInputError(list(dict.fromkeys(problems)))
    return tuple(specs)


Place = tuple[str, ...]


def _products(cell: Mapping[str, Any], names: NameChecks) -> tuple[list[dict[str, Any]], set[str]]:
    """Return the products of a cell's axes in order, and the places of empty lists, which are left out.

    Which options are axes depends on whose they are: on the workload, optimizer and strategy of each product.
    """
    axes = {(key,): value for key, value in cell.items() if isinstance(value, list) and _is_axis(key)}
    empty = {key for (key,), value in axes.items() if not value}
    cell = {key: value for key, value in cell.items() if key not in empty}  # its other errors show, too
    whose = [(word,) for word in OPTION_TABLES if (word,) in axes and word not in empty]
    places = [place for key, value in cell.items() for place in _places(key, value)]
    found: list[tuple[list[int], dict[str, Any]]] = []
    for chosen in itertools.product(*(enumerate(axes[place]) for place in whose)):
        one = {place: (index, value) for place, (index, value) in zip(whose, chosen, strict=True)}
        named = {**cell, **{place[0]: value for place, (_, value) in one.items()}}
        values = {place: [(0, _value(named, place))] for place in places}
        values |= {place: list(enumerate(value)) for place, value in axes.items() if place in values}
        values |= {place: list(enumerate(value)) for place, value in _option_axes(named, names).items()}
        values |= {place: [each] for place, each in one.items()}
        empty |= {".".join(place) for place, value in values.items() if not value}
        values = {place: value or [(0, [])] for place, value in values.items()}
        for product in itertools.product(*values.values()):
            made = dict(named)
            for place, (_, value) in zip(values, product, strict=True):
                made = override(made, place, value)
            found.append(([index for index, _ in product], made))
    return [made for _, made in sorted(found, key=lambda each: each[0])], empty


def _places(key: str, value: Any) -> list[Place]:
    """Return the paths of a field's values: of a table of options one for each."""
    if key in OPTION_TABLES.values() and isinstance(value, dict) and value:
        return [(key, option) for option in value]
    return [(key,)]


def _value(cell: Mapping[str, Any], place: Place) -> Any:
    found: Any = cell
    for key in place:
        found = found[key]
    return found


def _option_axes(cell: Mapping[str, Any], names: NameChecks) -> dict[Place, list[Any]]:
    """Return the options that several values are given for, and note what was made of each list."""
    axes: dict[Place, list[Any]] = {}
    for word, table in OPTION_TABLES.items():
        options, name = cell.get(table), cell.get(word, RunSpec.model_fields[word].default)
        lists = {k: v for k, v in options.items() if isinstance(v, list)} if isinstance(options, dict) else {}
        defaults = names.defaults(word, name) if lists and isinstance(name, str) else None
        for option, value in lists.items() if defaults is not None else ():
            default = (defaults or {}).get(option)
            what = f"{word}.{option} = {json.dumps(value)}"
            if multiplies(value, default):
                axes[table, option] = value
                note = f"{what}: {len(value)} value{'' if len(value) == 1 else 's'}, a run for each"
            else:
                note = f"{what}: one value, as its default {json.dumps(default)} is a list"
            if note not in names.notes:
                names.notes.append(note)
    return axes


def multiplies(value: JsonValue, default: JsonValue) -> bool:
    """Say whether an option's list is several values: it is nested deeper than the option's default."""
    return isinstance(value, list) and _depth(value) > _depth(default)


def _depth(value: JsonValue) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


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
    names = checks if isinstance(checks, NameChecks) else NameChecks(checks)
    for index, run in enumerate(runs):
        cell = names.locate(merge(defaults, run), path.absolute().parent)
        for key, value in overrides:
            cell = override(cell, key, value)
        cells.append((f"{path}: runs[{index}]", cell))
    specs: tuple[RunSpec, ...] = ()
    try:
        specs = expand(cells, names)
    except InvalidInputError as error:
        problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    return Sweep(name=name, runs=specs, notes=tuple(names.notes))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a mark first
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
