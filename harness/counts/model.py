"""What is counted of a cell: exact numbers, the same on every machine and in every repetition."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.spec import RunSpec  # noqa: TC001  # pydantic evaluates it

Kind = Literal[
    "graphs", "graph_breaks", "recompiles", "operators", "kernel_launches", "collectives", "collective_bytes",
    "allocations", "allocated_bytes", "peak_bytes", "held_bytes", "imports",
]  # fmt: skip
"""What a count is of.

``graphs``, ``graph_breaks`` (by reason) and ``recompiles`` (by function): since the process began. ``operators``:
calls a step by name and overload, those that operators call themselves included. ``kernel_launches``: a step, on
CUDA; unknown elsewhere. ``collectives`` and ``collective_bytes`` (payload): a step, by collective and dtype.
``allocations`` and ``allocated_bytes``: a step, by the outermost operator that asked torch's allocator.
``peak_bytes``: the most held at once of what the counted steps allocated, less what collectives worked on, whose
release is up to their threads. ``held_bytes``: after those steps, by category and dtype, optimizer state too.
``imports``: modules that setting up workload, strategy and optimizer brought in, by top-level package.
"""

MEANING: dict[Kind, tuple[str, str]] = {
    "graphs": ("graphs compiled", ""),
    "graph_breaks": ("graph break", ""),
    "recompiles": ("recompiles of", ""),
    "operators": ("", " a step"),
    "kernel_launches": ("on the device:", " a step"),
    "collectives": ("collective", " a step"),
    "collective_bytes": ("payload of", " B a step"),
    "allocations": ("allocations by", " a step"),
    "allocated_bytes": ("bytes allocated by", " B a step"),
    "peak_bytes": ("peak of a step:", " B"),
    "held_bytes": ("held:", " B"),
    "imports": ("modules imported from", ""),
}
"""Words before a count's name and after its numbers."""

EVERY_RANK = "every"
"""The key of `Counts.ranks` where all ranks counted the same."""

Number = Annotated[int | float, Field(ge=0, allow_inf_nan=False)]
"""Whole; with a fraction where the counted steps differ from each other."""

RankCounts = dict[Kind, dict[str, Number]]
"""Of one rank; a kind that is unknown there is left out, one of which there are none is empty."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Counts(_Frozen):
    """What one cell counted."""

    torch: str
    """Version of torch, the build included."""
    device: str
    """``cpu``, or the accelerator's name: kernels differ from one to the next."""
    world_size: Annotated[int, Field(ge=1)]
    ranks: dict[str, RankCounts]
    """By rank, ``"0"``, ``"1"``, …; or under ``"every"`` alone, where no rank differs."""

    @model_validator(mode="after")
    def _check(self) -> Counts:
        if set(self.ranks) not in ({EVERY_RANK}, {str(rank) for rank in range(self.world_size)}):
            raise ValueError(f"names ranks {sorted(self.ranks)}, not those of {self.world_size}")
        return self

    def of_rank(self, rank: int) -> RankCounts:
        """Return what one rank counted."""
        return self.ranks[EVERY_RANK if EVERY_RANK in self.ranks else str(rank)]


class Job(_Frozen):
    """What one world of ranks is asked for."""

    spec: RunSpec
    """With every default resolved."""
    drift_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of the long run after the counts; 0: none."""


class Sample(_Frozen):
    """What was alive in one process after a step, garbage collected."""

    step: int
    rss_bytes: int
    blocks: int
    """Of Python's allocator: objects that no collector tracks (numbers, strings) show here only."""
    tensors: dict[str, int]
    """By dtype and shape."""
    objects: dict[str, int]
    """Other objects by type."""


class RankDrift(_Frozen):
    """A long run in one process."""

    samples: tuple[Sample, ...]
    step_time_s: tuple[float, ...]
    """Of each step."""
    cpu_time_s: tuple[float, ...]
    """Of each step, all threads of the process."""
    fixed_work_s: tuple[float, ...]
    """CPU time of the same arithmetic after each step."""


class RankResult(_Frozen):
    """What one rank writes down for a job."""

    torch: str
    device: str
    counts: RankCounts
    drift: RankDrift | None = None


class Measured(_Frozen):
    """What the ranks of one cell found together."""

    counts: Counts
    drift: tuple[RankDrift, ...] = ()
    """By rank; empty: not asked for."""


def together(ranks: list[RankResult]) -> Measured:
    """Put what each rank wrote together; ranks that agree are told once."""
    first = ranks[0]
    same = all(each.counts == first.counts for each in ranks)
    by_rank = {EVERY_RANK: first.counts} if same else {str(n): each.counts for n, each in enumerate(ranks)}
    counts = Counts(torch=first.torch, device=first.device, world_size=len(ranks), ranks=by_rank)
    return Measured(counts=counts, drift=tuple(each.drift for each in ranks if each.drift is not None))
