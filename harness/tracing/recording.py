"""Runs a few further steps under torch's profiler and reads off what they allocated and sent.

The steps are untimed and come after everything else of a run. The first only brings the memory that turns over in
every step under the profiler's eyes, the second is the one that counts for memory, the third shows which of its
storages were kept. Collectives are counted over the last two.
"""

from __future__ import annotations

import functools
import gc
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch._C._autograd import DeviceType
from torch._C._profiler import _EventType, _TensorMetadata
from torch.autograd.profiler import record_function
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile

from harness.errors import OptbenchError
from harness.interfaces import HasModules, Phase
from harness.loop import on_device
from harness.tracing.collectives import Call, Tensors, call
from harness.tracing.extents import extent, local_parts
from harness.tracing.ledger import Mark
from harness.tracing.reachable import reachable
from harness.tracing.storages import Extent, Heap, Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from harness.interfaces import Batch, Engine, World
    from harness.tracing.storages import Claimant

STEPS = 3
COUNTED_STEP = 1
"""The step whose memory counts, from 0: one before it and one after it tell what is kept."""
COUNTED_CALLS = (1, 2)
"""The steps whose collectives count."""

MARK, OWN = "optbench::mark::", "optbench::own"
"""Names of ranges in the trace: an instant of ours, and what is the trace's own doing."""

Kernels = tuple[tuple[int, int], ...]
"""Start and end of each, in ns."""


@dataclass(frozen=True)
class Trace:
    """What the pass saw on one rank.

    Attributes:
        storages: with their lifetimes and claims.
        marks: when which phase began.
        calls: the collectives of each counted step.
        collective_kernels: of the counted steps on the device; None: the profiler cannot tell (CPUs).
        other_kernels: likewise; kernels that compute.
        captured: collectives ran on the device that no operator announced, as under a CUDA graph: the calls are
            not all of them.
        device: that the model is on.
        rss_bytes: the most resident memory seen at the marks.
        allocator_peak_bytes: the device allocator's own peak during the counted steps; None on CPUs.
    """

    storages: tuple[Storage, ...]
    marks: tuple[Mark, ...]
    calls: tuple[tuple[Call, ...], ...]
    collective_kernels: Kernels | None
    other_kernels: Kernels | None
    captured: bool
    device: str
    rss_bytes: int
    allocator_peak_bytes: int | None


@dataclass
class _Look:
    """What was seen of the live objects at one mark."""

    phase: Phase
    step: int
    claims: list[tuple[Claimant, Extent]] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)


def record(
    engine: Engine,
    batches: Iterator[Batch],
    accumulation: int,
    world: World,
    kept: Sequence[object],
    resident_bytes: Callable[[], int],
) -> Trace:
    """Train a few steps more and return what they allocated and sent. All ranks must call it together.

    Args:
        engine: as the measured steps left it; it is trained further.
        batches: where the measured steps left off.
        accumulation: micro-batches a step.
        world: this rank.
        kept: objects whose tensors are data: the workload, what yields its batches.
        resident_bytes: the process's resident memory now.

    Raises:
        OptbenchError: a rank could not get its batches, so that none goes on.
        Exception: whatever the engine raises.
    """
    pass_ = _Pass(engine, world, kept, resident_bytes)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.device.type == "cuda" else [])]
    with profile(activities=activities, record_shapes=True, profile_memory=True, acc_events=False) as profiler:
        for step in range(STEPS):
            pass_.step(step, batches, accumulation)
    return pass_.read(profiler.profiler.kineto_results)


