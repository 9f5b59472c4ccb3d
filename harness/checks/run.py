"""The checks of one run: what each rank looks at between turns, and what all ranks together conclude of it."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist

from harness.checks import bandwidth, batches, clock, gradients, start, work
from harness.checks.findings import Findings
from harness.checks.fingerprint import combined, every_nth, fingerprint, row_fingerprints
from harness.checks.spans import Span, are_replicated, differing, uncovered
from harness.checks.work import State
from harness.interfaces import DataShard, HoldsParts
from harness.loop import turn_ends
from harness.precision import state_bytes_per_element

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from harness.interfaces import Batch, Engine, OptimizerTraits, Reading, Workload, World
    from harness.loop import Turn
    from harness.spec import RunSpec

WATCHED_STEPS = 2
"""The first steps of the warm-up, whose samples and gradients are looked at."""

SETTLING_S = 0.02
"""Between two looks at the parameters after a turn, or a tenth of a step's time up to `MOST_SETTLING_S`."""

MOST_SETTLING_S = 0.1

SLOW = 0.01
"""Factor on the learning rate under which updates may be lost in the rounding of what they are added to."""


class RunChecks:
    """Looks at one rank's run where nothing is timed; every rank must call every method at the same place.

    A look that fails on its own account is told and fails no run.

    Args:
        engine: of this rank, started.
        workload: that it trains.
        spec: with every default resolved.
        world: this rank.
        traits: of the optimizer.
    """

    def __init__(
        self, engine: Engine, workload: Workload, spec: RunSpec, world: World, traits: OptimizerTraits
    ) -> None:
        self._engine, self._workload, self._spec, self._world, self._traits = engine, workload, spec, world, traits
        ends = list(turn_ends(spec))
        self._first = min(end for end in ends if end >= max(1, spec.warmup_steps))
        self._before_last = ends[-2] if len(ends) > 1 else 0
        self._watched = min(WATCHED_STEPS, spec.warmup_steps)
        self._read: list[list[Batch]] = []
        self._samples: list[list[int]] = []
        self._watch: gradients.GradientWatch | None = None
        self._begin: State | None = None
        self._last: State | None = None
        self._now: State | None = None
        self._updates = self._updates_before_last = 0
        self._clock: list[clock.TimedTurn] = []
        self._optimizer_s: list[float] = []
        self._since_s = 0.0
        self._elapsed_s = 0.0
        self.findings = Findings()

    def facts(self) -> dict[str, JsonValue]:
        """Return check -> verdict and detail."""
        return self.findings.facts()

    # Before the first step.

    def watch(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """Return the same micro-batches; the first steps' are noted on their way, in the warm-up only."""
        if self._watched == 0:
            return stream
        # What chain() hands on costs a timed step nothing: the generator is left behind by then.
        return itertools.chain(self._noting(stream), stream)

    def _noting(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        if not self._traits.compiled:  # a hook would be compiled
            self._watch = gradients.GradientWatch()
        for _ in range(self._watched):
            self._read.append([])
            self._samples.append([])
            if self._watch is not None:
                self._watch.next_step()
            for _ in range(self._spec.accumulation):
                batch = next(stream)
                self._read[-1].append(batch)
                self._samples[-1] += row_fingerprints(batch)  # now: the workload may use its memory again
                yield batch
        self._unwatch()  # the next step's samples are asked for: the watched ones are over

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()

    def begin(self) -> None:
        """Look at the parameters before the first step.

        Raises:
            WrongAnswerError: on every rank, where any rank's differ from what others hold of them.
        """
        self._begin = self._look()
        self._last = self._begin
        self._agree_on_replicas(self._begin, 0)
        self._agree_on_start()
        self.findings.settle()
        self._since_s = clock.now_s()

    # Between turns.

    def turn_over(self, turn: Turn) -> None:
        """Look at once at what the turn left; the device has been synchronised."""
        self._elapsed_s = clock.now_s() - self._since_s
        self._updates += sum(not result.skipped for result in turn.results)
        if turn.end >= self._watched:
            self._unwatch()
        self._now = self._look() if turn.end in {self._first, self._spec.steps} else None

    def timed(self, turn: Turn, readings: Iterable[Reading]) -> None:
        """Take what the collectors told of the turn."""
        if turn.first < self._spec.warmup_steps:
            return
        series = {each.info.name: each.series for each in readings if each.series is not None}
        told = [s for s in series.get("step_time_s", ()) if s is not None]
        if told:
            self._clock.append(clock.TimedTurn(len(turn.results), sum(told), self._elapsed_s))
        self._optimizer_s += [s for s in series.get("optimizer_time_s", ()) if s is not None] or told

    def conclude(self, turn: Turn) -> None:
        """Compare, agree with the other ranks, and go on.

        Raises:
            WrongAnswerError: on every rank, where any rank found a wrong answer.
        """
        now = self._now
        if now is not None:
            time.sleep(self._settling_s(turn))
            later = self._look()
            self._agree_on_rest(now, later, turn.end)
            self._agree_on_replicas(later, turn.end)
            if turn.end == self._first:
                self._agree_on_samples()
                self._agree_on_gradients()
            self._agree_on_work(later, turn)
            if turn.end == self._spec.steps:
                self._agree_on_times()
            self.findings.settle()
        if turn.end == self._before_last:
            self._last = now or self._look()
            self._updates_before_last = self._updates

    def resume(self) -> None:
        """Note that the next turn begins now."""
        self._since_s = clock.now_s()

    def _settling_s(self, turn: Turn) -> float:
        return min(MOST_SETTLING_S, max(SETTLING_S, 0.1 * turn.wall_s / max(1, len(turn.results))))

    # What this rank sees.

    def _look(self) -> State | None:
        """Return fingerprints of this rank's parameters and of what the optimizer keeps; None: it failed."""
        try:
            held: dict[str, list[torch.Tensor]] = {}
            for category, tensor in self._engine.tensors():
                held.setdefault(category, []).append(tensor)
            spans = tuple(_spans(self._engine)) if isinstance(self._engine, HoldsParts) else None
            plain = held.get("parameters", []) if spans is None else []
            wide = held.get("parameters", []) + held.get("master", [])
            return State(
                spans=spans,
                values=combined(plain + held.get("master", [])),
                kept=combined(held.get("state", [])),
                elements=sum(tensor.numel() for tensor in wide),
                narrow=bool(wide) and all(tensor.element_size() < 4 for tensor in wide),
            )
        except Exception as error:  # noqa: BLE001  # the engine's or a tensor's: it spoils a look, not the run
            self.findings.broken(error)
            return None

    def _gather(self, found: Callable[[], Any]) -> list[Any] | None:
        """Return what every rank found; None: on one of them looking failed."""
        try:
            mine = found()
        except Exception as error:  # noqa: BLE001  # likewise; the others are waiting in the collective
            self.findings.broken(error)
            mine = None
        every = [mine] * self._world.size
        if self._world.backend is not None:
            dist.all_gather_object(every, mine)
        return None if any(each is None for each in every) else every

    # What all ranks conclude: each of these holds one collective, and ends alike on all of them.

    def _agree_on_replicas(self, state: State | None, step: int) -> None:
        every = self._gather(lambda: state and state.spans)
        if every is None:
            return self.findings.not_applicable("replicas", "the engine does not tell which parts a rank holds")
        gap, found = uncovered(every), differing(every)
        when = "before the first step" if step == 0 else f"after step {step}"
        if gap is not None:
            return self.findings.wrong("shards", f"{when}: {gap}", "the strategy loses or doubles elements")
        if found is not None:
            name, one, other = found
            remedy = (
                "every rank must start from the seed of the run"
                if step == 0
                else "a rank skipped an update, or gradients were not reduced over all ranks"
            )
            return self.findings.wrong(
                "replicas", f"{when}: {name} differs between ranks {one} and {other}", remedy
            )
        self.findings.passed("shards", f"{len(every[0])} parameters are covered exactly once")
        if are_replicated(every):
            return self.findings.passed("replicas", f"bit for bit the same, last looked at {when}")
        return self.findings.not_applicable("replicas", "no rank holds what another one holds")

    def _agree_on_start(self) -> None:
        engine, seed = self._engine, self._spec.seed
        every = self._gather(lambda: _differing(engine, self._workload, seed) or "")
        if every is None:
            return self.findings.not_applicable("initial values", "they could not be made again")
        if not any(every):
            return self.findings.passed("initial values", "those that the seed makes")
        if all(every):  # a strategy may start from elsewhere, as long as all ranks do
            return self.findings.recorded("initial values", f"{every[0]} is not what initialise() fills it with")
        rank = next(rank for rank, name in enumerate(every) if name)
        return self.findings.wrong(
            "initial values",
            f"{every[rank]} on rank {rank} is not what the seed {seed} makes, as it is on other ranks",
            "every rank must start from the seed of the run",
        )

    def _agree_on_rest(self, now: State | None, later: State | None, step: int) -> None:
        every = self._gather(lambda: None if now is None or later is None else now.moved(later))
        if every is None:
            return
        if any(every):
            self.findings.wrong(
                "step is over",
                f"the parameters of rank {every.index(True)} went on changing after step {step} had returned "
                "and the device was synchronised",
                "wait for the work that step() starts before it returns",
            )
        else:
            self.findings.passed("step is over", f"nothing moved after step {step}")

    def _agree_on_samples(self) -> None:
        every, count = self._gather(lambda: self._samples), len(self._samples)
        if every is None or count == 0:
            return self.findings.not_applicable("samples", "there was no warm-up step to look at")
        told = self._gather(lambda: self._misread(every))
        if told is None:
            self.findings.not_applicable("samples", "the global batch could not be made again")
        elif told[0] == "":
            self.findings.passed("samples", f"each of the first {count} global batches was read exactly once")
        elif self._excused():
            self.findings.recorded("samples", "they differ in rounding, or from one iteration to the next")
        else:
            self.findings.wrong("samples", told[0], "batches() must yield the positions that its shard names")
        self._read = []
        return None

    def _misread(self, every: Sequence[Any]) -> str:
        """Compare on rank 0, which alone makes whole global batches."""
        if self._world.rank != 0:
            return ""
        wanted = [row_fingerprints(b) for b in batches.whole_batches(self._workload, self._spec, len(every[0]))]
        return batches.misread(every, wanted) or ""

    def _excused(self) -> bool:
        spec, world = self._spec, self._world
        shard = DataShard(world.rank, world.size, spec.global_batch or 1, spec.accumulation, spec.seed)

        def look() -> bool:
            return batches.alike(self._read, self._workload, spec, shard) or not batches.is_repeatable(
                self._workload, spec, len(self._read)
            )

        every = self._gather(look)
        return every is None or all(every)

    def _agree_on_gradients(self) -> None:
        same = any(one == other for one, other in itertools.pairwise(self._samples))
        seen = [] if self._watch is None or same else self._watch.steps
        every = self._gather(lambda: seen)
        if every is None or not any(step.tensors for steps in every for step in steps):
            return self.findings.not_applicable("gradients", "none could be seen on its way into the optimizer")
        reason = gradients.misread(every, self._traits.strides)
        if reason is not None:
            return self.findings.wrong(
                "gradients", reason, "the optimizer misreads those; use one for any strides, such as foreach"
            )
        reason = gradients.stale(every)
        if reason is None:
            return self.findings.passed("gradients", f"new in each of the first {len(seen)} steps")
        return self.findings.wrong(
            "gradients", reason, "call zero_grad() before backward(), never between it and step()"
        )

    def _agree_on_work(self, state: State | None, turn: Turn) -> None:
        """One collective whatever a rank found: under loss scaling their updates may differ."""
        every = self._gather(lambda: self._changes(state))
        if every is None:
            return self.findings.not_applicable("work", "the engine's tensors could not be read")
        final = turn.end == self._spec.steps
        reason = None
        if any(asked for asked, _, _, _ in every):
            changes = [change for _, change, _, _ in every]
            reason = work.idle(changes, f"since the first of {turn.end} steps", lenient=not final)
        if reason is None and final and any(asked for _, _, asked, _ in every):
            slow = max(work.rates(self._spec, turn)) < SLOW
            reason = work.idle([c for _, _, _, c in every], f"in the last {len(turn.results)} steps", lenient=slow)
        if reason is not None:
            return self.findings.wrong("work", reason, "the optimizer's step() must update its parameters")
        return self.findings.passed("work", f"the parameters had changed after step {turn.end}")

    def _changes(self, now: State | None) -> tuple[bool, work.Change, bool, work.Change] | None:
        """Return whether updates were asked for and what changed, since the begin and since the last look."""
        if now is None or self._begin is None or self._last is None:
            return None
        asked = self._spec.lr != 0
        return (
            asked and self._updates > 0,
            work.Change.between(self._begin, now),
            asked and self._updates > self._updates_before_last,
            work.Change.between(self._last, now),
        )

    def _agree_on_times(self) -> None:
        every = self._gather(lambda: clock.disagreement(self._clock) or "")
        if not self._clock or every is None:
            self.findings.not_applicable("clock", "no collector told step times")
        elif any(every):
            rank = next(rank for rank, reason in enumerate(every) if reason)
            self.findings.wrong("clock", f"rank {rank}: {every[rank]}", "the clock must run over the whole step")
        else:
            self.findings.passed("clock", f"{len(self._clock)} turns were filled by the steps recorded in them")
        self._agree_on_bandwidth()

    def _agree_on_bandwidth(self) -> None:
        every = self._gather(self._bandwidth)
        if every is None or all(each is None for each in every):
            return self.findings.not_applicable("bandwidth", "an update's bytes lie within four last-level caches")
        reasons = [(rank, each) for rank, each in enumerate(every) if each]
        if reasons:
            return self.findings.wrong(
                "bandwidth", f"rank {reasons[0][0]}: {reasons[0][1]}", "the timed step leaves work out"
            )
        return self.findings.passed("bandwidth", "no step was faster than memory allows")

    def _bandwidth(self) -> str | None:
        """Return "" for a step that is no faster than memory, None where that cannot be told, or what is wrong."""
        device = self._world.device
        cache = bandwidth.last_level_bytes(device)
        every_step = self._traits.granularity == "element"
        state = state_bytes_per_element(self._spec, self._traits) if every_step else 0.0
        moved = bandwidth.moved_bytes(self._engine, device, state)
        if not self._optimizer_s or not cache or moved is None or moved <= bandwidth.CACHES * cache:
            return None
        reached = bandwidth.copy_bytes_per_s(device, cache)
        return bandwidth.too_fast(statistics.median(self._optimizer_s), moved, reached, cache) or ""


def _differing(engine: Engine, workload: Workload, seed: int) -> str | None:
    return start.differing(engine.parts(), workload, seed) if isinstance(engine, HoldsParts) else None


def _spans(engine: HoldsParts) -> Iterator[Span]:
    parts = list(engine.parts())
    every = every_nth(part.tensor.numel() * part.tensor.element_size() for part in parts)
    for part in parts:
        yield Span(part.name, part.start, part.tensor.numel(), part.total, fingerprint(part.tensor, every))
