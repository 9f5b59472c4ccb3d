"""What a person sees while a sweep runs: on a terminal a live bar, in a pipe a line a run; always on stderr."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

from harness.reports import quantities
from harness.targets import short
from harness.varying import varying

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from pydantic import JsonValue
    from rich.console import Console

    from harness.plan import Cell
    from harness.record import RunRecord
    from harness.spec import RunSpec


def _key(spec: Mapping[str, JsonValue]) -> str:
    return json.dumps(spec, sort_keys=True)


LEAST_NAME, BESIDE_NAME = 24, 46
"""Columns of a run's name at least, and of the bar, the count and the time beside it."""


class SweepDisplay:
    """Shows which run goes on, its steps, and the time that the rest will take."""

    def __init__(self, console: Console, specs: Sequence[RunSpec] = ()) -> None:
        """Show runs on a console.

        Args:
            console: where.
            specs: of all runs, so that each is named by what tells it apart.
        """
        self._console = console
        told = [spec.model_dump(mode="json") for spec in specs]
        words = varying(told, shown=("workload", "size", "optimizer", "strategy"))
        self._apart = {_key(spec): each for spec, each in zip(told, words, strict=True)}
        # The name is broken over lines sooner than the count and the time are lost.
        name = Column(max_width=max(LEAST_NAME, console.width - BESIDE_NAME), overflow="fold")
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=name),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, left="", start=False)
        self._began = 0.0
        self._spent: list[float] = []
        self._waiting = 0
        self._steps = 0
        self._first: tuple[float, int] | None = None
        self._label = ""

    def __enter__(self) -> Self:
        """Begin drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the bar."""
        self._progress.stop()

    def begin(self, cell: Cell, position: int, total: int) -> None:
        """Show the run that starts."""
        spec = cell.spec
        self._began, self._waiting, self._steps = time.monotonic(), total - position, spec.steps
        self._first = None
        self._label = f"{position}/{total} {self._name(spec.model_dump(mode='json'))}"
        self._progress.reset(
            self._task, description=self._label, total=spec.steps, completed=0, start=True, left="starting"
        )

    def steps(self, done: int) -> None:
        """Show the steps done and the time left."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        before, earlier = self._first
        left = ""
        if done > earlier:
            step_s = (now - before) / (done - earlier)
            left = f"{quantities.duration(self._left(now, step_s, done))} left"
        self._progress.update(self._task, completed=done, left=left)

    def _left(self, now: float, step_s: float, done: int) -> float:
        """Estimate from this run's steps, and for each run that waits from the mean of those seen."""
        this = step_s * (self._steps - done)
        known = [*self._spent, now - self._began + this]
        return this + self._waiting * sum(known) / len(known)

    def end(self, record: RunRecord) -> None:
        """Print the run's line."""
        if record.outcome != "unsupported" and self._began:
            self._spent.append(time.monotonic() - self._began)
        name = self._name(record.spec)
        step = record.metrics.get("step_time_s")
        if record.outcome == "completed" and step is not None:
            text = Text(f"{name}: {quantities.seconds(step.value)} a step  [{record.run_id}]")
        else:
            # The reason stands below the table; one that came while it ran is worth reading at once.
            reason = "" if record.outcome == "unsupported" else f": {record.reason}"
            text = Text(f"{name}: {record.outcome.replace('_', ' ')}{reason}", style="red")
        self._console.print(text, highlight=False, soft_wrap=True)

    def _name(self, spec: Mapping[str, JsonValue]) -> str:
        """Name a run in a line."""
        size = f"-{spec['size']}" if spec.get("size") else ""
        words = [
            f"{short(str(spec.get('workload')))}{size}",
            short(str(spec.get("optimizer"))),
            spec.get("strategy"),
            self._apart.get(_key(spec)),
        ]
        return " ".join(str(word) for word in words if word)

    def tell(self, text: str) -> None:
        """Print something else to know."""
        self._console.print(Text(text, style="cyan"), highlight=False, soft_wrap=True)
