"""A training step of a real engine in this process, for a benchmark to call."""

from __future__ import annotations

import contextlib
import functools
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from harness.machine import Machine
    from harness.spec import RunSpec

WHERE = "optbench.step"
FIXED: Mapping[str, object] = MappingProxyType(
    {"strategy": "single", "world_size": 1, "schedule": "constant", "steps": 10**9, "warmup_steps": 0}
)
"""Fields of the spec that are the same for every step here: one engine in this process, stepped without end."""

_RUN = "leave it out: it is of a whole run; optbench run takes it"
_SPREAD = "leave it out: optbench run and optbench compare spread a model over ranks"
REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "strategy": _SPREAD,
        "world_size": _SPREAD,
        "schedule": "leave it out: lr stays as it is given",
        "steps": "leave it out: pytest --benchmark-min-rounds and --benchmark-max-time say how often it is called",
        "warmup_steps": "leave it out: pytest --benchmark-warmup=on calls it some times untimed",
        **dict.fromkeys(("turn_steps", "evaluate_every", "timeout_s", "collectors"), _RUN),
    }
)
"""Fields of the spec that change nothing here, and what to do instead."""


@functools.cache
def _machine(optimizers: tuple[str, ...], workloads: tuple[str, ...]) -> Machine:
    from harness import probe

    return probe.machine(list(optimizers), list(workloads), lambda _: None)


@contextlib.contextmanager
def stepped(fields: Mapping[str, Any]) -> Iterator[tuple[Callable[[], float | None], dict[str, Any]]]:
    """Give a step of a new engine, which returns its loss, and what to note of it; one step has been done.

    Meanwhile torch's threads and TF32 are the spec's, afterwards what they were.

    Args:
        fields: of the spec; without ``device`` on the CPU, without ``threads`` with as many as torch has now.

    Raises:
        InvalidInputError: a field, name, size or option is unknown, or a field would change nothing.
        UnsupportedError: it cannot run here, or what ran is not what its name says.
    """
    from harness.errors import UnsupportedError
    from harness.plan import out_of_tree, plan
    from launch.building import Kernels

    asked = _spec(fields)
    optimizers, workloads = out_of_tree([asked])
    machine = _machine(tuple(optimizers), tuple(workloads))
    cell = plan([asked], machine).cells[0]
    if cell.unsupported is not None:
        raise UnsupportedError(cell.unsupported)
    (reason,) = Kernels(lambda _: None).build([cell.spec])
    if reason is not None:
        raise UnsupportedError(reason)
    with _computing(cell.spec), _engine(cell.spec) as step:
        yield step


def _spec(fields: Mapping[str, Any]) -> RunSpec:
    import torch

    from harness.errors import InvalidInputError, Problem
    from harness.plan import name_checks
    from harness.spec import expand

    problems = [
        Problem(f"{WHERE}.{field}", f"{fields[field]!r} would change nothing in a step of a test's own", remedy)
        for field, remedy in REMEDIES.items()
        if field in fields and fields[field] != FIXED.get(field)
    ]
    if problems:
        raise InvalidInputError(problems)
    defaults = {"device": "cpu", "threads": torch.get_num_threads()}
    first, *others = expand([(WHERE, {**defaults, **fields, **FIXED})], name_checks())
    if others:
        remedy = "give one value of each field; pytest.mark.parametrize makes more tests of it"
        raise InvalidInputError([Problem(WHERE, f"lists of values name {1 + len(others)} steps", remedy)])
    return first


@contextlib.contextmanager
def _computing(spec: RunSpec) -> Iterator[None]:
    """Compute as a run's ranks do: with its threads, and with TF32 under ``tf32`` only; afterwards as before."""
    import torch

    from harness.world import arithmetic

    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    precisions, threads = [place.fp32_precision for place in places], torch.get_num_threads()
    allowed, matmul = _told(lambda: backends.cudnn.allow_tf32), _told(torch.get_float32_matmul_precision)
    try:
        torch.set_num_threads(spec.threads or 1)
        arithmetic(spec)
        yield
    finally:
        torch.set_num_threads(threads)
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if allowed is not None:
            backends.cudnn.allow_tf32 = allowed
        for place, precision in zip(places, precisions, strict=True):  # what is set by those two stands here too
            place.fp32_precision = precision


def _told(ask: Callable[[], Any]) -> Any:
    """Return a setting by its older name; None where the suite has set newer ones that this cannot tell of."""
    try:
        return ask()
    except RuntimeError:
        return None


@contextlib.contextmanager
def _engine(spec: RunSpec) -> Iterator[tuple[Callable[[], float | None], dict[str, Any]]]:
    import torch
    import torch._dynamo as dynamo

    from harness import contract
    from harness.interfaces import DataShard, World
    from harness.loop import steps
    from harness.registry import OPTIMIZERS, WORKLOADS, strategy
    from harness.seeding import seed_generators
    from harness.verification import entering

    dynamo.reset()  # a run has a process of its own; here torch.compile would give up, unasked, after some engines
    entering.require(OPTIMIZERS.get(spec.optimizer), spec)
    seed_generators(spec.seed)
    device = torch.device("cpu") if spec.device == "cpu" else torch.accelerator.current_accelerator()
    assert device is not None, "the plan has found it"
    world = World(0, 1, 0, device, None)
    workload = contract.construct(WORKLOADS.get(spec.workload), spec)
    engine = strategy(spec.strategy).start(workload, OPTIMIZERS.get(spec.optimizer), spec, world)
    shard = DataShard(0, 1, spec.global_batch or 1, spec.accumulation, spec.seed)
    stream = steps(engine, workload.batches(shard), spec, device, [])

    def step() -> float | None:
        result = next(stream)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return None if result.loss is None else float(result.loss)

    about = {
        "workload": spec.workload,
        "size": spec.size,
        "optimizer": spec.optimizer,
        "precision": spec.precision,
        "global_batch": spec.global_batch,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    try:
        step()
        engine.verify_claims()
        yield step, about
    finally:
        engine.close()
