"""What a comparison holds: arms, its plan made in advance, every launch's raw turns, and what came of them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from harness.spec import RunSpec  # noqa: TC001  # pydantic evaluates it

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPARISON_VERSION = 2
"""2: looks say what they spend of the error, and the rest is spent where the budget ends."""

Verdict = Literal["faster", "slower", "equivalent", "inconclusive"]
"""Of B against A. ``equivalent``: the whole interval lies within the margin on both sides."""

Outcome = Literal["completed", "failed", "interrupted", "incomplete"]
"""``incomplete``: what stands in the store until the end, and for good where the driver is killed."""

STEP_TIME = "step_time_s"
"""The metric that decides a comparison; the others are shown beside it."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, ser_json_inf_nan="strings")


class Arm(_Frozen):
    """One side of a comparison: a spec, and where and how its code runs."""

    name: str
    """Unique within the comparison; ``adamw/fused``, or what the TOML file says."""
    spec: RunSpec
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables on top of the driver's."""
    python: str | None = None
    """Interpreter; None: the driver's own."""
    path: str | None = None
    """Checkout whose ``harness`` and ``workloads`` are imported; None: what the interpreter has installed."""


class Design(_Frozen):
    """What is fixed before the first launch, so that nothing is decided after a look at the data.

    Launches end by the clock and looks are added where time is left: elapsed time alone decides that.
    """

    looks: tuple[int, ...]
    """Numbers of valid launches at which the data are looked at, rising; none: it ended before its first turn."""
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Of ``alpha``, what each look may spend; none: the same for each, as in version 1."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Two-sided error of one arm beside the first, over all looks together: 1 % shared by the arms."""
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Relative difference that does not matter, 0.025 for 2.5 %."""
    rounds: Annotated[int, Field(ge=0)]
    """Turns of each arm in one launch, as planned: a launch ends with its share of the time."""
    turn_steps: Annotated[int, Field(ge=0)]
    """Timed steps in a turn."""
    lead_steps: Annotated[int, Field(ge=0)] = 1
    """Steps at the start of a turn that are not timed: the caches held another arm's data."""
    budget_s: float
    seed: int
    self_check: bool = False
    """An A/A arm rides along: the first arm's code a second time, as the last of ``arms``."""

    @model_validator(mode="after")
    def _looks_rise(self) -> Design:
        if any(later <= earlier for earlier, later in itertools.pairwise((0, *self.looks))):
            found = ", ".join(map(str, self.looks))
            raise ValueError(f"looks: found {found}, expected numbers of launches, each above the one before")
        if self.shares and len(self.shares) != len(self.looks):
            raise ValueError(f"shares: found {len(self.shares)}, expected one for each of {len(self.looks)} looks")
        if sum(self.shares) > 1 + 1e-9:
            raise ValueError(f"shares: found {sum(self.shares):g} together, expected 1 at most")
        return self


class Turn(_Frozen):
    """One arm's turn with the baton. Its steps are those of the rank for which they took longest together."""

    arm: int
    round: int
    position: int
    """Within the round, from 0: the order is random."""
    started_s: float
    """On the driver's monotonic clock, from the comparison's start."""
    step_time_s: tuple[float, ...]
    """Of each timed step."""
    phase_s: dict[str, float | None] = Field(default_factory=dict)
    """``data``, ``forward``, ``backward``, ``optimizer``, …: mean of the timed steps; None: unknown."""
    took_s: float | None = None
    """All of the turn on the driver's clock: barrier, untimed and timed steps."""
    cpu_time_s: float | None = None
    """A timed step, all ranks' user and system time together."""
    steal_s: float | None = None
    """Stolen by the hypervisor during the turn, all cores together."""
    other_load: float | None = None
    """Cores that processes outside the arm's world kept busy during the turn."""
    involuntary_switches: int | None = None
    clock_hz: float | None = None
    """At its end: the slowest GPU's SM clock, or the fastest core's; None: the machine does not tell."""
    held_down: tuple[str, ...] = ()
    """At its end: why a GPU's clocks were held down, heat and faults only."""


class WarmUp(_Frozen):
    """How one arm came to its steady state in one launch."""

    step_time_s: tuple[float, ...]
    steady_from: int | None
    """Step from which on the times no longer change, from 0; None: no steady state."""
    build_s: float
    """From the start of the rank to its first step: model, engine, optimizer."""
    compile_s: float | None = None
    """Of ``build_s`` and the warm-up, what went into compiling; None: nothing was compiled."""


