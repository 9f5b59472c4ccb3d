"""What does not step element by element, under every strategy that splits tensors or their list, beside one rank.

How far losses may part is measured: by the same training on one rank with the last bit of every gradient
changed, and, of optimizers that draw numbers, with other draws. ``python -m test_splitting`` in this folder prints
the table of docs/verification.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys

import pytest
import worlds

from harness import kernels, probe
from harness.plan import plan
from harness.registry import OPTIMIZERS, STRATEGIES, strategy
from harness.spec import RunSpec

pytestmark = [pytest.mark.timeout(3600), pytest.mark.exhaustive]

STEPS = 12

LEAST = 1e-5
"""Largest relative difference of a loss that is rounding in any case."""

TWINS = 30.0
"""Times the largest difference so far that one unit in the last place of each gradient makes on one rank."""

OPTIONS = {"hsdp": {"replicas": 1}}
"""Two replicas of two ranks would split nothing."""


@dataclasses.dataclass(frozen=True)
class Found:
    """One cell.

    Attributes:
        optimizer: its name.
        strategy: its name.
        apart: largest relative difference of a loss from one rank's; None: refused.
        twin: the same of one rank whose gradients' last bits, or draws, are others.
        told: why it was refused or has failed; None: it ran.
    """

    optimizer: str
    strategy: str
    apart: float | None
    twin: float
    told: str | None = None
    failed: bool = False


@functools.cache
def machine():
    return probe.machine((), (), print)


def subjects() -> list[str]:
    """Return everything registered that depends on tensors, matrices or the model, and runs without a closure."""
    return [
        name
        for name in OPTIMIZERS.names()
        if (traits := OPTIMIZERS.get(name).traits).granularity in {"tensor", "matrix", "model"}
        and not traits.closure
        and not traits.owns_reduction
        and not name.endswith("/compiled")
    ]


def ways() -> list[str]:
    """Return every strategy that keeps a share of something on each rank, and DDP."""
    return ["ddp", *(name for name in STRATEGIES.names() if getattr(strategy(name), "partitioned", ()))]


def spec(optimizer: str, name: str) -> RunSpec:
    ranks = 1 if strategy(name).one_rank else 2
    fields = {"steps": STEPS, "warmup_steps": 2, "device": "cpu", "strategy_options": OPTIONS.get(name, {})}
    return RunSpec(workload="tiny:Tiny", optimizer=optimizer, strategy=name, world_size=ranks, **fields)


def survey(names: list[str]) -> list[Found]:
    """Train every optimizer under every strategy, and return what came of each."""
    asked = [spec(name, way) for name in names for way in ("single", *ways())]
    cells = plan(asked, machine()).cells
    able = {cell.spec.optimizer for cell in cells if cell.spec.strategy == "single" and cell.unsupported is None}
    refused = [cell for cell in cells if cell.spec.optimizer in able and cell.unsupported is not None]
    running = [cell for cell in cells if cell.spec.optimizer in able and cell.unsupported is None]
    kernels.ensure(sorted({name for cell in running for name in cell.kernels}), print, "cpu")
    wanted = [(cell.spec, None) for cell in running]
    alone = [each for each, _ in wanted if each.strategy == "single"]
    wanted += [(each, patch) for patch in ("one-ulp", "other-draws") for each in alone]
    ran = worlds.run([each for each, _ in wanted], [patch for _, patch in wanted], limit_s=3000)
    by = {(each.spec.optimizer, each.spec.strategy, each.patch): each for each in ran}
    found = [Found(cell.spec.optimizer, cell.spec.strategy, None, 0.0, cell.unsupported) for cell in refused]
    for each in ran:
        name, way = each.spec.optimizer, each.spec.strategy
        if way == "single":
            continue
        one = by[name, "single", None]
        twins = [by[name, "single", patch] for patch in ("one-ulp", "other-draws")]
        twin = max(distance(other, one) for other in twins)
        if each.outcome != "completed":
            found.append(Found(name, way, None, twin, each.reason, failed=each.outcome != "unsupported"))
        else:
            found.append(Found(name, way, distance(each, one), twin))
    return found


def distance(one: worlds.Ran, other: worlds.Ran) -> float:
    pairs = zip(one.losses, other.losses, strict=True)
    return max(abs(a - b) / abs(b) if math.isfinite(a - b) else math.inf for a, b in pairs)


def test_what_needs_whole_tensors_trains_the_curve_of_one_rank_or_is_refused():
    found = survey(subjects())
    assert [each for each in found if each.failed] == []
    assert [each for each in found if each.told == ""] == []
    parted = [each for each in found if each.apart is not None and each.apart > max(LEAST, TWINS * each.twin)]
    assert parted == []


def table(found: list[Found]) -> str:
    """Return a line an optimizer: what its own rounding makes, and how far each strategy's losses are.

    Strategies that refuse all are left out.
    """
    names = [name for name in ways() if any(e.strategy == name and (e.apart or e.failed) for e in found)]
    lines = [f"| optimizer | last bit or draws | {' | '.join(names)} |", f"| --- | --- |{' --- |' * len(names)}"]
    for optimizer in dict.fromkeys(each.optimizer for each in found):
        by = {each.strategy: each for each in found if each.optimizer == optimizer}
        twin = max(each.twin for each in by.values())
        cells = [_cell(by[name]) for name in names]
        lines.append(f"| {optimizer} | {twin:.0e} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Found) -> str:
    if found.apart is None:
        return "failed" if found.failed else "refused"
    return f"{found.apart:.0e}"


if __name__ == "__main__":
    print(table(survey(sys.argv[1:] or subjects())))
