"""Machine of this computer: asked of a subprocess that imports torch, kept in the cache until something changes.

``python -m harness.probe [--target module:Class …] [--workload module:Class …] [--out FILE]`` writes one `Machine`
as JSON: to the file where one is named, which nothing that prints can spoil, else to standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

import harness
from harness import launching, system, user_path
from harness.cache import cache_dir
from harness.errors import InvalidInputError, Problem
from harness.garbage import collection_paused
from harness.machine import MACHINE_SCHEMA_VERSION, Constructor, Machine
from harness.model_facts import ModelFacts
from harness.registry import OPTIMIZERS
from harness.targets import source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

TIMEOUT_S = 180.0
"""Importing torch and every optimizer family from a cold network file system takes a minute; drivers can hang."""

ATTEMPTS = 4
"""Subprocesses started in all, when one import after the other kills or hangs them."""

MODULES = (
    "torch",
    "deepspeed",
    "apex",
    "amp_C",
    "triton",
    "torchao",
    "bitsandbytes",
    "heavyball",
    "pytorch_optimizer",
    "schedulefree",
    "transformer_engine",
)
"""Top-level modules whose files tell of a build that was replaced under the same version."""

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "ONEAPI_DEVICE_SELECTOR",
    "DS_ACCELERATOR",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "CUDA_HOME",
    "ROCM_HOME",
    "CC",
    "CXX",
    "TORCH_EXTENSIONS_DIR",
)
"""Environment variables that change what a probe finds."""

DRIVERS = ("proc/driver/nvidia/version", "dev/nvidia*", "dev/kfd", "dev/dri/*", "dev/dxg")
"""Files that come and go with an accelerator or its driver, below the root."""


MOST_SOURCES = 200
"""Files beside a workload's whose change makes a measured model stale."""


class OutOfTree(BaseModel):
    """What the subprocess answers when asked for out-of-tree code only."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    constructors: dict[str, Constructor] = Field(default_factory=dict)
    workloads: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    models: dict[str, ModelFacts] = Field(default_factory=dict)


Answer = TypeVar("Answer", Machine, OutOfTree)


def machine(
    targets: Sequence[str] = (),
    workloads: Sequence[str] = (),
    announce: Callable[[str], None] | None = None,
) -> Machine:
    """Return what can run on this machine, from the cache where nothing changed since.

    Out-of-tree code is looked at afresh each time, since its source changes. Imports no torch.

    Args:
        targets: ``module:Class`` of optimizers that are not registered.
        workloads: ``module:Class`` of workloads that are not registered.
        announce: told when the cache does not help and the answer will take a while.

    Raises:
        InvalidInputError: where the probe itself cannot run, with what it said last.
    """
    file = cache_dir() / "machine" / f"{fingerprint()}.json"
    known = _read(file)
    if known is None:
        if announce is not None:
            announce("Looking at what this machine can run (about 10 s, once) …")
        known = ask(Machine, [])
        _write(file, known)
    return extended(known, targets, workloads)


def extended(known: Machine, targets: Sequence[str], workloads: Sequence[str]) -> Machine:
    """Return a machine with what this process's import path holds of out-of-tree code.

    Args:
        known: the machine.
        targets: ``module:Class`` of optimizers that are not registered.
        workloads: ``module:Class`` of workloads that are not registered.

    Raises:
        InvalidInputError: as `machine`.
    """
    if not targets and not workloads:
        return known
    words = ["--only", *_options("--target", targets), *_options("--workload", workloads)]
    found = ask(OutOfTree, words)
    return known.model_copy(
        update={"constructors": {**known.constructors, **found.constructors}, "workloads": found.workloads}
    )


def models(requests: Mapping[str, Path | None]) -> dict[str, ModelFacts]:
    """Return request -> what building the model tells, from the cache where its sources are the same.

    Args:
        requests: as `harness.model_facts.model_key` writes them, with the workload's source file.
    """
    files = {request: _model_file(request, source) for request, source in requests.items()}
    known = {request: _read_model(file) for request, file in files.items()}
    missing = [request for request, found in known.items() if found is None]
    if missing:
        found = ask(OutOfTree, ["--only", *_options("--model", missing)]).models
        for request, facts in found.items():
            known[request] = facts
            if facts.error is None:
                _write(files[request], facts)
    return {request: facts for request, facts in known.items() if facts is not None}


def _model_file(request: str, source: Path | None) -> Path:
    """Return where an answer is kept: by the request, torch, and the sources in the workload's folder and ours."""
    beside = sorted(source.parent.glob("*.py"))[:MOST_SOURCES] if source is not None else []
    own = [Path(__file__).with_name(f"model_{each}.py") for each in ("measuring", "facts")]
    parts = [request, harness.__version__, *_stamp(_origin("torch")), *map(_stamp, own)]
    found = hashlib.sha256(json.dumps(parts, default=str).encode())
    for each in beside:
        with contextlib.suppress(OSError):
            found.update(each.read_bytes())
    return cache_dir() / "models" / f"{found.hexdigest()[:32]}.json"