def _known(peak: object) -> object:
    """Return None for a peak below 0: of two counters of the kernel, which lag behind, it tells nothing."""
    return None if isinstance(peak, int) and peak < 0 else peak


Peak = Annotated[Annotated[int, Field(lt=2**63)] | None, BeforeValidator(_known)]


class Launch(_Frozen):
    """One set of worlds, one for each arm, resident together; its turns can be compared with each other only."""

    number: int
    kind: Literal["forked", "fresh"]
    resident: bool = True
    """False: one arm in memory at a time; they took turns as short launches in ABBA order."""
    warm_ups: tuple[WarmUp, ...]
    """By arm."""
    turns: tuple[Turn, ...]
    peak_memory_bytes: tuple[Peak, ...]
    """By arm: resident memory above the import baseline, or the allocator's peak on an accelerator; all ranks."""
    losses: tuple[tuple[float, ...], ...] = ()
    """By arm: of the first steps, mean over ranks."""
    took_s: float
    invalid: str | None = None
    """Why its ratios are not used: decided by the guards, before a ratio was looked at."""
    notes: tuple[str, ...] = ()
    """What should be known of it: that arms train differently, say."""


class Comparison(_Frozen):
    """All that was measured; the analysis can be redone from it alone."""

    kind: Literal["comparison"] = "comparison"
    version: int = COMPARISON_VERSION
    arms: tuple[Arm, ...]
    design: Design
    launches: tuple[Launch, ...] = ()
    environment: dict[str, JsonValue] = Field(default_factory=dict)
    facts: tuple[dict[str, JsonValue], ...] = ()
    """By arm: versions, the real optimizer's class and flags, the checkout's commit."""
    last_look: Annotated[int, Field(ge=0)] | None = None
    """Valid launches where the budget ended: the rest of the error is spent there. None: no budget ended it."""
    outcome: Outcome = "completed"
    reason: str | None = None
    started_unix_s: float
    spent_s: float

    @model_validator(mode="after")
    def _goes_together(self) -> Comparison:
        for misfit in _misfits(self):
            raise ValueError(misfit)
        return self


def _misfits(comparison: Comparison) -> Iterator[str]:
    """Yield what does not go together, with its place: pydantic looks at each value alone."""
    arms = len(comparison.arms)
    if arms < 2:
        yield f"arms: found {arms}, expected two or more"
    if comparison.launches and not comparison.design.looks:
        yield f"design.looks: found none, expected some for {len(comparison.launches)} launches"
    if len(comparison.facts) not in {0, arms}:
        yield f"facts: found {len(comparison.facts)}, expected one for each of {arms} arms"
    for index, launch in enumerate(comparison.launches):
        lengths = {
            "warm_ups": len(launch.warm_ups),
            "peak_memory_bytes": len(launch.peak_memory_bytes),
            "losses": len(launch.losses) or arms,  # none where nobody has asked for them
        }
        for name, found in lengths.items():
            if found != arms:
                yield f"launches.{index}.{name}: found {found}, expected one for each of {arms} arms"
        for number, turn in enumerate(launch.turns):
            if not 0 <= turn.arm < arms:
                yield f"launches.{index}.turns.{number}.arm: found {turn.arm}, expected 0 to {arms - 1}"


class Estimate(_Frozen):
    """The ratio B/A of one metric."""

    ratio: float | None
    low: float | None
    """Of the interval; None: too few launches."""
    high: float | None
    verdict: Verdict
    smallest_effect: float | None
    """Relative difference that this many launches with this spread would have told from 0; None: too few."""
    launches: tuple[float, ...] = ()
    """Ratio of each valid launch."""
    stalls: tuple[int, int] | None = None
    """Steps of A and of B that took over five times the median: counted, and part of the data."""
    p99_s: tuple[float, float] | None = None


class Pair(_Frozen):
    """One arm against the first."""

    arms: tuple[str, str]
    verdict: Verdict
    metrics: dict[str, Estimate]
    launches: int
    """Valid ones."""
    invalid_launches: int = 0
    decided_at: int | None = None
    """The look, in launches, at which the verdict was reached; None: not decided."""
    is_self_check: bool = False
    amdahl: str | None = None
    """One line: how the optimizer's ratio shows in the step's."""
    payback_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps after which the slower start of the faster arm (compilation) has paid for itself."""


class Analysis(_Frozen):
    """What came of a comparison."""

    comparison: str | None = None
    """Id in the store."""
    pairs: tuple[Pair, ...]
    spent_s: float
    notes: tuple[str, ...] = ()
