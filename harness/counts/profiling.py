"""Counts of a few steps from torch's profiler: operators, launches, collectives, allocations, the peak.

The profiler sees what a dispatch mode would not: operators of C++ reducers and of compiled code, which is not
compiled anew for it.
"""

from __future__ import annotations

import functools
import gc
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._C._autograd import DeviceType
from torch._C._profiler import _EventType, _ExperimentalConfig, _TensorMetadata
from torch.profiler import ProfilerActivity, profile

from harness.counts.extents import distinct_bytes
from harness.tracing.collectives import Tensors, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from harness.counts.model import Kind, Number, RankCounts
    from harness.interfaces import Engine, World

STEPS = 2
"""Counted steps: what is done in every other step only counts half."""


def profiled(step: Callable[[], None], engine: Engine, world: World) -> RankCounts:
    """Take the counted steps and return what they did. All ranks must call it together.

    Args:
        step: trains one step.
        engine: that is trained.
        world: this rank.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.device.type == "cuda" else [])]
    gc.collect()
    gc.disable()  # what it would release, and when, depends on all that the process did before
    try:
        with profile(
            activities=activities,
            record_shapes=True,
            profile_memory=True,
            acc_events=False,
            experimental_config=_named_overloads(),
        ) as profiler:
            for _ in range(STEPS):
                step()
            if world.device.type != "cpu":
                torch.accelerator.synchronize(world.device)
    finally:
        gc.enable()
    results = profiler.profiler.kineto_results
    events = list(_walk(results.experimental_event_tree()))
    counts: RankCounts = {
        "operators": _a_step(Counter(_name(each) for each in events if _is_operator(each))),
        **_collectives(events, _group_sizes(world)),
        **_allocations(events, str(world.device)),
        "held_bytes": distinct_bytes(engine.tensors()),
    }
    if world.device.type == "cuda":
        counts["kernel_launches"] = _a_step(_launches(results))
    return counts


def _named_overloads() -> Any:
    try:
        return _ExperimentalConfig(capture_overload_names=True)
    except TypeError:  # an older torch: names without overloads
        return _ExperimentalConfig()


def _a_step(totals: Counter[str]) -> dict[str, Number]:
    return {
        name: total // STEPS if total % STEPS == 0 else total / STEPS for name, total in sorted(totals.items())
    }


def _walk(tree: Iterable[Any]) -> Iterator[Any]:
    stack = list(tree)
    while stack:
        event = stack.pop()
        yield event
        stack += event.children


def _is_operator(event: Any) -> bool:
    """Whether an event is a call through the dispatcher, and no range that autograd or a user named."""
    name = event.name
    return event.tag == _EventType.TorchOp and "::" in name and not name.startswith(AUTOGRAD) and " " not in name


AUTOGRAD = ("autograd::", "torch::autograd::", "torch::jit::")


def _name(event: Any) -> str:
    overload = getattr(event, "overload_name", "")
    return f"{event.name}.{overload}" if overload else str(event.name)


def _collectives(events: Iterable[Any], groups: list[int]) -> RankCounts:
    calls: Counter[str] = Counter()
    payload: Counter[str] = Counter()
    for event in events:
        if event.tag == _EventType.TorchOp and event.name.startswith("c10d::"):
            found = call(event.name, [_described(each) for each in event.extra_fields.inputs], groups)
            if found is not None:
                name = f"{found.collective} {found.dtype}"
                calls[name] += 1
                payload[name] += found.payload_bytes
    return {"collectives": _a_step(calls), "collective_bytes": _a_step(payload)}


def _group_sizes(world: World) -> list[int]:
    """Return the sizes of the process groups, each once; those of one rank too, unless there are others."""
    if world.backend is None:
        return []
    groups = torch.distributed.distributed_c10d._world.pg_map  # noqa: SLF001  # no public list of them exists
    sizes = {group.size() for group in groups}
    return sorted(size for size in sizes if size > 1) or sorted(sizes)


def _described(argument: Any) -> Tensors | None:
    found = list(_tensors(argument))
    if not found:
        return None
    dtype = str(found[0].dtype).removeprefix("torch.")
    return Tensors(dtype, tuple(tuple(each.sizes) for each in found))


def _tensors(argument: Any) -> Iterator[Any]:
    if isinstance(argument, _TensorMetadata):
        yield argument
    elif isinstance(argument, list):
        for each in argument:
            yield from _tensors(each)


def _allocations(events: Iterable[Any], device: str) -> RankCounts:
    found = [
        each
        for each in events
        if each.tag == _EventType.Allocation and _device(each.extra_fields.device) == device
    ]
    number: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for each in found:
        if each.extra_fields.alloc_size > 0:
            asked = _outermost(each)
            number[asked] += 1
            size[asked] += each.extra_fields.alloc_size
    sent = [each for each in events if each.tag == _EventType.TorchOp and each.name.startswith("c10d::")]
    kinds: tuple[Kind, Kind] = ("allocations", "allocated_bytes")
    both: RankCounts = {kind: _a_step(total) for kind, total in zip(kinds, (number, size), strict=True)}
    return {**both, "peak_bytes": {"allocated in it": _peak(_lifetimes(found, sent))}}


@dataclass(eq=False)
class _Block:
    """Memory that was allocated in the counted steps; places in the order of events, which no clock changes."""

    address: int
    size: int
    born: int
    died: int | None = None
    sent: bool = False


def _lifetimes(allocations: Iterable[Any], sent: Iterable[Any]) -> list[_Block]:
    """Return the blocks, and of each whether a collective read or wrote it.

    Of memory that was there before, the profiler tells the release now and then only: it is left out.
    """
    blocks: list[_Block] = []
    live: dict[int, _Block] = {}
    for place, each in enumerate(sorted([*allocations, *sent], key=lambda event: event.start_time_ns)):
        if each.tag != _EventType.Allocation:
            for tensor in _tensors(list(each.extra_fields.inputs)):
                _mark(live.values(), tensor.storage_data_ptr)
            continue
        address, change = each.extra_fields.ptr, each.extra_fields.alloc_size
        gone = live.pop(address, None)
        if gone is not None:
            gone.died = place
        if change > 0:
            live[address] = _Block(address, change, place, sent=_within_collective(each))
            blocks.append(live[address])
    return blocks


def _within_collective(event: Any) -> bool:
    """Whether memory is a backend's own copy of what it sends."""
    parent = event.parent
    while parent is not None and not parent.name.startswith("c10d::"):
        parent = parent.parent
    return parent is not None


def _mark(live: Iterable[_Block], address: int | None) -> None:
    for block in live:
        if address is not None and block.address <= address < block.address + block.size:
            block.sent = True


def _peak(blocks: Iterable[_Block]) -> int:
    """Return the most that was live at once.

    Not of what collectives work on: their threads let go of it when they get round to it.
    """
    changes = [(block.born, block.size) for block in blocks if not block.sent]
    changes += [(block.died, -block.size) for block in blocks if not block.sent and block.died is not None]
    live = peak = 0
    for _, change in sorted(changes):
        live += change
        peak = max(peak, live)
    return peak


@functools.cache
def _device(device: torch.device) -> str:
    return str(device)


def _outermost(event: Any) -> str:
    """Return the outermost operator that an allocation was made for."""
    name, parent = "no operator", event.parent
    while parent is not None:
        if _is_operator(parent):
            name = _name(parent)
        parent = parent.parent
    return name


def _launches(results: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for event in results.events():
        if event.device_type() == DeviceType.CUDA and not event.name().startswith(("optbench::", "##")):
            kind = next((word for word in ("Memcpy", "Memset") if event.name().startswith(word)), "kernels")
            found[kind] += not event.is_user_annotation()
    return found
