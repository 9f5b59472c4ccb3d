"""What a gate holds: a row for each thing it looked at, and the one verdict over all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterable

GATE_VERSION = 1

Verdict = Literal["passed", "regressed", "inconclusive", "invalid"]
"""``invalid``: there is no evidence to judge by, or none to believe: a wrong answer, an unlike baseline."""

Axis = Literal["correctness", "counts", "drift", "speed", "memory", "convergence", "self-check"]

RANKING: tuple[Verdict, ...] = ("invalid", "regressed", "inconclusive", "passed")
"""The first of these that any row has is the gate's: a pass needs every row's."""

EXIT_CODES: dict[Verdict, int] = {"passed": 0, "regressed": 1, "inconclusive": 3, "invalid": 4}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, ser_json_inf_nan="strings")


class Row(_Frozen):
    """One thing that was looked at on one cell."""

    axis: Axis
    cell: str
    what: str
    """The metric, the count that moved, the certificate's finding."""
    verdict: Verdict
    detail: str = ""
    """What was found, in words."""
    remedy: str | None = None
    reservation: str | None = None
    """Of a pass: what keeps it from being a proof."""
    ratio: float | None = None
    """Now / baseline, of what is timed or trained."""
    low: float | None = None
    """One-sided 99 % bounds of the ratio."""
    high: float | None = None
    margin: float | None = None
    """Relative difference that does not matter."""
    smallest_effect: float | None = None
    """Relative difference that would have been seen."""


class Gate(_Frozen):
    """A gate's outcome."""

    kind: Literal["gate"] = "gate"
    version: int = GATE_VERSION
    name: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """What is worth knowing and decides nothing: improvements, what was left out on request."""
    spent_s: float

    @property
    def verdict(self) -> Verdict:
        """The one verdict."""
        return combined(row.verdict for row in self.rows)


def combined(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict over several; over none it is ``invalid``: one that looks at nothing passes nothing."""
    found = set(verdicts)
    return next((each for each in RANKING if each in found), "invalid")