class _Pass:
    """The steps, the looks at what is alive between their phases, and the reading of the trace."""

    def __init__(
        self, engine: Engine, world: World, kept: Sequence[object], resident_bytes: Callable[[], int]
    ) -> None:
        self._engine, self._world, self._resident_bytes = engine, world, resident_bytes
        gc.unfreeze()  # the loop froze what existed, and what is frozen cannot be listed
        self._looks: list[_Look] = []
        self._rss_bytes = 0
        self._batch: list[tuple[Claimant, Extent]] = []
        self._present: list[tuple[Extent, StorageWeakRef]] = []
        self._foreign: list[Extent] = []
        self._kept = [place for tensor in _others(engine, kept) for place in _extents(tensor)]
        for tensor in _live_tensors():
            self._watch(tensor)
        for _, tensor in engine.tensors():
            for part in local_parts(tensor):
                self._watch(part)
        self._groups = _group_sizes(world)

    def _watch(self, tensor: Tensor) -> None:
        others = _of_others(tensor)
        self._foreign += others
        storage = tensor.untyped_storage()
        if not others and storage.data_ptr() and storage.nbytes():
            self._present.append((_whole(storage), StorageWeakRef(storage)))  # type: ignore[no-untyped-call]  # torch declares none

    def step(self, step: int, batches: Iterator[Batch], accumulation: int) -> None:
        """Do one step with marks around and within it."""
        device = self._world.device
        micro_batches = _together(lambda: [next(batches) for _ in range(accumulation)], self._world)
        if step == COUNTED_STEP and device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(device)
        for tensor in (tensor for batch in micro_batches for tensor in batch.values()):
            for part in local_parts(tensor):
                self._foreign += _of_others(part)
        self._mark(Phase.DATA, step)
        moved = [on_device(batch, device) for batch in micro_batches]
        self._batch = [
            ("data", place)
            for batch in [*micro_batches, *moved]
            for tensor in batch.values()
            for place in _extents(tensor)
        ]
        del micro_batches
        self._engine.train_step(moved, lambda phase: self._mark(phase, step))
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        self._mark(Phase.END, step)
        self._batch = []

    def _mark(self, phase: Phase, step: int) -> None:
        """Look at what is alive; under a range of its own, which tells when that was in the trace's time."""
        with record_function(f"{MARK}{len(self._looks)}"):
            look = _Look(phase, step)
            self._looks.append(look)
            look.claims += self._batch
            look.claims += [("data", place) for place in self._kept]
            for category, tensor in self._engine.tensors():
                look.claims += [(category, place) for place in _extents(tensor)]
            for index, (_, reference) in enumerate(self._present):
                if reference.expired():  # type: ignore[no-untyped-call]  # likewise
                    look.gone.append(index)
            self._rss_bytes = max(self._rss_bytes, self._resident_bytes())

    def read(self, results: Any) -> Trace:
        """Replay the trace against what was looked at."""
        device = self._world.device
        accelerated = device.type != "cpu"
        peak = int(torch.accelerator.max_memory_allocated(device)) if accelerated else None
        reader = _Reader(self._looks, self._present, self._foreign, self._groups)
        for event in _in_time(results.experimental_event_tree()):
            reader.take(event)
        reader.heap.close(lambda: (_whole(tensor.untyped_storage()) for tensor in _live_tensors()))
        counted = [reader.span(step) for step in COUNTED_CALLS]
        collective, other = _kernels(results, counted) if device.type == "cuda" else (None, None)
        calls = tuple(tuple(reader.calls.get(step, ())) for step in COUNTED_CALLS)
        return Trace(
            storages=tuple(reader.heap.storages),
            marks=tuple(reader.marks),
            calls=calls,
            collective_kernels=collective,
            other_kernels=other,
            captured=bool(collective) and not any(calls),
            device=str(device),
            rss_bytes=self._rss_bytes,
            allocator_peak_bytes=peak,
        )