def _read_model(file: Path) -> ModelFacts | None:
    try:
        return ModelFacts.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def fingerprint() -> str:
    """Return a name for everything that changes what a probe finds and can be read without torch."""
    facts = {
        "schema": [MACHINE_SCHEMA_VERSION, harness.__version__],
        "python": [sys.executable, sys.prefix, sys.version],
        "host": [socket.gethostname(), platform.platform()],
        "packages": system.packages(),
        "modules": [[name, *_stamp(_origin(name))] for name in MODULES],
        "sources": [[str(path), *_stamp(path)] for path in _sources()],
        "entry_points": sorted(f"{point.name} {point.target} {point.package}" for point in OPTIMIZERS.installed()),
        "variables": {name: os.environ.get(name) for name in VARIABLES},
        "limits": [system.affinity_mask(), system.cores_usable(), system.memory_usable()],
        "drivers": [[str(path), *_stamp(path)] for path in _drivers()],
        "kernels": [str(stamp) for stamp in sorted((cache_dir() / "kernels").glob("*/*/built.json"))],
        "programs": [[name, path, *_stamp(path)] for name, path in system.compiler_programs().items()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def ask(expected: type[Answer], words: Sequence[str]) -> Answer:
    """Run the probe; what crashes or hangs it is left out in a second attempt and carries the reason.

    Args:
        expected: what it answers.
        words: its command line.

    Raises:
        InvalidInputError: where the probe cannot run.
    """
    skip: dict[str, str] = {}
    reason, said = "", ""
    for _ in range(ATTEMPTS):
        blamed: list[str] = [f"{target}={why}" for target, why in skip.items()]
        reason, answer, said = _run([*words, *_options("--skip", blamed)])
        if not reason:
            try:
                return expected.model_validate_json(answer)
            except ValidationError as error:
                reason = f"gave no valid answer ({error.error_count()} errors)"
        culprit = _last_stage(said)
        if culprit is None or ":" not in culprit or culprit in skip:
            break  # torch itself, say: nothing that could be left out
        skip[culprit] = f"its import in a process of its own {reason}"
    last = [line for line in said.splitlines() if line.strip()][-5:]
    what = f"{reason}; it said last: {' | '.join(last)}" if last else reason
    remedy = f"run it yourself to see more: {sys.executable} -P -m harness.probe"
    raise InvalidInputError([Problem("machine probe", what, remedy)])


def _options(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _run(arguments: Sequence[str]) -> tuple[str, str, str]:
    """Start one probe; return what went wrong (empty: nothing), its answer, and all that was printed."""
    environment = {**launching.clean(os.environ), "PYTHONSAFEPATH": "1"}
    environment.setdefault(user_path.VARIABLE, str(Path.cwd()))
    with (
        tempfile.TemporaryDirectory(prefix="optbench-probe-") as folder,
        tempfile.TemporaryFile() as printed,  # a pipe would stay open in whatever the probe leaves behind
        subprocess.Popen(
            [sys.executable, "-m", "harness.probe", "--out", str(Path(folder) / "answer.json"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            status = process.wait(TIMEOUT_S)
            reason = _ended(status)
        except subprocess.TimeoutExpired:
            reason = f"did not answer within {TIMEOUT_S:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # a compiler it started, an import that hangs
        try:
            answer = (Path(folder) / "answer.json").read_text(encoding="utf-8")
        except OSError:
            answer = ""
        return reason, answer, _text(printed)


def _ended(status: int) -> str:
    if status == 0:
        return ""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", errors="replace"))


def _last_stage(said: str) -> str | None:
    from harness.inspection import STAGE  # only a failed probe needs it

    # What another wrote without an end of line may stand before it.
    stages = [line.rpartition(STAGE)[2] for line in said.splitlines() if STAGE in line]
    return stages[-1].strip() if stages else None


def _read(file: Path) -> Machine | None:
    try:
        return Machine.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):  # none yet, or another version's: it is only a cache
        return None


def _write(file: Path, found: Machine | ModelFacts) -> None:
    """Keep a probe's answer; a cache that cannot be written costs the next start some seconds, nothing else."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(found.model_dump_json())
        Path(temporary).replace(file)


def _sources() -> Iterator[Path]:
    """Yield the files that decide what the probe asks."""
    yield from (Path(__file__), Path(__file__).with_name("inspection.py"), Path(__file__).with_name("system.py"))
    for target in sorted(OPTIMIZERS.family_targets().values()):
        file = source(target)
        if file is not None:
            yield file


def _origin(module: str) -> str | None:
    """Return the file of a module without importing it (its parent package is imported, though)."""
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(module)
        if found is not None:
            return found.origin
    return None


def _drivers() -> Iterator[Path]:
    for pattern in DRIVERS:
        yield from sorted(Path("/").glob(pattern))


def _stamp(path: Path | str | None) -> list[JsonValue]:
    """Return modification time and size; of a device file only that it is there."""
    if path is None:
        return [None]
    try:
        found = Path(path).stat()
    except OSError:
        return [None]
    if str(path).startswith("/dev/"):
        return [found.st_rdev]
    return [found.st_mtime_ns, found.st_size] if not str(path).startswith("/proc/") else [Path(path).read_text()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Inspect this machine and write the answer; everything else that is written goes to standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.probe", description="Ask what can run on this machine."
    )
    parser.add_argument("--target", action="append", default=[], help="module:Class of an optimizer")
    parser.add_argument("--workload", action="append", default=[], help="module:Class of a workload")
    parser.add_argument("--model", action="append", default=[], help="what to measure of a workload, as JSON")
    parser.add_argument("--skip", action="append", default=[], help="target=reason: don't import it")
    parser.add_argument("--only", action="store_true", help="look at the targets and workloads alone")
    parser.add_argument("--out", type=Path, help="write the answer there instead of printing it")
    words = parser.parse_args(arguments)
    skip = {target: reason for target, _, reason in (word.partition("=") for word in words.skip)}
    with _standard_output() as output, collection_paused():
        user_path.extend()
        from harness import inspection  # imports strangers' code: not before the output is safe

        answer: BaseModel
        if words.only:
            answer = OutOfTree(
                constructors=inspection.constructors(words.target, skip),
                workloads=inspection.workload_traits(words.workload, skip),
                models=inspection.models(words.model, skip),
            )
        else:
            answer = inspection.machine(words.target, words.workload, skip)
        text = f"{answer.model_dump_json()}\n"
        if words.out is not None:
            words.out.write_text(text, encoding="utf-8")
        else:
            output.write(text)


@contextlib.contextmanager
def _standard_output() -> Iterator[Any]:
    """Lend the real standard output; what others write there, children too, goes to standard error instead."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "w", encoding="utf-8") as output:
        yield output


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads that strangers' code left running would hold the answer back
