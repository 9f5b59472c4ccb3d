"""A tensor of more elements than an index of 32 bits counts: checked at its ends and around the boundaries.

Everything but a few windows holds one value and one gradient, so that no copy of the whole is needed: the windows
are held to the float64 reference, and the rest must have moved all alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from harness.cgroup import memory_limit_bytes
from harness.interfaces import ParamGroup
from harness.precision import stepped_dtype
from harness.verification.certificate import Check
from harness.verification.playing import Step, device, synchronise
from harness.verification.sized import judged
from harness.verification.stream import SIZE, Group, Member

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from harness.interfaces import Optimizer
    from harness.references.reference import State
    from harness.spec import RunSpec
    from harness.verification.comparing import Held

NAME = "more than 2^31 elements"
EDGES = (2**29, 2**30, 2**31)
"""Where bytes of float32, bytes of 16 bits and elements outgrow a signed index of 32 bits."""
ELEMENTS = 2**31 + 4099
STEPS = 2

_WINDOW = 256
_CHUNK = 2**26
_REST = 0.01
"""Parameter and gradient outside of the windows."""


def needed_bytes(optimizer: Optimizer, spec: RunSpec, elements: int = ELEMENTS) -> int:
    """Return what the trial takes: parameter, gradient, state, and one tensor for what a step computes."""
    width: int = getattr(torch, stepped_dtype(spec.precision)).itemsize
    traits = optimizer.traits
    state: float | None = traits.state_bytes
    if state is None:
        state = traits.state_tensors * (width if traits.state_follows_parameters else 4)
    return math.ceil(elements * (3 * width + state))


def free_bytes(where: torch.device) -> int:
    """Return the memory that is free on a device, within this process's limit."""
    if where.type == "cuda":
        return int(torch.cuda.mem_get_info(where)[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = memory_limit_bytes()
    return free if limit is None else min(free, limit)


def check(
    optimizer: Optimizer,
    spec: RunSpec,
    held: Held,
    elements: int = ELEMENTS,
    edges: Sequence[int] = EDGES,
) -> Check:
    """Step one tensor of so many elements.

    Args:
        optimizer: an implementation that steps every element by itself.
        spec: its hyperparameters, precision and device.
        held: what it is held to.
        elements: of the tensor.
        edges: around which it is looked at, beside its ends.
    """
    where = device(spec)
    needed, free = needed_bytes(optimizer, spec, elements), free_bytes(where)
    if needed > free:
        told = f"not tried: needs {needed / 2**30:.0f} GiB of memory, {free / 2**30:.0f} are free"
        return Check(name=NAME, verdict="not applicable", detail=told)
    starts = _starts(elements, edges)
    dtype = getattr(torch, stepped_dtype(spec.precision))
    parameter = torch.full((elements,), _REST, dtype=dtype, device=where)
    gradient = torch.full((elements,), _REST, dtype=dtype, device=where)
    for start in starts:
        _window(parameter, start).copy_(SIZE * _drawn(start))
    parameter.requires_grad_()
    live = optimizer.build([ParamGroup(("huge",), (parameter,), "vector")], spec)
    steps = []
    for number in range(1, STEPS + 1):
        for start in starts:
            _window(gradient, start).copy_(_drawn(start + number))
        before = _seen(parameter, starts)
        gradients = _seen(gradient, starts)
        parameter.grad = gradient
        live.step()
        synchronise(where)
        steps.append(Step(number, 1.0, before, gradients, _seen(parameter, starts)))
    return _judged(held, steps, starts, parameter.detach())


def _starts(elements: int, edges: Sequence[int]) -> list[int]:
    """Return where the windows begin."""
    around = [edge - _WINDOW // 2 for edge in edges if edge + _WINDOW // 2 < elements]
    return sorted({0, *around, elements - _WINDOW})


def _window(tensor: Tensor, start: int) -> Tensor:
    return tensor.detach()[start : start + _WINDOW]


def _drawn(seed: int) -> Tensor:
    return torch.randn(_WINDOW, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _seen(tensor: Tensor, starts: Sequence[int]) -> dict[str, Tensor]:
    return {str(start): _window(tensor, start).to("cpu", torch.float64, copy=True) for start in starts}


def _updates(held: Held, steps: Sequence[Step], starts: Sequence[int]) -> Iterator[dict[str, Tensor]]:
    assert held.reference.update is not None, "closures are tried apart"
    states: dict[int, State] = {start: {} for start in starts}
    h = held.hyperparameters(Group("vector"), 1.0, {})
    for step in steps:
        moved = {}
        for start in starts:
            p, g = step.before[str(start)], step.gradients[str(start)]
            assert g is not None, "every window has a gradient"
            moved[str(start)] = held.reference.update(p, g, states[start], h) - p
        yield moved


def _judged(held: Held, steps: Sequence[Step], starts: Sequence[int], parameter: Tensor) -> Check:
    members = [Member(str(start), (_WINDOW,)) for start in starts]
    found = judged(held.bound, members, steps, list(_updates(held, steps, starts)))
    places = [
        start + int(part.nonzero()[0])
        for start, (_, part) in zip(starts, found.parts(found.wrong), strict=True)
        if bool(part.any())
    ]
    count = parameter.numel()
    worst = found.worst
    if places:
        verb = "does not move" if bool((found.still == found.wrong).all()) else "gets a wrong update"
        detail = f"element number {places[0] + 1:,} of {count:,} {verb}, in {len(places)} of {len(starts)} places"
        return Check(
            name=NAME, verdict="wrong", error=worst.error, bound=worst.bound, step=worst.step, detail=detail
        )
    apart = _unlike_the_rest(parameter, starts)
    if apart is not None:
        detail = f"element number {apart + 1:,} of {count:,} moves otherwise than others of its value and gradient"
        return Check(name=NAME, verdict="wrong", detail=detail)
    return Check(
        name=NAME,
        verdict="passed",
        error=worst.error,
        bound=worst.bound,
        step=worst.step,
        detail=f"{count:,} elements, looked at in {len(starts)} places",
    )


def _unlike_the_rest(parameter: Tensor, starts: Sequence[int]) -> int | None:
    """Return the first element outside the windows that is not where the first such is, in more than rounding."""
    sample = float(parameter[_WINDOW])
    room = 4 * torch.finfo(parameter.dtype).eps * abs(sample)
    for start in range(0, parameter.numel(), _CHUNK):
        chunk = parameter[start : start + _CHUNK]
        apart = ~((chunk - sample).abs() <= room)
        for window in starts:
            apart[max(0, window - start) : max(0, window - start + _WINDOW)] = False
        if bool(apart.any()):
            return start + int(apart.nonzero()[0])
    return None