class _Reader:
    """Takes the profiler's events one by one."""

    def __init__(
        self,
        looks: Sequence[_Look],
        present: Sequence[tuple[Extent, StorageWeakRef]],
        foreign: Sequence[Extent],
        groups: Sequence[int],
    ) -> None:
        self.heap = Heap()
        self.marks: list[Mark] = []
        self.calls: dict[int, list[Call]] = {}
        self._looks, self._foreign, self._groups = looks, foreign, groups
        self._present = [self.heap.present(place) for place, _ in present]

    def take(self, event: Any) -> None:
        """Read one event."""
        if event.tag == _EventType.Allocation:
            self._allocation(event.start_time_ns, event.extra_fields)
        elif event.tag == _EventType.TorchOp:
            if event.name.startswith(MARK):
                self._look(self._looks[int(event.name.removeprefix(MARK))], event.start_time_ns)
            elif event.name.startswith("c10d::") or not _within_operator(event):
                self._operator(event)

    def _allocation(self, time_ns: int, fields: Any) -> None:
        device = _device(fields.device)
        if fields.alloc_size > 0:
            self.heap.allocate(Extent(device, fields.ptr, fields.ptr + fields.alloc_size), time_ns)
        else:
            self.heap.release(device, fields.ptr, time_ns)

    def _look(self, look: _Look, time_ns: int) -> None:
        for index in look.gone:
            self.heap.expire(self._present[index], time_ns)
        for who, place in look.claims:
            self.heap.claim(who, place)
        self.marks.append(Mark(time_ns, look.phase, look.step))

    def _operator(self, event: Any) -> None:
        communicates = event.name.startswith(COMMUNICATING) or event.name in BUFFER_OPERATORS
        for argument in event.extra_fields.inputs[BUFFER_OPERATORS.get(event.name, 0) :]:
            for tensor in _tensors(argument):
                place = _sighted(tensor)
                if place is None or (self.heap.at(place) is None and self._is_foreign(place)):
                    continue
                storage = self.heap.sight(place, event.start_time_ns, event.end_time_ns)
                if self.marks:
                    storage.touched_in.add(self.marks[-1].phase)
                if communicates:
                    storage.used_ns.append(event.start_time_ns)
        if event.name.startswith("c10d::") and self.marks and not _own(event):
            found = call(event.name, [_described(each) for each in event.extra_fields.inputs], self._groups)
            if found is not None:
                self.calls.setdefault(self.marks[-1].step, []).append(found)

    def _is_foreign(self, place: Extent) -> bool:
        """Whether memory is not from torch's allocators: resident memory shows it, the ledger does not."""
        return any(each.device == place.device and each.first <= place.first < each.end for each in self._foreign)

    def span(self, step: int) -> tuple[int, int]:
        """Return when a step began and ended."""
        times = [mark.time_ns for mark in self.marks if mark.step == step]
        return times[0], times[-1]


COMMUNICATING = ("c10d::", "gloo:", "nccl:")
"""Of what works on the memory of collectives: the operators, and the work of the backends' threads."""

BUFFER_OPERATORS = {"fsdp::split_with_sizes_copy": 0, "fsdp::chunk_cat": 2, "fsdp::all_gather_copy_in": 0}
"""Operators of FSDP2 that fill and empty the buffers of its collectives, and the first argument that is one.

The unsharded parameters that a gathered buffer is copied into are buffers too; a gradient is not.
"""


def _together(fetch: Callable[[], list[Batch]], world: World) -> list[Batch]:
    """Fetch batches on every rank, or raise on every rank: one that went on alone would wait for ever."""
    failure: Exception | None = None
    found: list[Batch] = []
    try:
        found = fetch()
    except Exception as error:  # noqa: BLE001  # the workload's own; the others must hear of it first
        failure = error
    if world.backend is not None:
        with record_function(OWN):
            fine = torch.tensor([0 if failure else 1], device=world.device)
            dist.all_reduce(fine, op=dist.ReduceOp.MIN)
            if failure is None and not int(fine):
                raise OptbenchError("another rank got no batch")
    if failure is not None:
        raise failure
    return found


def _whole(storage: torch.UntypedStorage) -> Extent:
    first = storage.data_ptr()
    return Extent(str(storage.device), first, first + storage.nbytes())


def _of_others(tensor: Tensor) -> list[Extent]:
    """Return a tensor's memory if none of torch's allocators gave it: numpy's, a mapped file's, shared memory."""
    storage = tensor.untyped_storage()
    return [_whole(storage)] if storage.device.type == "cpu" and not storage.resizable() else []


