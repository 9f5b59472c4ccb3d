"""What a collector that reads the trace is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.interfaces import Prediction, Reading, World
    from harness.tracing.recording import Trace


@dataclass(frozen=True)
class Traced:
    """A trace and what to read it against.

    Attributes:
        trace: of this rank; None: the pass failed, and a note says why.
        expected: what the strategy's rule predicts; None: nothing.
        world: this rank.
        imported_rss_bytes: resident memory once imports were done, before the model was built.
    """

    trace: Trace | None
    expected: Prediction | None
    world: World
    imported_rss_bytes: int


@runtime_checkable
class ReadsTrace(Protocol):
    """A collector for which a few further steps are traced once its run is measured.

    It is asked after every collector's `stop`, and on a rank whose pass failed too: its metrics are None then.
    """

    def traced(self, traced: Traced) -> Iterable[Reading]:
        """Report what the trace tells."""
        ...
