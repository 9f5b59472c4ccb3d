"""The gate's TOML file: cells, margins, baselines, convergence; every error at once, with its place."""

from __future__ import annotations

import math
import numbers
import re
import tomllib
from pathlib import Path  # noqa: TC003  # pydantic evaluates it
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from harness.errors import InvalidInputError, Problem
from harness.optimizers.algorithms import ALGORITHMS
from harness.spec import NameChecks, RunSpec, expand, merge, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TABLES = ("name", "gate", "baseline", "convergence", "defaults", "cell", "workload")
FRACTION = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*")
DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(s|min|m|h)?\s*")
SECONDS = {None: 1, "s": 1, "min": 60, "m": 60, "h": 3600}

TIMED = ("step_time_s", "cpu_time_s", "peak_memory_bytes")
"""Metrics that a live comparison can gate."""

FEWEST_DRIFT_STEPS = 60
"""What grows in every sixth step or more often grows between any two looks of so long a run."""

FEWEST_SEEDS = 7
"""A one-sided 99 % bound from signs needs as many: 0.5 ** 7 < 0.01."""


def fraction(value: Any) -> float:
    """Return 0.025 for 0.025, ``"2.5 %"`` or ``"2.5%"``.

    Raises:
        ValueError: it is neither, or not in 0 … 1.
    """
    found: float | None = None
    percents = False
    if isinstance(value, str) and (match := FRACTION.fullmatch(value)):
        percents = bool(match[2])
        found = float(match[1]) / (100 if percents else 1)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        found = float(value)
    if found is None or not math.isfinite(found) or not 0 <= found < 1:
        bare = found is not None and 1 < found < 100 and not percents
        meant = f'; {found:g} % is written "{found:g} %"' if bare else ""
        raise ValueError(f'expected a fraction below 1: 0.025 or "2.5 %"{meant}')
    return found


