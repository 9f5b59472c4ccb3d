"""Comparisons beside a neighbour that begins after the plan was made: recorded, replayed, and live."""

from __future__ import annotations

import contextlib
import math
import platform
import random
import subprocess
import sys
import threading
import time
from statistics import median
from typing import TYPE_CHECKING

from harness.comparison.analysis import analyse
from harness.comparison.model import Arm
from harness.comparison.replay import upper_bound
from harness.comparison.slowed import BEGINS, plays, recorded
from harness.comparison.spending import LEAST_LAUNCHES
from harness.errors import OptbenchError
from launch import selftest
from launch.comparing import compare
from launch.watching import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.comparison.model import Comparison, Verdict
    from harness.comparison.slowed import Played, Recording
    from harness.spec import RunSpec

SETTING = "late-neighbour"
SHARE = 0.25
SHARES = (0.0, 0.0, SHARE)
"""Of the arms that are recorded: the plain one twice, and a slower one."""

BESIDE = ", beside a neighbour"
"""Ends the names of the arms of a sitting in which the neighbour was recorded."""

BATCH = 8
"""Samples of a step: steps so long (a tenth of a second on two cores) that a budget holds few launches."""

QUIET_S, BUSY_S = 240.0, 120.0
"""Budget of one sitting alone, and of one beside the neighbour."""

BUDGET_S = 120.0
"""Of live comparisons and of replays, as `optbench compare` has it unless told; then of replays:"""

MORE_S = 240.0

LEAST_FOUND, LEAST_COVERED, MOST_FALSE = 0.99, 0.98, 0.015


def _spec(share: float) -> RunSpec:
    return selftest.spec(share, 1).model_copy(update={"global_batch": BATCH})


@contextlib.contextmanager
def neighbour() -> Iterator[Callable[[], None]]:
    """Give what starts a neighbour: two processes a core that compute in bursts; they end with the context."""
    started: list[subprocess.Popen[bytes]] = []
    over = threading.Event()
    lock = threading.Lock()

    def begin() -> None:
        with lock:
            count = 0 if over.is_set() else 2 * Machine().cores
            started.extend(subprocess.Popen([sys.executable, "-c", selftest.BURSTS]) for _ in range(count))

    try:
        yield begin
    finally:
        with lock:
            over.set()
        for each in started:
            each.kill()
            each.wait()


def sitting(*, busy: bool, seed: int, told: Callable[[str], None]) -> Comparison:
    """Return one sitting of the arms that are recorded; of a busy one the neighbour begins after the first launch.

    Raises:
        KeyboardInterrupt: passed on.
        OptbenchError: an arm could not run.
    """
    named = BESIDE if busy else ""
    arms = [
        Arm(name=f"{100 * share:g} % ({number}){named}", spec=_spec(share)) for number, share in enumerate(SHARES)
    ]
    with neighbour() as begin:

        def after(so_far: Comparison) -> None:
            if busy and len(so_far.launches) == 1:
                begin()

        made = compare(
            arms if seed % 2 == 0 else arms[::-1],
            margin=selftest.MARGIN,
            budget_s=BUSY_S if busy else QUIET_S,
            seed=seed,
            ready=lambda _: False,
            told=told,
            kept=after,
        )
    selftest.ended_well(made)
    return made


def sittings(launches: int, told: Callable[[str], None], kept: Callable[[Comparison], object]) -> list[Comparison]:
    """Return sittings alone of so many valid launches together, and one beside the neighbour.

    Raises:
        KeyboardInterrupt: passed on.
        OptbenchError: an arm could not run, or guards let no launch of a sitting count.
    """
    found: list[Comparison] = []
    while len(selftest.valid_launches(found)) < launches:
        found.append(sitting(busy=False, seed=len(found), told=told))
        kept(found[-1])
        if not selftest.valid_launches(found[-1:]):
            raise OptbenchError("selftest: no launch of a sitting was valid; try a quieter machine")
    found.append(sitting(busy=True, seed=len(found), told=told))
    kept(found[-1])
    return found


def is_late(found: Comparison) -> bool:
    """Say whether a comparison is a sitting of these arms."""
    shares = tuple(each.spec.optimizer_options.get("slower") for each in found.arms)
    return shares in {SHARES, SHARES[::-1]}


def recording_of(found: Sequence[Comparison]) -> Recording:
    """Return what sittings hold for replays.

    Raises:
        OptbenchError: there is none alone, or none beside the neighbour.
    """
    straight = [selftest.straight(each, SHARES) for each in found]
    busy = [each for each in straight if each.arms[0].name.endswith(BESIDE)]
    quiet = [each for each in straight if each not in busy]
    if not quiet or not busy:
        missing = "beside the neighbour" if quiet else "without it"
        raise OptbenchError(f"--from: no sitting {missing}; name all that optbench selftest stored for {SETTING}")
    day = time.strftime("%Y-%m-%d", time.gmtime(quiet[0].started_unix_s))
    machine = f"{Machine().cores} cores, Python {platform.python_version()}"
    return recorded(quiet, busy, f"optbench selftest --setting {SETTING}, {day}, {machine}")


