"""Is a step no faster than memory allows for what it must move?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from harness.gauges import last_cache_bytes
from harness.tracing.extents import local_parts

if TYPE_CHECKING:
    from harness.interfaces import Engine

CACHES = 4
"""Only where the bytes exceed so many last-level caches: what fits into them need not come from memory."""

GENEROUS = 2.0
"""Times the bandwidth that a copy reached at the end of the run: other ranks copy too, fused loads do better."""

_ROUNDS = 3
_READ_AND_WRITTEN = {"parameters": 2, "master": 2, "state": 2, "gradients": 1}


def moved_bytes(engine: Engine, device: torch.device, state_bytes: float) -> float | None:
    """Return how many bytes an update must move: parameters and state in and out, gradients in.

    Args:
        engine: walked for what it holds.
        device: tensors elsewhere (offloaded ones) are left out.
        state_bytes: for each element of a parameter, what is read and written in every step. Of what is held
            beyond that (slow weights, snapshots) nobody can say when it is touched.

    Returns:
        None where gradients are sparse: then only some rows move.
    """
    moved = dict.fromkeys(_READ_AND_WRITTEN, 0)
    elements, held = 0, set()
    for category, tensor in engine.tensors():
        if tensor.layout is not torch.strided:
            return None
        if category not in moved:
            continue
        for part in local_parts(tensor):
            if part.device == device and part.numel() and part.data_ptr() not in held:
                held.add(part.data_ptr())
                moved[category] += _READ_AND_WRITTEN[category] * part.numel() * part.element_size()
                elements += part.numel() if category == "parameters" else 0
    state = min(float(moved.pop("state")), _READ_AND_WRITTEN["state"] * state_bytes * elements)
    return sum(moved.values()) + state


def last_level_bytes(device: torch.device) -> int:
    """Return the size of the device's last cache; 0: not told."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return last_cache_bytes()


def copy_bytes_per_s(device: torch.device, cache_bytes: int) -> float:
    """Return what copying reaches, the best of a few rounds; both directions are counted.

    Args:
        device: to copy on, with the threads of the run.
        cache_bytes: of the last cache; source and target are together four times as large.
    """
    source = torch.ones(max(1 << 22, CACHES // 2 * cache_bytes), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(_ROUNDS + 1):  # the first one meets fresh pages
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * source.numel() / best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def too_fast(step_s: float, bytes_moved: float, bytes_per_s: float, cache_bytes: int) -> str | None:
    """Say that a step took less than its bytes need at ``GENEROUS`` times the bandwidth; None: it did not.

    What the caches may have kept from the step before, read or not yet written, is taken off.
    """
    needed = (bytes_moved - 2 * cache_bytes) / (GENEROUS * bytes_per_s)
    if step_s >= needed:
        return None
    return (
        f"a step took {step_s:.3g} s, and moving the {bytes_moved / 2**20:.0f} MiB of parameters, gradients and "
        f"state takes {needed:.3g} s even at {GENEROUS * bytes_per_s / 1e9:.0f} GB/s"
    )