def duration(value: Any) -> float:
    """Return seconds for 120, ``"120s"`` or ``"2 min"``.

    Raises:
        ValueError: it is neither, or not positive.
    """
    found: float | None = None
    if isinstance(value, str) and (match := DURATION.fullmatch(value)):
        found = float(match[1]) * SECONDS[match[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found = float(value)
    if found is None or not math.isfinite(found) or found <= 0:
        raise ValueError('expected a time: 300, "300s" or "5 min"')
    return found


def _long_enough(steps: int) -> int:
    if steps and steps < FEWEST_DRIFT_STEPS:
        raise ValueError(f"growth is not told from chance in under {FEWEST_DRIFT_STEPS} steps; 0 leaves drift out")
    return steps


Fraction = Annotated[float, BeforeValidator(fraction)]
Duration = Annotated[float, BeforeValidator(duration)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


Kind = TypeVar("Kind", bound=_Table)


class Settings(_Table):
    """``[gate]``."""

    margin: Fraction | None = None
    """Of every metric without a margin of its own; None: on CPUs 2.5 %, 5 % of memory; on accelerators 1 %."""
    margins: dict[str, Fraction] = Field(default_factory=dict)
    """By metric."""
    budget: Duration = 300.0
    """Seconds that each cell's live comparison may take."""
    drift_steps: Annotated[int, AfterValidator(_long_enough)] = 0
    """Steps of the long run in which nothing may grow; 0: drift is not looked at, and a note says so."""
    self_check: bool = True
    """An A/A arm rides along with live comparisons."""
    verify: bool = True
    """Every cell's optimizer needs a certificate."""


class Baseline(_Table):
    """``[baseline]``: what the cells are held against."""

    counts: Path | None = None
    """File of noise-free counts, relative to the gate's file."""
    ignore: tuple[str, ...] = ()
    """Counts to leave out: fnmatch patterns of ``kind`` or ``kind name``."""
    path: Path | None = None
    """Checkout whose code is the other side of live comparisons, relative to the gate's file."""
    python: Path | None = None
    """Its interpreter; None: the one that runs the gate."""

    @property
    def is_live(self) -> bool:
        """Whether there is other code to compare with."""
        return self.path is not None or self.python is not None


class Convergence(_Table):
    """``[convergence]``: steps to a target, over paired seeds."""

    metric: str | None = None
    """A key of the workload's evaluation; None: the workload's own target."""
    target: Annotated[float, Field(allow_inf_nan=False)] | None = None
    better: Annotated[str, Field(pattern="^(lower|higher)$")] | None = None
    """None: as the workload says of the metric."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = tuple(range(FEWEST_SEEDS))
    margin: Fraction = 0.05


NAMED = {"workload", "size", "optimizer", "strategy", "world_size", "precision"}
"""Fields that stand in every cell's name; others do where a list makes several cells of them."""

AXES = [name for name in RunSpec.model_fields if name not in NAMED]


class NamedCell(NamedTuple):
    """One run to gate.

    Attributes:
        name: unique in the file.
        spec: of the run.
        like: algorithm to whose reference its optimizer is held; None: its own, if it has one.
    """

    name: str
    spec: RunSpec
    like: str | None = None


class GateFile(_Table):
    """The whole file."""

    name: str
    settings: Settings
    baseline: Baseline
    convergence: Convergence | None
    cells: tuple[NamedCell, ...]

    def margin(self, metric: str, *, on_cpu: bool) -> float:
        """Return the relative difference of a metric that does not matter."""
        default = self.settings.margin
        if default is None:
            # Resident memory of the same code differs by 2 % between launches (measured); counts are exact.
            default = (0.05 if metric.endswith("_bytes") else 0.025) if on_cpu else 0.01
        return self.settings.margins.get(metric, default)


def load(path: Path, checks: Mapping[str, Callable[[str], str | None]]) -> GateFile:
    """Read a gate's file.

    Args:
        path: the TOML file.
        checks: for a field of a cell, what is wrong with a name in it, or None.

    Raises:
        InvalidInputError: with every error of the file and its place.
    """
    document = _toml(path)
    problems = [
        Problem(f"{path}: {key}", "unknown key", suggest(key, TABLES)) for key in document if key not in TABLES
    ]
    name = document.get("name", path.stem)
    if not isinstance(name, str):
        problems.append(Problem(f"{path}: name", f"expected a string, found {name!r}"))
        name = path.stem
    settings = _table(path, "gate", Settings, document, problems) or Settings()
    baseline = _table(path, "baseline", Baseline, document, problems) or Baseline()
    convergence = _table(path, "convergence", Convergence, document, problems)
    cells = _cells(path, document, checks, problems)
    problems += _contradictions(path, settings, baseline, convergence)
    if problems:
        raise InvalidInputError(problems)
    return GateFile(
        name=name,
        settings=settings,
        baseline=_from_here(path, baseline),
        convergence=convergence,
        cells=tuple(cells),
    )


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidInputError([Problem(str(path), f"cannot be read: {error.strerror}")]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError([Problem(str(path), f"is not valid TOML: {error}")]) from error


def _table(
    path: Path, key: str, kind: type[Kind], document: Mapping[str, Any], problems: list[Problem]
) -> Kind | None:
    if key not in document:
        return None
    try:
        return kind.model_validate(document[key])
    except ValidationError as error:
        known = list(kind.model_fields)
        for item in error.errors():
            place = ".".join(str(each) for each in [key, *item["loc"]])
            if item["type"] == "extra_forbidden":
                problems.append(Problem(f"{path}: {place}", "unknown key", suggest(str(item["loc"][-1]), known)))
            else:
                told = item["msg"].removeprefix("Value error, ")
                problems.append(Problem(f"{path}: {place}", f"{told}, found {item['input']!r}"))
        return None


def _cells(
    path: Path,
    document: Mapping[str, Any],
    checks: Mapping[str, Callable[[str], str | None]],
    problems: list[Problem],
) -> list[NamedCell]:
    found: list[NamedCell] = []
    asked = checks if isinstance(checks, NameChecks) else NameChecks(checks)
    defaults = document.get("defaults", {})
    if not isinstance(defaults, dict):
        problems.append(Problem(f"{path}: defaults", "expected a table", "write [defaults]"))
        defaults = {}
    tables = [(key, document[key]) for key in ("cell", "workload") if key in document]
    for key, rows in tables:
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            problems.append(Problem(f"{path}: {key}", "expected tables", f"write [[{key}]] for each"))
            continue
        for index, row in enumerate(rows):
            where = f"{path}: {key}[{index}]"
            fields = asked.locate(merge(defaults, row), path.absolute().parent)
            given, like = fields.pop("name", None), fields.pop("like", None)
            if like is not None and like not in ALGORITHMS:
                told = f"{like!r} is no algorithm with a reference"
                problems.append(Problem(f"{where}.like", told, suggest(str(like), list(ALGORITHMS))))
            try:
                specs = expand([(where, fields)], asked)
            except InvalidInputError as error:
                problems += error.problems
                continue
            varies = [key for key in AXES if len({str(getattr(spec, key)) for spec in specs}) > 1]
            found += [NamedCell(_name(given, spec, varies, alone=len(specs) == 1), spec, like) for spec in specs]
    if not found and not problems:
        problems.append(Problem(f"{path}: cell", "the gate names no cell", "add a [[cell]] table for each"))
    names = [cell.name for cell in found]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(
            Problem(f"{path}: cell", f"{names.count(name)} cells are called {name!r}", 'give each a name = "…"')
        )
    return found


def _name(given: Any, spec: RunSpec, varies: Sequence[str], *, alone: bool) -> str:
    size = f"-{spec.size}" if spec.size else ""
    ranks = f" x{spec.world_size}" if spec.world_size else ""
    label = f"{spec.workload}{size} {spec.optimizer} {spec.strategy}{ranks} {spec.precision}"
    label += "".join(f" {key}={getattr(spec, key)}" for key in varies)
    if given is None:
        return label
    return str(given) if alone else f"{given}: {label}"


def _contradictions(
    path: Path, settings: Settings, baseline: Baseline, convergence: Convergence | None
) -> list[Problem]:
    problems = []
    if baseline.counts is None and not baseline.is_live and not settings.drift_steps:
        problems.append(
            Problem(
                f"{path}: baseline",
                "there is nothing to hold the cells against",
                'add [baseline] with counts = "counts.json", or path = "../main", or [gate] drift_steps = 300',
            )
        )
    problems += [
        Problem(f"{path}: gate.margins.{name}", "is no metric of a live comparison", suggest(name, TIMED))
        for name in settings.margins
        if name not in TIMED
    ]
    if convergence is None:
        return problems
    if not baseline.is_live:
        problems.append(
            Problem(f"{path}: convergence", "needs other code to train with", 'add [baseline] path = "../main"')
        )
    if (convergence.metric is None) != (convergence.target is None):
        problems.append(Problem(f"{path}: convergence", "metric and target go together", "give both, or neither"))
    if len(set(convergence.seeds)) < FEWEST_SEEDS:
        problems.append(
            Problem(
                f"{path}: convergence.seeds",
                f"{len(set(convergence.seeds))} distinct seeds cannot give a 99 % bound",
                f"name at least {FEWEST_SEEDS}",
            )
        )
    return problems


def _from_here(path: Path, baseline: Baseline) -> Baseline:
    """Return the baseline with its paths relative to the gate's file."""
    here = path.absolute().parent
    places = {name: getattr(baseline, name) for name in ("counts", "path", "python")}
    found = {name: here / place.expanduser() for name, place in places.items() if place is not None}
    return baseline.model_copy(update=found)
