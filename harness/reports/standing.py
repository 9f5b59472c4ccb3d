"""What of a record counts as a result: nothing of a run whose answer is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.record import RunRecord

NOT_SHOWN = "metrics: not shown: the answer is wrong (the rank files keep them)"


def results_of(record: RunRecord) -> RunRecord:
    """Return the record as it may be shown: of a wrong run without its metrics, and with a note that says so."""
    if record.outcome != "wrong":
        return record
    return record.model_copy(update={"metrics": {}, "notes": (*record.notes, NOT_SHOWN)})
