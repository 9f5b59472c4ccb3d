"""What would run, and why the rest would not: a pure function of specs and machine. Starts nothing."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from harness import memory, precision
from harness.errors import InvalidInputError, Problem
from harness.interfaces import Target, WorkloadSize, WorkloadTraits
from harness.machine import Machine
from harness.model_facts import model_key
from harness.registry import COLLECTORS, OPTIMIZERS, STRATEGIES, WORKLOADS, static_traits, strategy
from harness.spec import OPTION_TABLES, NameChecks, RunSpec, suggest
from harness.targets import NAME_IT, constructor_defaults, is_target, located, short, source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from harness.interfaces import Optimizer, Strategy
    from harness.model_facts import ModelFacts

PLAN_SCHEMA_VERSION = 1

PLURALS = {"workload": WORKLOADS.plural, "optimizer": OPTIMIZERS.plural, "strategy": STRATEGIES.plural}
"""The word of ``optbench list`` for each field that has a table of options."""


class Cell(BaseModel):
    """One run of a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    schema_version: int = PLAN_SCHEMA_VERSION
    kind: Literal["cell"] = "cell"
    index: int
    """Its place in the order in which runs were asked for."""
    spec: RunSpec
    """With every default resolved for the machine."""
    unsupported: str | None = None
    """Why it cannot run here and what would fix it."""
    kernels: tuple[str, ...] = ()
    """What must be compiled before it starts, unless it is in the cache already."""
    estimated_bytes: int | None = None
    """Memory that each rank will need at its peak, roughly: of its accelerator, or on CPUs of the host."""
    notes: tuple[str, ...] = ()
    """What a reader should know before it runs."""


