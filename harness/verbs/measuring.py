"""What ``optbench selftest`` shows: figures beside their targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

    from harness.comparison.model import Comparison
    from harness.store import Store
    from launch.selftest import Row, Setting


class Amounts(NamedTuple):
    """How much is measured.

    Attributes:
        launches: in each setting's pool.
        gates: live ones of each kind, in each setting.
        sittings: with forked launches; a third as many with fresh ones. 0: none.
        replays: of each kind.
    """

    launches: int
    gates: int
    sittings: int
    replays: int


def measured(
    settings: Sequence[Setting], amounts: Amounts, store: Store, told: Callable[[str], None]
) -> list[Row]:
    """Measure in each setting, store the pools and sittings, and return what came of them.

    Raises:
        OptbenchError: an arm could not run.
        OSError: a pool cannot be stored.
    """
    from harness.verbs import comparing
    from launch import independence, late, selftest

    store.check_writable()

    def kept(made: Comparison) -> None:
        told(f"stored: {comparing.save(store, made)}")

    rows: list[Row] = []
    for setting in settings:
        if setting == late.SETTING:
            if amounts.launches:
                rows += late.rows_of(
                    late.recording_of(late.sittings(amounts.launches, told, kept)), amounts.replays
                )
            if amounts.gates:
                rows += late.live_rows(amounts.gates, told)
            continue
        if amounts.launches:
            told(f"{setting}: {amounts.launches} launches of five arms")
            found = selftest.pool(setting, amounts.launches, told, kept)
            rows += replayed(setting, found, amounts.replays)
        if amounts.gates:
            rows += selftest.gate_rows(setting, amounts.gates, told)
    if amounts.sittings:
        fresh = max(1, amounts.sittings // 3)
        told(f"{amounts.sittings} sittings of forked launches, {fresh} of fresh ones")
        sittings = independence.sittings(amounts.sittings, fresh, told, kept)
        rows += independence.rows_of(sittings)
    return rows


def replayed(setting: str, pool: Sequence[Comparison], count: int) -> list[Row]:
    """Return what replays of stored comparisons of the selftest's arms say.

    Raises:
        OptbenchError: they are of other arms, or no two launches of them are valid.
    """
    from harness.comparison.designing import LOOKS
    from harness.errors import OptbenchError
    from launch import independence, late, selftest

    if any(late.is_late(each) for each in pool):
        return late.rows_of(late.recording_of(pool), count)
    pool = [selftest.straight(each) for each in pool]
    valid = selftest.valid_launches(pool)
    if len(valid) < LOOKS[0][-1]:
        raise OptbenchError(f"{setting}: {len(valid)} valid launches; {LOOKS[0][-1]} or more are needed")
    rows = selftest.rows_of(setting, valid, count)
    if len([each for each in pool if len(selftest.valid_launches([each])) > 1]) > 1:
        rows.append(independence.shared_row(setting, pool))
    rows += selftest.rows_of(f"{setting}, four arms", valid, count, arms=4)
    return [*rows, *selftest.peer_rows(setting, valid)]


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the rows as JSON."""
    return {"rows": [row._asdict() for row in rows]}


def table(rows: Sequence[Row]) -> Table:
    """Return the rows for the terminal."""
    from rich.table import Table

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("setting", "measured", "found", "target", "met"):
        shown.add_column(head, overflow="fold")
    words = {True: "yes", False: "no", None: ""}
    for row in rows:
        shown.add_row(row.setting, row.what, row.found, row.target, words[row.met])
    return shown


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    words = {True: "yes", False: "**no**", None: ""}
    lines = ["| setting | measured | found | target | met |", "| :-- | :-- | :-- | :-- | :-- |"]
    lines += [f"| {row.setting} | {row.what} | {row.found} | {row.target} | {words[row.met]} |" for row in rows]
    return "\n".join(lines) + "\n"
