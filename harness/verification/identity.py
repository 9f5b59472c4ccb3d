"""For what exactly a certificate holds: one that was made for anything else does not count."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from harness.registry import OPTIMIZERS, strategy
from harness.spec import RunSpec
from harness.targets import split
from harness.verification.certificate import CERTIFICATE_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType

    from harness.machine import Machine
    from harness.verification.certificate import Certificate

PROVING = ("references", "verification", "optimizers", "strategies", "stepping.py", "rates.py")
"""Packages and modules of optbench whose sources take part in a proof."""

STEPPED_IN = {"bf16-pure": "bf16-pure"}
"""Precision of a run -> what its optimizer steps on, where that is not fp32."""


class Job(BaseModel):
    """One proof to make."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    spec: RunSpec
    """Of the run whose optimizer, options, strategy, precision, ranks and device are asked about."""
    like: str | None = None
    """The algorithm to hold it to, in place of its own."""


def plain_job(spec: RunSpec, like: str | None = None) -> Job:
    """Return the proof over plain tensors of one rank that a run of this spec rests on.

    Learning rate, seed and workload play no part in it, so that a sweep over them needs one proof; a rate counts
    where the constructor demands one.
    """
    traits = OPTIMIZERS.get(spec.optimizer).traits
    known: dict[str, Any] = {
        "workload": "linear_regression",
        "optimizer": spec.optimizer,
        "optimizer_options": spec.optimizer_options,
        "strategy": "single",
        "precision": STEPPED_IN.get(spec.precision, "fp32"),
        "device": spec.device,
        "world_size": 1,
    }
    if traits.default_lr is None and spec.lr is not None:
        known["lr"] = spec.lr
    return Job(spec=RunSpec.model_validate(known), like=like)


def key(job: Job, machine: Machine) -> str:
    """Return a hash of what was asked for, the torch build, the device, the packages and our own sources."""
    spec = job.spec
    facts = {
        "version": CERTIFICATE_VERSION,
        "spec": spec.model_dump(
            include={
                "optimizer",
                "optimizer_options",
                "strategy",
                "strategy_options",
                "precision",
                "device",
                "world_size",
                "lr",
            }
        ),
        "like": job.like,
        "torch": [machine.torch, machine.torch_build],
        "device": _device(spec, machine),
        "package": _versions(OPTIMIZERS.get(spec.optimizer).target),
        "file": _content(spec.optimizer),
        "strategy": [machine.packages.get(each) for each in getattr(strategy(spec.strategy), "packages", ())],
        "proving": proving_sources(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _content(optimizer: str) -> str | None:
    """Return a hash of the file that an optimizer is named by; None: it is named otherwise."""
    file = split(optimizer).file
    return _hash(file) if file is not None and file.is_file() else None


def _device(spec: RunSpec, machine: Machine) -> object:
    if spec.device == "cpu" or not machine.accelerators:
        return ["cpu", machine.cpu]
    first = machine.accelerators[0]
    return [first.type, first.name, first.capability]


def _versions(target: str) -> list[str]:
    """Return the distributions, with their versions, that the target's top-level package may come from."""
    if split(target).file is not None:
        return []
    top = split(target).module.partition(".")[0]
    names = _distributions().get(top, ())
    return sorted(f"{name} {importlib.metadata.version(name)}" for name in set(names))


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@functools.cache
def proving_sources() -> str:
    """Return a hash of the sources of references, trials, optimizers and strategies: a change ends proofs."""
    import harness

    root = Path(harness.__file__).parent
    digest = hashlib.sha256()
    for each in PROVING:
        place = root / each
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def user_sources(modules: Iterable[ModuleType]) -> dict[str, str]:
    """Return path -> hash of every loaded source that is neither Python's, nor installed, nor optbench's.

    A class of the user's may inherit from any of them.
    """
    import harness

    places = sysconfig.get_paths()
    installed = {Path(places[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed.add(Path(harness.__file__).resolve().parent)
    found = {}
    for module in list(modules):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        if path.is_file() and not any(path.is_relative_to(place) for place in installed):
            found[str(path)] = _hash(path)
    return found


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def still_holds(certificate: Certificate) -> bool:
    """Say whether the sources of the user's that it was made from are what they were."""
    sources = certificate.subject.get("sources")
    if certificate.version != CERTIFICATE_VERSION or not isinstance(sources, dict):
        return False
    try:
        return all(_hash(Path(path)) == known for path, known in sources.items())
    except OSError:
        return False