class Plan(BaseModel):
    """All cells of a sweep, in the order asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    cells: tuple[Cell, ...]

    def runnable(self) -> list[Cell]:
        """Return what can run, in the order to run it: first what needs no kernel built."""
        able = [cell for cell in self.cells if cell.unsupported is None]
        return sorted(able, key=lambda cell: bool(cell.kernels))


class Names(NameChecks):
    """What `harness.spec` asks about names, answered from the registries.

    Args:
        probe: asked about optimizers and workloads out of tree (targets of either) whose source does not tell.
    """

    def __init__(self, probe: Callable[[Sequence[str], Sequence[str]], Machine] | None = None) -> None:
        super().__init__(
            {
                "workload": WORKLOADS.remedy,
                "optimizer": OPTIMIZERS.remedy,
                "strategy": STRATEGIES.remedy,
                "collectors": COLLECTORS.remedy,
            }
        )
        self._probe = probe

    def locate(self, cell: Mapping[str, Any], *folders: Path) -> dict[str, Any]:
        """Return the fields with the files that they name made absolute.

        A relative path begins in the first of the folders, or in the current one, that has the file.
        """
        places = (*folders, Path.cwd())
        found = dict(cell)
        for field in self.keys() & cell.keys():
            value = cell[field]
            if isinstance(value, str):
                found[field] = located(value, *places)
            elif isinstance(value, (list, tuple)):
                found[field] = [located(each, *places) if isinstance(each, str) else each for each in value]
        return found

    def defaults(self, word: str, name: str) -> Mapping[str, JsonValue] | None:
        """Return the options of a workload, optimizer or strategy with their defaults; None: nothing is known."""
        if self[word](name) is not None:
            return None  # it is reported
        try:
            if word == "strategy":
                return strategy(name).options
            return self._workload(name) if word == "workload" else self._optimizer(name)
        except InvalidInputError:  # of code out of tree; the plan tells
            return None

    def _workload(self, name: str) -> Mapping[str, JsonValue] | None:
        static = _static(name)
        if static is not None or self._probe is None:
            return None if static is None else static.options
        return workload_traits(name, self._probe([], [WORKLOADS.target(name)])).options

    def _optimizer(self, name: str) -> Mapping[str, JsonValue] | None:
        optimizer = OPTIMIZERS.get(name)
        source = constructor_defaults(optimizer.target) if is_target(name) else None
        known = source or optimizer.options(NOT_PROBED)
        if known or self._probe is None:
            return known
        return optimizer.options(self._probe([optimizer.target], [])) or {}


NOT_PROBED = Machine(hostname="", system="", cpu="", cores=1, memory_bytes=0, python="", torch=None)
"""Asked about the options that an optimizer has on any machine."""


def name_checks(probe: Callable[[Sequence[str], Sequence[str]], Machine] | None = None) -> Names:
    """Return what `harness.spec.expand` asks about names.

    Args:
        probe: see `Names`.
    """
    return Names(probe)


def out_of_tree(specs: Sequence[RunSpec]) -> tuple[list[str], list[str]]:
    """Return the optimizers and workloads that only a probe can tell about."""
    registered = set(OPTIMIZERS.names())  # some look like targets: pytorch_optimizer:lion
    optimizers = dict.fromkeys(spec.optimizer for spec in specs)
    workloads = dict.fromkeys(spec.workload for spec in specs)
    return (
        [name for name in optimizers if is_target(name) and name not in registered],
        [WORKLOADS.target(name) for name in workloads if _static(name) is None],
    )


def unmeasured(specs: Sequence[RunSpec], machine: Machine) -> dict[str, Path | None]:
    """Return which models a probe should measure, with their source files: those whose traits may not tell.

    What a workload of ours declares is proved by tests for its default options.
    """
    found: dict[str, Path | None] = {}
    for spec in specs:
        with contextlib.suppress(InvalidInputError):  # the plan itself says what is wrong
            target = WORKLOADS.target(spec.workload)
            traits = workload_traits(spec.workload, machine)
            if WORKLOADS.is_own(spec.workload) and not spec.workload_options:
                continue
            if spec.size is not None and spec.size not in traits.sizes:
                continue
            full = resolve(spec, traits, OPTIMIZERS.get(spec.optimizer), strategy(spec.strategy), machine)
            found[model_key(full)] = source(target)
    return found


def workload_traits(name: str, machine: Machine | None = None) -> WorkloadTraits:
    """Return a workload's traits, from its source or from the probe.

    Raises:
        InvalidInputError: for out-of-tree code that cannot be imported, or that declares no valid traits.
    """
    static = _static(name)
    if static is not None:
        return static
    found = machine.workloads.get(WORKLOADS.target(name)) if machine is not None else None
    if found is None:
        raise InvalidInputError([Problem(f"workload {name}", "was not probed", "run without --machine")])
    if "error" in found:
        raise InvalidInputError(
            [Problem(f"workload {name}", str(found["error"]), f"check module and class; {NAME_IT}")]
        )
    try:
        return WorkloadTraits.model_validate(found)
    except ValidationError as error:
        raise InvalidInputError([Problem(f"workload {name}: traits", str(error))]) from error


def _static(name: str) -> WorkloadTraits | None:
    return static_traits(WORKLOADS.target(name), WorkloadTraits, (WorkloadSize, Target))


def plan(specs: Sequence[RunSpec], machine: Machine, available_bytes: int | None = None) -> Plan:
    """Resolve every spec for the machine, and say of each whether it can run.

    Args:
        specs: in the order asked for.
        machine: what the probe found.
        available_bytes: host memory free now; None: all that the machine has.

    Raises:
        InvalidInputError: with every unknown size and option, and every batch that cannot be divided.
    """
    problems: list[tuple[str, Problem]] = []
    cells = []
    for index, spec in enumerate(specs):
        where = f"run {index} ({spec.workload} {spec.optimizer} {spec.strategy})"
        try:
            cells.append(_cell(index, where, spec, machine, available_bytes or machine.memory_bytes))
        except InvalidInputError as error:
            problems += [(problem.where.removeprefix(where), problem) for problem in error.problems]
    if problems:
        raise InvalidInputError(_merged(problems))
    return Plan(cells=tuple(cells))


def _merged(problems: Sequence[tuple[str, Problem]]) -> list[Problem]:
    """Return one problem for all runs that share it: the first's, with the number of the others."""
    alike: dict[tuple[str, str, str | None], list[Problem]] = {}
    for field, problem in problems:
        alike.setdefault((field, problem.what, problem.remedy), []).append(problem)
    return [
        first if not others else replace(first, where=f"{first.where} and {_count(len(others), 'more run')}")
        for first, *others in alike.values()
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _cell(index: int, where: str, spec: RunSpec, machine: Machine, available_bytes: int) -> Cell:
    parts = Parts(workload_traits(spec.workload, machine), OPTIMIZERS.get(spec.optimizer), strategy(spec.strategy))
    return cell(index, where, spec, parts, machine, available_bytes)


class Parts(NamedTuple):
    """What a spec's names stand for."""

    workload: WorkloadTraits
    optimizer: Optimizer
    strategy: Strategy


def cell(index: int, where: str, spec: RunSpec, parts: Parts, machine: Machine, available_bytes: int) -> Cell:
    """Resolve a spec for the machine and say whether it can run.

    Args:
        index: its place among the runs.
        where: how to call it in an error.
        spec: what is asked for.
        parts: what its names stand for.
        machine: what the probe found.
        available_bytes: host memory free now.

    Raises:
        InvalidInputError: with every unknown size and option, and a batch that cannot be divided.
    """
    traits, optimizer, chosen = parts
    problems = []
    if spec.size is not None and spec.size not in traits.sizes:
        problems.append(
            Problem(f"{where}.size", f"unknown name {spec.size!r}", suggest(spec.size, list(traits.sizes)))
        )
        spec = spec.model_copy(update={"size": None})  # what else is wrong comes with it
    spec = resolve(spec, traits, optimizer, chosen, machine)
    problems += [
        *_unknown_options(where, spec, traits, optimizer, chosen, machine),
        *([] if traits.optimizer_only else _indivisible(where, spec)),
    ]
    if spec.data is not None and not traits.reads_data_file:
        problems.append(Problem(f"{where}.data", f"{spec.workload} reads no data file", "leave data out"))
    if problems:
        raise InvalidInputError(problems)
    facts = known_model(spec, machine)
    refused = (
        _too_few_devices(spec, machine)
        or precision.unsupported(spec, optimizer.traits, machine)
        or refusal(chosen, spec, traits, optimizer.traits, machine)
        or refusal(optimizer, spec, traits, machine)
    )
    sized = (spec, traits, optimizer.traits, chosen, facts)
    estimate = None if refused else memory.rank_bytes(*sized)
    return Cell(
        index=index,
        spec=spec,
        unsupported=refused or memory.too_large(estimate, *sized, machine, available_bytes),
        kernels=kernels_of(spec, optimizer, chosen),
        estimated_bytes=estimate,
        notes=tuple(_notes(spec, traits, chosen, facts)),
    )


def known_model(spec: RunSpec, machine: Machine) -> ModelFacts | None:
    """Return what was measured of a spec's model; None: nothing."""
    facts = machine.models.get(model_key(spec))
    return facts if facts is not None and facts.error is None else None


def _notes(spec: RunSpec, traits: WorkloadTraits, chosen: Strategy, facts: ModelFacts | None) -> Iterator[str]:
    units: Callable[[str, WorkloadTraits, ModelFacts | None], str | None] | None = getattr(chosen, "units", None)
    told = units(short(spec.workload), traits, facts) if units is not None else None
    if told is not None:
        yield f"{spec.strategy}: {told}"
    declared = traits.size(spec.size).parameters
    if facts is not None and facts.parameters != declared and not spec.workload_options:
        yield (
            f"{short(spec.workload)} declares {declared:,} parameters and its model has {facts.parameters:,}; "
            "correct the sizes in its traits"
        )


def kernels_of(spec: RunSpec, optimizer: Optimizer, chosen: Strategy) -> tuple[str, ...]:
    """Return the kernels that must be compiled before a spec starts: the optimizer's and the strategy's."""
    needs: Callable[[RunSpec], Sequence[str]] = getattr(chosen, "kernels", lambda _spec: ())
    return tuple(dict.fromkeys((*optimizer.traits.kernels, *needs(spec))))


def resolve(
    spec: RunSpec, traits: WorkloadTraits, optimizer: Optimizer, chosen: Strategy, machine: Machine
) -> RunSpec:
    """Fill in what the spec leaves to workload, algorithm and machine."""
    device = spec.device or ("accelerator" if machine.accelerators else "cpu")
    on_accelerator = device == "accelerator" and bool(machine.accelerators)
    everything = len(machine.accelerators) if on_accelerator else 2
    world_size = spec.world_size or (1 if chosen.one_rank else everything)
    return spec.model_copy(
        update={
            "device": device,
            "world_size": world_size,
            "threads": spec.threads or max(1, machine.cores // world_size),
            "size": spec.size or traits.default_size,
            "global_batch": spec.global_batch or traits.size(spec.size).global_batch,
            "lr": spec.lr if spec.lr is not None else optimizer.traits.default_lr,
        }
    )


def _unknown_options(
    where: str,
    spec: RunSpec,
    traits: WorkloadTraits,
    optimizer: Optimizer,
    chosen: Strategy,
    machine: Machine,
) -> list[Problem]:
    known: dict[str, Mapping[str, Any] | None] = {
        "workload": traits.options,
        "optimizer": optimizer.options(machine),
        "strategy": chosen.options,
    }
    problems = []
    for word, table in OPTION_TABLES.items():
        names = known[word]
        for key, value in getattr(spec, table).items():
            place = f"{where}.{table}.{key}"
            if names is None:
                continue
            if key not in names:
                takes = getattr(spec, word)
                remedy = suggest(key, list(names)) or f"{takes} takes none"
                problems.append(Problem(place, f"{takes} has no option {key!r}", remedy))
            elif not _like(value, names[key]):
                problems.append(
                    Problem(
                        place,
                        f"expected a value like {names[key]!r}, found {value!r}",
                        f"defaults: optbench list {PLURALS[word]}",
                    )
                )
    return problems


def _like(value: object, default: object) -> bool:
    """Say whether a value has the default's type; an integer will do for a float, None tells nothing."""
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        # Some flags of constructors are declared as 0 or 1.
        return isinstance(value, bool) and isinstance(default, (bool, int))
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float))
    if isinstance(default, (list, tuple)):
        return isinstance(value, list) and len(value) == len(default)
    return isinstance(value, type(default))


