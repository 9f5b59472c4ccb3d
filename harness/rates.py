"""Learning rates in parameter groups: which are numbers, what their peaks are, and how a schedule sets them.

A group's rate may be a number, a tensor of one element, or what no schedule can scale: None (the optimizer finds
its own), a word, a callable. The last kind is left alone.
"""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PEAK = "initial_lr"
"""Key of a parameter group for its peak learning rate; the one that torch's own schedulers use."""


def number(value: object) -> float | None:
    """Return a setting as a number, where it is one or a tensor of one element; None: it is neither."""
    if isinstance(value, Real):
        return None if isinstance(value, bool) else float(value)
    if value is None or isinstance(value, str):
        return None
    import torch

    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value.item())
    return None


def peaks(optimizer: torch.optim.Optimizer) -> list[float | None]:
    """Return each group's learning rate as it is; None: a schedule has none to set."""
    return [number(group.get("lr")) for group in optimizer.param_groups]


def remember_peak(optimizer: torch.optim.Optimizer) -> None:
    """Note each group's present learning rate as its peak, once; one that is no number is left alone."""
    for group, peak in zip(optimizer.param_groups, peaks(optimizer), strict=True):
        if peak is not None:
            group.setdefault(PEAK, peak)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times its peak.

    A rate held in a tensor is filled in place, without a synchronisation: a compiled step then keeps its graph.
    """
    import torch

    for group in optimizer.param_groups:
        rate = group.get("lr")
        if not isinstance(rate, (Real, torch.Tensor)):
            continue
        peak = group.get(PEAK)
        if peak is None:
            peak = number(rate)
            if peak is None:
                continue
            group[PEAK] = peak
        if isinstance(rate, torch.Tensor):
            rate.fill_(peak * factor)
        else:
            group["lr"] = peak * factor


def unscheduled(optimizer: torch.optim.Optimizer, schedule: str) -> str | None:
    """Say that a schedule does nothing to some parameter groups, whose ``lr`` is no number; None: it sets all.

    Args:
        optimizer: that trains.
        schedule: of the run.
    """
    groups = [group for group in optimizer.param_groups if group["params"]]
    left = [group for group in groups if number(group.get("lr")) is None]
    if schedule == "constant" or not left:
        return None
    unset = (
        "every parameter group" if len(left) == len(groups) else f"{len(left)} of {len(groups)} parameter groups"
    )
    named = next((group for group in left if "lr" in group), None)
    if named is not None:
        found, remedy = f"lr is {named['lr']!r}: it may find its own rate", "give --lr"
    else:
        keys = sorted(str(key) for key in left[0] if key not in {"params", "param_names"})
        found, remedy = f"they hold {', '.join(keys) or 'nothing'}", "name the rate lr in the groups"
    return (
        f"the schedule {schedule} does nothing to {unset}, where lr is no number ({found}); "
        f"{remedy}, or use --set schedule=constant"
    )
