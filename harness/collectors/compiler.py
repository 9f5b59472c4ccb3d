"""What compiling cost and produced: the first optimizer call, graphs, breaks, recompiles, cache hits."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.interfaces import Phase, Reading
from harness.record import MetricInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from harness.interfaces import Observed


def _count(name: str, **meaning: Any) -> MetricInfo:
    return MetricInfo(name=name, unit="1", better="lower", **meaning)


FIRST_CALL = MetricInfo(name="optimizer_first_call_s", unit="s", better="lower")
"""Host time of the first step's clipping and update; None where the engine cannot separate it."""
COMPILE_TIME = MetricInfo(name="compile_time_s", unit="s", better="lower")
"""The first call less the median later one; None where nothing was compiled."""
GRAPHS = MetricInfo(name="graphs", unit="1", better="neither")
GRAPH_BREAKS = _count("graph_breaks")
RECOMPILES = _count("recompiles")

# Of inductor's cache of compiled graphs; a graph that may not be cached counts as a miss.
CACHE_HITS = MetricInfo(name="compile_cache_hits", unit="1", better="neither", across_ranks="sum")
CACHE_MISSES = MetricInfo(name="compile_cache_misses", unit="1", better="neither", across_ranks="sum")
CACHE_WARM = MetricInfo(name="compile_cache_warm", unit="1", better="neither", across_ranks="min")
"""1: every graph came out of the compile cache; 0: at least one was compiled; None: no graph asked the cache."""


class Stopwatch:
    """Host time of one phase, step by step: phases of one name in a step add up."""

    def __init__(self) -> None:
        self.durations: list[float] = []
        self._began: float | None = None
        self._spent: float | None = None

    def mark(self, now: float, *, begins: bool, ends_step: bool) -> None:
        """Note that the phase, another phase or nothing began at ``now`` (seconds of any clock)."""
        if self._began is not None:
            self._spent = (self._spent or 0.0) + now - self._began
        self._began = now if begins else None
        if ends_step and self._spent is not None:
            self.durations.append(self._spent)
            self._spent = None


@dataclass(frozen=True)
class Counts:
    """What torch._dynamo has counted since the process began."""

    graphs: int = 0
    graph_breaks: int = 0
    hits: int = 0
    misses: int = 0
    compilations: frozenset[str] = field(default_factory=frozenset)
    """Ids of the compilations that it still remembers."""


class Compiler:
    """First-call and compile time, graphs, graph breaks, recompiles and the compile cache's share in them.

    Never imports torch._dynamo: where nothing has, nothing was compiled and the counters are unknown.
    """

    def __init__(self) -> None:
        self._notes: list[tuple[Phase, float]] = []
        self._optimizer = Stopwatch()
        self._whole = Stopwatch()
        self._before = Counts()
        self._recompiled: set[str] = set()

    def start(self, observed: Observed) -> None:
        """Note what was compiled before the first step."""
        self._before = counts() or Counts()

    def mark(self, phase: Phase, step: int) -> None:
        """Note the instant; what it means is worked out between turns."""
        self._notes.append((phase, time.perf_counter()))

    def _work_out(self) -> None:
        """Tell the stopwatches where the optimizer's part, or a step that has no parts, began and ended."""
        notes, self._notes = self._notes, []
        for phase, now in notes:
            over = phase is Phase.END
            self._optimizer.mark(now, begins=phase is Phase.OPTIMIZER, ends_step=over)
            self._whole.mark(now, begins=phase is Phase.WORK, ends_step=over)

    def turn(self) -> Iterable[Reading]:
        """Note recompilations, of which torch remembers the last few only."""
        self._work_out()
        self._note_recompiles(counts())
        return ()

    def evaluated(self, step: int, train_time_s: float, values: Mapping[str, float]) -> None:
        """Nothing to take."""

    def stop(self) -> Iterable[Reading]:
        """Report what was compiled since the start."""
        self._work_out()
        now = counts()
        self._note_recompiles(now)
        separate = self._optimizer.durations
        yield Reading(FIRST_CALL, value=separate[0] if separate else None)
        graphs = None if now is None else now.graphs - self._before.graphs
        yield Reading(COMPILE_TIME, value=_excess(separate or self._whole.durations) if graphs else None)
        yield Reading(GRAPHS, value=graphs)
        yield Reading(GRAPH_BREAKS, value=None if now is None else now.graph_breaks - self._before.graph_breaks)
        yield Reading(RECOMPILES, value=None if now is None else len(self._recompiled))
        hits = None if now is None else now.hits - self._before.hits
        misses = None if now is None else now.misses - self._before.misses
        yield Reading(CACHE_HITS, value=hits)
        yield Reading(CACHE_MISSES, value=misses)
        asked = (hits or 0) + (misses or 0)
        yield Reading(CACHE_WARM, value=int(not misses) if asked else None)

    def _note_recompiles(self, now: Counts | None) -> None:
        if now is not None:
            new = now.compilations - self._before.compilations
            self._recompiled.update(each for each in new if is_recompile(each))


def counts() -> Counts | None:
    """Return torch._dynamo's counters; None where it was never imported, or keeps them elsewhere by now."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    counters: Mapping[str, Mapping[str, int]] | None = getattr(dynamo, "counters", None)
    if counters is None:
        return None
    caches = counters.get("inductor", {})
    return Counts(
        graphs=counters.get("stats", {}).get("unique_graphs", 0),
        graph_breaks=sum(counters.get("graph_break", {}).values()),
        hits=caches.get("fxgraph_cache_hit", 0),
        misses=caches.get("fxgraph_cache_miss", 0) + caches.get("fxgraph_cache_bypass", 0),
        compilations=_compilations(getattr(dynamo, "get_compilation_metrics", None)),
    )


def is_recompile(compilation: str) -> bool:
    """Say whether an id ``frame/number`` is of a frame that had been compiled before: its number is not 0.

    An attempt that was restarted carries ``_attempt`` after the number.
    """
    return compilation.rpartition("/")[2].partition("_")[0] != "0"


def _compilations(ask: Callable[[], Iterable[Any]] | None) -> frozenset[str]:
    ids = (getattr(each, "compile_id", None) for each in ask()) if ask is not None else ()
    return frozenset(str(each) for each in ids if each is not None)


def _excess(durations: list[float]) -> float | None:
    """Return the first duration less the median later one; None without a later one."""
    if len(durations) < 2:
        return None
    return max(0.0, durations[0] - statistics.median(durations[1:]))