def _indivisible(where: str, spec: RunSpec) -> list[Problem]:
    batch, ranks, accumulation = spec.global_batch or 1, spec.world_size or 1, spec.accumulation
    unit = ranks * accumulation
    if batch % unit == 0:
        return []
    below, above = batch // unit * unit, (batch // unit + 1) * unit
    nearest = f"{below} or {above}" if below else f"{above}"
    micro = f" x {accumulation} micro-batches" if accumulation > 1 else ""
    return [
        Problem(
            f"{where}.global_batch",
            f"{batch} samples cannot be divided among {ranks} ranks{micro}",
            f"nearest that can: global_batch = {nearest}",
        )
    ]


def _too_few_devices(spec: RunSpec, machine: Machine) -> str | None:
    present, needed = len(machine.accelerators), spec.world_size or 1
    if spec.device != "accelerator" or needed <= present:
        return None
    fewer = f"use --nproc {present}, or --device cpu" if present else "use --device cpu"
    return f"needs {needed} accelerators, {present} present; {fewer}"


def read_plan_file(path: Path) -> RunSpec:
    """Read one cell that `optbench plan --write` wrote.

    Raises:
        InvalidInputError: when it is no such file, or holds a cell that cannot run.
    """
    try:
        cell = Cell.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInputError([Problem(str(path), f"cannot be read: {error.strerror}")]) from error
    except ValidationError as error:
        remedy = "write one with optbench plan --write DIR"
        raise InvalidInputError([Problem(str(path), f"is no plan of this version: {error}", remedy)]) from error
    if cell.unsupported is not None:
        raise InvalidInputError([Problem(str(path), f"cannot run: {cell.unsupported}")])
    return cell.spec


def refusal(asked: Optimizer | Strategy, spec: RunSpec, *about: Any) -> str | None:
    """Return why an optimizer or a strategy refuses a spec; one that cannot even tell is refused for that."""
    try:
        told: str | None = asked.unsupported(spec, *about)
    except Exception as error:
        if asked.name in {*STRATEGIES.own(), *OPTIMIZERS.own_names()}:
            raise
        what = f"{asked.name} cannot tell whether it runs here: {type(error).__name__}: {error}"
        return f"{what}; report this to its maintainers"
    return told


def optimizer_runs_here(name: str, machine: Machine) -> str | None:
    """Return None where the optimizer can train some registered workload on one rank, else why not."""
    optimizer = OPTIMIZERS.get(name)
    reasons = []
    for workload in WORKLOADS.targets():
        try:
            traits = workload_traits(workload, machine)
        except InvalidInputError:  # an installed package's, which has to be probed: ours are enough to tell
            continue
        spec = resolve(RunSpec(workload=workload, optimizer=name), traits, optimizer, strategy("single"), machine)
        reason = refusal(optimizer, spec, traits, machine)
        if reason is None:
            return None
        reasons.append(reason)
    return reasons[0]