def rows_of(recording: Recording, count: int) -> list[selftest.Row]:
    """Return what replays of a recording say, at each budget."""
    slower = [factor for _, factor in recording.slower]
    told = f"turns {median(slower):.2f}x as long, for {recording.slower[-1][0]:.0f} s"
    rows = [
        selftest.Row(SETTING, "launches in the pool", str(len(recording.launches))),
        selftest.Row(SETTING, "the neighbour's slow-down", told),
    ]
    for budget_s in (BUDGET_S, MORE_S):
        rows += _at(recording, budget_s, count)
    return rows


def _at(recording: Recording, budget_s: float, count: int) -> list[selftest.Row]:
    """Return the rows of one budget: the planted arm, and the same code twice."""
    chance = random.Random(0)  # noqa: S311  # an experiment, no secret
    margin = selftest.MARGIN
    planted = [plays(recording, (0, 2), budget_s, margin=margin, chance=chance) for _ in range(count)]
    same = [plays(recording, (0, 1), budget_s, margin=margin, chance=chance, exchange=True) for _ in range(count)]
    name = f"{budget_s:g} s, planted {100 * SHARE:g} %"
    found = sum(each.verdict == "slower" for each in planted) / count
    alarms = sum(each.verdict in {"slower", "faster"} for each in same)
    bound = upper_bound(alarms, count)
    few, most_s = min(each.launches for each in [*planted, *same]), max(each.spent_s for each in [*planted, *same])
    made, rate = (
        f"{few} or more, {most_s:.0f} s at most",
        f"{100 * alarms / count:.2f} %, at most {100 * bound:.2f} %",
    )
    covered = (_covered(planted, math.log1p(SHARE)), _covered(same, 0.0))
    return [
        selftest.Row(SETTING, f"{budget_s:g} s: launches", made, f"{LEAST_LAUNCHES}", few >= LEAST_LAUNCHES),
        selftest.least(SETTING, f"{name}: found", found, LEAST_FOUND),
        selftest.least(SETTING, f"{name}: interval covers it", covered[0], LEAST_COVERED),
        selftest.Row(
            SETTING, f"{budget_s:g} s, A/A: false alarms", rate, f"{100 * MOST_FALSE:g} %", bound <= MOST_FALSE
        ),
        selftest.least(SETTING, f"{budget_s:g} s, A/A: interval covers 0", covered[1], LEAST_COVERED),
    ]


def _covered(played: Sequence[Played], truth: float) -> float:
    return sum(each.low <= truth <= each.high for each in played) / len(played)


def live(seed: int) -> tuple[Verdict, int, float]:
    """Compare a planted arm live while a neighbour begins after the plan; return verdict, launches and seconds.

    Raises:
        KeyboardInterrupt: passed on.
        OptbenchError: an arm could not run.
    """
    chance = random.Random(seed)  # noqa: S311  # an experiment, no secret
    arms = [Arm(name=f"{100 * share:g} %", spec=_spec(share)) for share in (0.0, SHARE)]
    began = time.monotonic()
    with neighbour() as begin:
        timer = threading.Timer(chance.uniform(0, BEGINS * BUDGET_S), begin)

        def told(_: str) -> None:
            if not timer.is_alive() and not timer.finished.is_set():  # the first word is of the plan
                timer.start()

        try:
            made = compare(arms, margin=selftest.MARGIN, budget_s=BUDGET_S, seed=seed, told=told)
        finally:
            timer.cancel()
    selftest.ended_well(made)
    pair = analyse(made).pairs[0]
    return pair.verdict, pair.launches, time.monotonic() - began


def live_rows(count: int, told: Callable[[str], None]) -> list[selftest.Row]:
    """Run so many live comparisons, and return their count as it is: a machine's own neighbours are in it."""
    ended = []
    for seed in range(count):
        try:
            found, launches, took_s = live(seed)
        except OptbenchError as error:
            told(f"{SETTING} {seed + 1}: {error}")
            ended.append(("inconclusive", 0, 0.0))
            continue
        told(
            f"{SETTING} {seed + 1}: planted {100 * SHARE:g} %: {found} after {launches} launches in {took_s:.0f} s"
        )
        ended.append((found, launches, took_s))
    right = sum(found == "slower" for found, _, _ in ended)
    seconds = [took_s for _, _, took_s in ended]
    few = min(launches for _, launches, _ in ended)
    told_of = (
        f"{right} of {count} slower, {few} launches or more, {median(seconds):.0f} s, at most {max(seconds):.0f} s"
    )
    return [selftest.Row(SETTING, f"live, {BUDGET_S:g} s, planted {100 * SHARE:g} %", told_of)]
