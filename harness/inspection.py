"""What only a process that imports torch can find out about a machine. Run by `harness.probe` in a subprocess."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import math
import os
import platform
import socket
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from harness import system
from harness.interfaces import WorkloadTraits
from harness.machine import Accelerator, Constructor, Machine
from harness.model_facts import ModelFacts
from harness.plugin_checks import explain, mapping_problem
from harness.registry import OPTIMIZERS, WORKLOADS
from harness.spec import RunSpec, suggest
from harness.targets import import_module, load, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pydantic import JsonValue

Found = TypeVar("Found")

STAGE = "probing: "
"""Begins the line of standard error that names what is imported next, so that a crash can be blamed."""

BACKENDS = ("gloo", "nccl", "mpi", "ucc", "xccl")


def machine(
    targets: Iterable[str] = (), workloads: Iterable[str] = (), skip: Mapping[str, str] = MappingProxyType({})
) -> Machine:
    """Inspect this machine.

    Args:
        targets: ``module:Class`` of optimizers beside the registered ones.
        workloads: ``module:Class`` of out-of-tree workloads.
        skip: what must not be imported, because it crashed or hung before, and the reason.
    """
    announce("torch")
    torch, failure = _torch()
    found = _accelerators(torch) if torch is not None else ()
    if not found:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # this process is ours; DeepSpeed would guess otherwise
    families = optimizer_families(skip)
    return Machine(
        hostname=socket.gethostname(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=system.cpu_model(),
        cores=system.cores_usable(),
        memory_bytes=system.memory_usable(),
        python=platform.python_version(),
        torch=None if torch is None else str(torch.__version__),
        torch_build={"error": failure} if torch is None else _torch_build(torch),
        accelerators=found,
        compilers=system.compilers(),
        packages=system.packages(),
        constructors=constructors([*_registered(families), *targets], skip),
        families=_family_probes(families, skip),
        workloads=workload_traits(workloads, skip),
    )


def announce(what: str) -> None:
    """Say on standard error what is imported next."""
    sys.stderr.write(f"{STAGE}{what}\n")
    sys.stderr.flush()


def constructors(targets: Iterable[str], skip: Mapping[str, str]) -> dict[str, Constructor]:
    """Return target -> how its class is constructed, or why it cannot be imported."""
    return {target: _guarded(target, skip, constructor, _failed_constructor) for target in dict.fromkeys(targets)}


def workload_traits(targets: Iterable[str], skip: Mapping[str, str]) -> dict[str, dict[str, JsonValue]]:
    """Return target -> the traits of an out-of-tree workload, or ``{"error": …}``."""
    return {target: _guarded(target, skip, _traits, _failed_facts) for target in dict.fromkeys(targets)}


def models(requests: Iterable[str], skip: Mapping[str, str]) -> dict[str, ModelFacts]:
    """Return request -> what building the model tells.

    Args:
        requests: as `harness.model_facts.model_key` writes them.
        skip: what must not be imported.
    """
    return {request: _model(request, skip) for request in dict.fromkeys(requests)}


def _model(request: str, skip: Mapping[str, str]) -> ModelFacts:
    fields = json.loads(request)
    micro_batch = int(fields.pop("micro_batch"))
    spec = RunSpec(optimizer="none", **fields)
    target = WORKLOADS.target(spec.workload)

    def look(target: str) -> ModelFacts:
        # By its name: it stands above what inspects machines, and has torch imported.
        found: ModelFacts = load("harness.model_measuring:of_workload")(target, spec, micro_batch)
        return found

    return _guarded(target, skip, look, lambda error: ModelFacts(error=error))


def constructor(target: str) -> Constructor:
    """Return the signature of an optimizer class, or of a function that makes an instance.

    The first argument, the parameters, is left out.

    Args:
        target: ``module:Class``.
    """
    try:
        found = load(target)
    except AttributeError as error:
        return Constructor(error=f"{explain(error)}{_near(target)}")
    if not callable(found):
        return Constructor(error=f"{target} is no class, and no function that returns an optimizer")
    if isinstance(found, type) and not issubclass(found, importlib.import_module("torch.optim").Optimizer):
        return Constructor(error=f"{target} is no subclass of torch.optim.Optimizer")
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):  # a class written in C tells no signature
        return Constructor(open_ended=True)
    named = [each for each in parameters if each.kind not in {each.VAR_POSITIONAL, each.VAR_KEYWORD}][1:]
    keywords = [each for each in named if each.kind is not each.POSITIONAL_ONLY]
    return Constructor(
        parameters={each.name: json_safe(each.default) for each in keywords if each.default is not each.empty},
        required=tuple(each.name for each in keywords if each.default is each.empty),
        open_ended=any(each.kind is each.VAR_KEYWORD for each in parameters),
    )


def json_safe(value: object) -> JsonValue:
    """Return a default as JSON: sequences as lists, what JSON does not know as its ``repr``."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, (list, tuple)):
        return [json_safe(each) for each in value]
    if isinstance(value, dict):
        return {str(key): json_safe(each) for key, each in value.items()}
    return repr(value)