def _live_tensors() -> Iterator[Tensor]:
    """Yield every plain tensor with memory that Python knows of; wrappers' inner tensors come by themselves."""
    has_storage = torch._C._has_storage  # noqa: SLF001  # the only way to ask without an exception
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # attributes of foreign subclasses may warn
        plain: dict[type, bool] = {}
        for found in gc.get_objects():
            kind = type(found)  # not isinstance: proxies would import what they stand for
            if kind not in plain:
                plain[kind] = issubclass(kind, Tensor) and kind.__torch_dispatch__ is Tensor.__torch_dispatch__
            if plain[kind] and found.device.type != "meta" and has_storage(found):
                yield found


def _others(engine: Engine, kept: Sequence[object]) -> Iterator[Tensor]:
    """Yield the tensors of the workload, and those that the model has beside parameters and buffers."""
    modules = list(engine.modules()) if isinstance(engine, HasModules) else []
    for module in modules:
        yield from (found for found in vars(module).values() if isinstance(found, Tensor))
    beyond = [engine, *modules]
    yield from (tensor for _, tensor in reachable(kept, beyond))


def _extents(tensor: Tensor) -> Iterator[Extent]:
    for part in local_parts(tensor):
        place = extent(part)
        if place is not None:
            yield place


def _group_sizes(world: World) -> list[int]:
    """Return the sizes of the process groups with more than one rank, each once."""
    if world.backend is None:
        return []
    groups = dist.distributed_c10d._world.pg_map  # noqa: SLF001  # no public list of them exists
    return sorted({size for size in (group.size() for group in groups) if size > 1})


def _in_time(tree: Iterable[Any]) -> list[Any]:
    """Return the events of a tree in the order in which they began."""
    events, stack = [], list(reversed(list(tree)))
    while stack:
        event = stack.pop()
        events.append(event)
        stack += reversed(event.children)
    return sorted(events, key=lambda event: event.start_time_ns)


def _within_operator(event: Any) -> bool:
    """Whether an event is part of an operator of torch's own, whose arguments have been looked at."""
    return event.parent is not None and event.parent.name.startswith("aten::")


def _own(event: Any) -> bool:
    """Whether an event is the trace's own doing."""
    while event is not None:
        if event.name == OWN or event.name.startswith(MARK):
            return True
        event = event.parent
    return False


def _tensors(argument: Any) -> Iterator[Any]:
    if isinstance(argument, _TensorMetadata):
        yield argument
    elif isinstance(argument, list):
        for each in argument:
            yield from _tensors(each)


def _described(argument: Any) -> Tensors | None:
    found = list(_tensors(argument))
    if not found:
        return None
    return Tensors(_dtype(found[0]), tuple(tuple(each.sizes) for each in found))


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sighted(tensor: Any) -> Extent | None:
    """Return the memory that an operator's argument must at least have."""
    first, sizes, strides = tensor.storage_data_ptr, tensor.sizes, tensor.strides
    if not first or tensor.layout is not torch.strided or 0 in sizes or len(sizes) != len(strides):
        return None
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return Extent(_device(tensor.device), first, first + (last + 1) * tensor.dtype.itemsize)


@functools.cache
def _device(device: torch.device) -> str:
    """Return a device's name; there are few, and thousands of arguments."""
    return str(device)


def _kernels(results: Any, spans: Sequence[tuple[int, int]]) -> tuple[Kernels, Kernels]:
    """Return the device's collective kernels and the others within some spans of time."""
    collective: list[tuple[int, int]] = []
    other: list[tuple[int, int]] = []
    for event in results.events():
        # Ranges of the host's stand on the device's timeline too, over the kernels that they launched.
        if event.device_type() != DeviceType.CUDA or event.is_user_annotation():
            continue
        start = event.start_ns()
        if any(first <= start < end for first, end in spans):
            name = event.name()
            if name.startswith(("Memcpy", "Memset", "optbench::", "##")) or not event.duration_ns():
                continue
            kernels = collective if name.startswith(("ncclDevKernel", "ncclKernel")) else other
            kernels.append((start, start + event.duration_ns()))
    return tuple(collective), tuple(other)
