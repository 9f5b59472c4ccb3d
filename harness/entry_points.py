"""Names that installed packages add through entry points. What is wrong with one costs its own names only."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict

from harness import targets
from harness.cache import cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PREFIX = "optbench."
"""Of the groups of entry points: the plural word of ``optbench list`` follows."""

TIMEOUT_S = 180.0
"""Importing torch from a cold network file system takes a minute."""

START = """\
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from harness.plugin_checks import main
main(sys.argv)
"""
"""Checks with the search path of this process, which its program may have changed."""

REPORT_IT = "uninstall it, or report this to its maintainers"

NAME = re.compile(r"[\w.+-]+")


class EntryPoint(NamedTuple):
    """One name that an installed package adds."""

    kind: str
    """The plural word of ``optbench list``: ``optimizers``."""
    name: str
    target: str
    """``module:attribute``, as the package declares it."""
    package: str
    """Distribution and version: ``broken 1.0``."""


class Fault(BaseModel):
    """What is wrong with an entry point. It is no error: everything else goes on without that name."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: str
    """The plural word of ``optbench list``: ``optimizers``."""
    name: str
    package: str
    """Distribution and version: ``broken 1.0``."""
    target: str
    """``module:attribute``, as the package declares it."""
    reason: str
    """A phrase that begins with a verb, whose subject is the target."""
    remedy: str = REPORT_IT

    def __str__(self) -> str:
        return f"entry point of {self.package}: {self.name}: {self.target} {self.reason}; {self.remedy}"


def fault(point: EntryPoint, reason: str, remedy: str = REPORT_IT, *, name: str | None = None) -> Fault:
    """Return what is wrong with a point, or with one of the names that it gives."""
    words = {"kind": point.kind, "package": point.package, "target": point.target}
    return Fault(name=point.name if name is None else name, reason=reason, remedy=remedy, **words)


class Found(NamedTuple):
    """The entry points of one kind."""

    sound: dict[str, EntryPoint]
    """By name: what can be told without importing is right."""
    faults: tuple[Fault, ...]


def find(kind: str, own: Mapping[str, str]) -> Found:
    """Return the entry points of a kind; a built-in name wins over a package's, the first package over others.

    Args:
        kind: the plural word of ``optbench list``.
        own: our own names with their targets.
    """
    sound: dict[str, EntryPoint] = {}
    faults: list[Fault] = []
    for point in (each for each in _declared(tuple(sys.path)) if each.kind == kind):
        reason = _wrong(point)
        if reason is not None:
            faults.append(fault(point, reason))
        elif point.name in own:
            what = "has a name of optbench's own, which is used"
            faults.append(fault(point, what, "the package should use another name"))
        elif point.name in sound:
            what = f"has the name of an entry point of {sound[point.name].package}, which is used"
            faults.append(fault(point, what, "uninstall one of the two packages"))
        else:
            sound[point.name] = point
    return Found(sound, tuple(faults))


def _wrong(point: EntryPoint) -> str | None:
    """Return what is wrong with a declaration itself."""
    if not NAME.fullmatch(point.name):
        return f"has the name {point.name!r}: use letters, digits and . _ + - only"
    if not targets.is_target(point.target) or targets.is_file(point.target):
        return "is not written as module:attribute"
    return None


@functools.cache
def _declared(path: tuple[str, ...]) -> list[EntryPoint]:
    """Return all of our entry points; reading every installed package's takes milliseconds, hence once a path."""
    del path  # where packages are looked for: a key of the cache only
    found: list[EntryPoint] = []
    seen = set()
    for distribution in importlib.metadata.distributions():
        name, version = _identity(distribution)
        if name in seen:
            continue  # an older copy, which the first one on the path hides
        seen.add(name)
        if PREFIX in (distribution.read_text("entry_points.txt") or ""):
            package = f"{name} {version}".strip()
            points = (each for each in distribution.entry_points if each.group.startswith(PREFIX))
            found += [
                EntryPoint(each.group.removeprefix(PREFIX), each.name, each.value, package) for each in points
            ]
    return found


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Return name and version, from the folder's name where the metadata do not tell."""
    with contextlib.suppress(Exception):
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
        if name:
            return str(name), str(version or "")
    place = Path(str(getattr(distribution, "_path", "unknown package")))
    return place.stem, ""


@functools.cache
def unusable(points: tuple[EntryPoint, ...], path: tuple[str, ...]) -> tuple[Fault, ...]:
    """Import each point in a process of its own, which a module may end, crash or fill with text.

    That all were usable is kept in the cache until a file of theirs changes.

    Args:
        points: what to look at.
        path: where modules are looked for: a key of the cache only.
    """
    del path
    if not points:
        return ()
    file = cache_dir() / "entry-points" / _fingerprint(points)
    if file.exists():
        return ()
    reasons = {**dict(_checked(points))}
    if not reasons:
        with contextlib.suppress(OSError):  # it is only a cache
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    return tuple(fault(point, reasons[point]) for point in points if point in reasons)


def _fingerprint(points: Sequence[EntryPoint]) -> str:
    """Return a name for all that decides whether the points can be used, as far as files tell."""
    files = [targets.source(point.target) for point in points]
    stamps = [None if file is None or not file.exists() else file.stat().st_mtime_ns for file in files]
    own = [Path(__file__).with_name(f"{name}.py").stat().st_mtime_ns for name in ("entry_points", "plugin_checks")]
    facts = [points, [str(file) for file in files], stamps, own, sys.executable, sys.version, sys.path]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _checked(points: Sequence[EntryPoint]) -> Iterator[tuple[EntryPoint, str]]:
    """Yield each point that cannot be used, and why."""
    waiting = list(points)
    while waiting:
        answers, ended = _ask(waiting)
        for point, reason in zip(waiting, answers, strict=False):
            if reason:
                yield point, reason
        waiting = waiting[len(answers) :]
        if waiting:
            yield waiting.pop(0), f"{ended} when it is imported"


def _ask(points: Sequence[EntryPoint]) -> tuple[list[str], str]:
    """Start a process that checks the points; return an answer for each that it came to (empty: it is usable).

    Its answers come through a file: what it prints is not ours.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    with tempfile.TemporaryDirectory(prefix="optbench-") as folder, tempfile.TemporaryFile() as said:
        answers = Path(folder) / "answers"
        answers.touch()
        words = [json.dumps(sys.path), *(word for point in points for word in (point.kind, point.target))]
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(answers), *words],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=environment,
            start_new_session=True,
        )
        try:
            ended = _ended(process.wait(TIMEOUT_S))
        except subprocess.TimeoutExpired:
            ended = f"did not end within {TIMEOUT_S:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()], ended


def _ended(status: int) -> str:
    with contextlib.suppress(ValueError):
        if status < 0:
            return f"crashes the process ({signal.Signals(-status).name})"
    return f"ends the process with exit code {status}"