def optimizer_families(skip: Mapping[str, str]) -> dict[str, Any]:
    """Return module -> its optimizers by name, or the error text of a family that cannot be imported."""
    targets = OPTIMIZERS.family_targets().values()
    return {target.partition(":")[0]: _guarded(target, skip, _family, lambda error: error) for target in targets}


def _family(target: str) -> Any:
    """Return a family's optimizers, or in words why it has none."""
    found = load(target)
    return mapping_problem(found) or found


def _registered(families: Mapping[str, Any]) -> Iterator[str]:
    for optimizers in families.values():
        if not isinstance(optimizers, str):
            targets = (getattr(optimizer, "target", None) for optimizer in optimizers.values())
            yield from (target for target in targets if isinstance(target, str))


def _family_probes(families: Mapping[str, Any], skip: Mapping[str, str]) -> dict[str, dict[str, JsonValue]]:
    """Return family -> what its probe found; by the family's name, as planning asks for it."""
    found: dict[str, dict[str, JsonValue]] = {}
    for name, target in OPTIMIZERS.family_targets().items():
        module = target.partition(":")[0]
        optimizers = families[module]
        if isinstance(optimizers, str):
            found[name] = {"error": optimizers}
        elif hasattr(importlib.import_module(module), "probe"):
            found[name] = _guarded(f"{module}:probe", skip, _called, _failed_facts)
    return found


def _called(target: str) -> dict[str, JsonValue]:
    return {str(key): json_safe(value) for key, value in load(target)().items()}


def _traits(target: str) -> dict[str, JsonValue]:
    traits = getattr(load(target), "traits", None)
    if not isinstance(traits, WorkloadTraits):
        return {"error": f"{target} has no traits = WorkloadTraits(…) in its class body"}
    facts: dict[str, JsonValue] = traits.model_dump(mode="json")
    return facts


def _guarded(
    target: str, skip: Mapping[str, str], look: Callable[[str], Found], failed: Callable[[str], Found]
) -> Found:
    """Look at one target; whatever strangers' code does on import costs that target only."""
    if target in skip:
        return failed(skip[target])
    announce(target)
    try:
        return look(target)
    except BaseException as error:  # noqa: BLE001  # a module that calls sys.exit when imported, say
        return failed(explain(error))


def _failed_constructor(reason: str) -> Constructor:
    return Constructor(error=reason)


def _failed_facts(reason: str) -> dict[str, JsonValue]:
    return {"error": reason}


def _near(target: str) -> str:
    """Return the optimizers of the target's module, for the remedy of a class that it has not."""
    module, name = split(target)
    base = importlib.import_module("torch.optim").Optimizer
    classes = [
        each
        for each, value in vars(import_module(module)).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    ]
    remedy = suggest(name, classes)
    return f"; {remedy}" if remedy else ""


def _torch() -> tuple[Any, str | None]:
    try:
        return importlib.import_module("torch"), None
    except Exception as error:  # noqa: BLE001  # a torch that cannot be loaded raises what its libraries raise
        return None, explain(error)


def _torch_build(torch: Any) -> dict[str, JsonValue]:
    questions: dict[str, Callable[[], JsonValue]] = {
        "cuda": lambda: torch.version.cuda,
        "hip": lambda: torch.version.hip,
        "xpu": lambda: torch.version.xpu,
        "abi": lambda: bool(torch.compiled_with_cxx11_abi()),
        "git_version": lambda: torch.version.git_version,
        "debug": lambda: bool(torch.version.debug),
        "backends": lambda: [name for name in BACKENDS if getattr(torch.distributed, f"is_{name}_available")()],
        "cpu_capability": torch.backends.cpu.get_cpu_capability,
        "cudnn": torch.backends.cudnn.version,
        "nccl": lambda: list(torch.cuda.nccl.version()) if torch.version.cuda else None,
    }
    answers: dict[str, JsonValue] = {}
    for name, ask in questions.items():
        answers[name] = None
        with contextlib.suppress(Exception):  # one build lacks one of these, another lacks another
            answers[name] = ask()
    return answers


def _accelerators(torch: Any) -> tuple[Accelerator, ...]:
    """Return torch.accelerator's devices; none where the driver refuses."""
    try:
        if not torch.accelerator.is_available():
            return ()
        kind = torch.accelerator.current_accelerator().type
        return tuple(_accelerator(torch, kind, index) for index in range(torch.accelerator.device_count()))
    except Exception as error:  # noqa: BLE001  # a driver older than the build, a device lost: a machine without
        announce(f"accelerators cannot be used: {explain(error)}")
        return ()


def _accelerator(torch: Any, kind: str, index: int) -> Accelerator:
    ask = getattr(torch.get_device_module(kind), "get_device_properties", None)
    properties = ask(index) if ask is not None else None
    memory = getattr(properties, "total_memory", None)
    major, minor = getattr(properties, "major", None), getattr(properties, "minor", None)
    architecture = getattr(properties, "gcnArchName", None) or getattr(properties, "architecture", None)
    hip = torch.version.hip is not None
    numbered = f"{major}.{minor}" if isinstance(major, int) and isinstance(minor, int) and not hip else None
    return Accelerator(
        index=index,
        type=kind,
        name=str(getattr(properties, "name", kind)),
        memory_bytes=int(memory) if memory is not None else None,
        capability=numbered or (str(architecture) if architecture is not None else None),
    )
