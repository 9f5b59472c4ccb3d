"""The measurement of the measurement: planted slowdowns, false alarms, and peers' methods on the same turns."""

from __future__ import annotations

import contextlib
import functools
import math
import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from harness.comparison.analysis import analyse, last_share
from harness.comparison.designing import LOOKS, RESERVE
from harness.comparison.estimate import hodges_lehmann, interval, log_ratios, mean_step
from harness.comparison.model import STEP_TIME, Arm
from harness.comparison.pacing import MOST_LAUNCHES
from harness.comparison.replay import ERROR, peers, replays, upper_bound
from harness.errors import OptbenchError
from harness.gating import timed
from harness.spec import RunSpec
from launch.comparing import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from harness.comparison.model import Comparison, Launch

Setting = Literal["alone", "neighbour", "two-ranks", "late-neighbour"]

SHARES = (0.03, 0.05, 0.10)
MARGIN = 0.025
PATIENCE_S = {1: 240.0, 2: 480.0}
"""Of a gate that has nothing to find, by ranks: two on two cores leave the machine no core of its own."""

GATES: tuple[tuple[float, float, float | None, str], ...] = (
    (0.0, MARGIN, None, "passed"),
    (0.03, 0.0, 360.0, "regressed"),
    (0.05, MARGIN, 240.0, "regressed"),
    (0.10, MARGIN, 90.0, "regressed"),
)
"""Of live gates: planted share, margin, seconds at most (None: `PATIENCE_S`), and the right verdict."""

MOST_FALSE, LEAST_FOUND, LEAST_COVERED = 0.015, 0.95, 0.98
LAUNCH_S = {1: 20.0, 2: 23.0}
"""Of a launch of all five arms, by ranks: a pair of them has about the turns of a gate of two arms."""

FEWEST = 36
"""Launches of a pool: replays draw up to 24, each at most once."""

SITTING = 6
"""Valid launches after which a pool starts its worlds anew, so that what a whole sitting shares can be seen."""

BURSTS = """
import os, random, time
parent = os.getppid()
while os.getppid() == parent:
    end = time.monotonic() + random.uniform(0.1, 2)
    while time.monotonic() < end:
        pass
    time.sleep(random.uniform(0.1, 2))
"""
"""A neighbour that burns one core half of the time."""


class Row(NamedTuple):
    """One figure beside what was asked of it.

    Attributes:
        setting: in which it was measured.
        what: it is.
        found: figure, in words.
        target: likewise; empty where there is none.
        met: whether the target was; None: there is none.
    """

    setting: str
    what: str
    found: str
    target: str = ""
    met: bool | None = None


def spec(share: float, ranks: int) -> RunSpec:
    """Return the spec of an arm with a planted share: a small GPT in float32 on the CPU, one sample a rank."""
    return RunSpec.model_validate(
        {
            "workload": "gpt",
            "size": "nano",
            "optimizer": "launch.planted:PlantedAdamW",
            "optimizer_options": {"slower": share},
            "strategy": "ddp" if ranks > 1 else "single",
            "world_size": ranks,
            "global_batch": ranks,
            "device": "cpu",
            "precision": "fp32",
            "threads": 1,
            "lr": 1e-3,
        }
    )


@contextlib.contextmanager
def surroundings(setting: Setting) -> Iterator[int]:
    """Bring the machine into a setting; yield how many ranks an arm has in it."""
    if setting != "neighbour":
        yield 2 if setting == "two-ranks" else 1
        return
    with subprocess.Popen([sys.executable, "-c", BURSTS]) as burning:
        try:
            yield 1
        finally:
            burning.kill()


def valid_launches(found: Iterable[Comparison]) -> list[Launch]:
    """Return the launches that no guard has marked."""
    return [launch for each in found for launch in each.launches if launch.invalid is None]


def pool(
    setting: Setting,
    launches: int,
    told: Callable[[str], None],
    kept: Callable[[Comparison], object] = lambda _: None,
) -> list[Comparison]:
    """Return comparisons of five arms, the first twice and one for each share, of so many valid launches together.

    Args:
        setting: in which the machine is.
        launches: valid ones, in sittings of a few.
        told: hears of every launch.
        kept: gets every sitting.

    Raises:
        KeyboardInterrupt: passed on.
        OptbenchError: an arm could not run, or guards let no launch of a sitting count.
    """
    found: list[Comparison] = []
    with surroundings(setting) as ranks:
        arms = [
            Arm(name=f"{100 * share:g} % ({number})", spec=spec(share, ranks))
            for number, share in enumerate((0.0, 0.0, *SHARES))
        ]
        while len(valid_launches(found)) < launches:
            made = compare(
                # Whichever arm comes first must not matter: every other sitting has them the other way round.
                arms if len(found) % 2 == 0 else arms[::-1],
                margin=MARGIN,
                budget_s=MOST_LAUNCHES * LAUNCH_S[ranks] / (1 - RESERVE),
                seed=len(found),
                ready=lambda so_far: len(valid_launches([so_far])) >= SITTING,
                told=told,
            )
            kept(made)
            ended_well(made)
            found.append(made)
            if not valid_launches([made]):
                told_why = made.launches[-1].invalid if made.launches else "it had none"
                raise OptbenchError(
                    f"selftest: no launch of a sitting was valid: {told_why}; try a quieter machine"
                )
    return found


def ended_well(made: Comparison) -> None:
    """Raise where a comparison did not end by itself.

    Raises:
        KeyboardInterrupt: it was interrupted.
        OptbenchError: an arm failed.
    """
    if made.outcome == "interrupted":
        raise KeyboardInterrupt
    if made.outcome != "completed":
        raise OptbenchError(f"selftest: {made.outcome}: {made.reason}")


def live_gate(share: float, margin: float, budget_s: float, seed: int, ranks: int = 1) -> tuple[str, float]:
    """Return the verdict of one complete gate on step time, and the seconds it took, its start included."""
    began = time.monotonic()
    margins = {STEP_TIME: margin}

    def verdict(so_far: Comparison) -> str:
        looked = timed.Compared("", analyse(so_far, whole=True), last_share(so_far), margins)
        return str(timed.judged([looked])[0].verdict)

    arms = [Arm(name="baseline", spec=spec(0.0, ranks)), Arm(name="now", spec=spec(share, ranks))]
    found = compare(
        arms, margin=margin, budget_s=budget_s, seed=seed, ready=lambda each: verdict(each) != "inconclusive"
    )
    if found.outcome == "interrupted":
        raise KeyboardInterrupt
    return verdict(found) if found.outcome == "completed" else found.outcome, time.monotonic() - began


def _gate_or_reason(share: float, margin: float, budget_s: float, seed: int, ranks: int) -> tuple[str, float]:
    """Return a gate's verdict and seconds; where the machine is too slow for the budget, that reason."""
    try:
        return live_gate(share, margin, budget_s, seed, ranks)
    except OptbenchError as error:
        return str(error), budget_s


def gate_rows(setting: Setting, count: int, told: Callable[[str], None]) -> list[Row]:
    """Run complete gates in a setting, planted and not, in turn."""
    rows = []
    ended: dict[int, list[tuple[str, float]]] = {index: [] for index in range(len(GATES))}
    with surroundings(setting) as ranks:
        for seed in range(count):
            for index, (share, margin, most_s, _) in enumerate(GATES):
                budget_s = most_s or PATIENCE_S[ranks]
                verdict, took_s = _gate_or_reason(share, margin, budget_s, seed, ranks)
                planted = f"planted {100 * share:g} %, margin {100 * margin:g} %"
                told(f"{setting} {seed + 1}: {planted}: {verdict} in {took_s:.0f} s")
                ended[index].append((verdict, took_s))
    for index, (share, margin, most_s, right) in enumerate(GATES):
        budget_s = most_s or PATIENCE_S[ranks]
        correct = sum(verdict == right for verdict, _ in ended[index])
        spent = [each for _, each in ended[index]]
        rows.append(
            Row(
                setting,
                f"live gates, planted {100 * share:g} %, margin {100 * margin:g} %",
                f"{correct} of {count} {right}, {median(spent):.0f} s, at most {max(spent):.0f} s",
                f"95 %, {budget_s:.0f} s",
                correct >= LEAST_FOUND * count and max(spent) <= budget_s,
            )
        )
    return rows


def straight(found: Comparison, wanted: tuple[float, ...] = (0.0, 0.0, *SHARES)) -> Comparison:
    """Return a sitting of a pool with its plain arms first, whichever way round it was measured.

    Args:
        found: the sitting.
        wanted: planted shares of its arms.

    Raises:
        OptbenchError: it is none.
    """
    shares = tuple(each.spec.optimizer_options.get("slower") for each in found.arms)
    if shares not in {wanted, wanted[::-1]}:
        raise OptbenchError("--from: not a pool of the selftest; name comparisons that optbench selftest stored")
    if shares == wanted:
        return found
    last = len(wanted) - 1

    def turned(launch: Launch) -> Launch:
        turns = tuple(turn.model_copy(update={"arm": last - turn.arm}) for turn in launch.turns)
        return launch.model_copy(update={"turns": turns, "warm_ups": launch.warm_ups[::-1]})

    return found.model_copy(
        update={"arms": found.arms[::-1], "launches": tuple(turned(each) for each in found.launches)}
    )


def rows_of(setting: str, launches: Sequence[Launch], count: int, arms: int = 2) -> list[Row]:
    """Return what replays of a pool say.

    Args:
        setting: of the pool.
        launches: valid ones, of the arms of `pool`, plain ones first.
        count: replays of each kind.
        arms: of the comparisons replayed: those beside the first share the error.
    """
    drawn = functools.partial(replays, looks=LOOKS[0], count=count, error=ERROR / (arms - 1))
    ratios = [_ratios(launches, arm) for arm in range(1, 2 + len(SHARES))]
    same = interval(ratios[0], ERROR)
    rows = [
        Row(setting, "launches in the pool", str(len(launches))),
        Row(
            setting,
            "A/A: mean of the pool, 99 % interval",
            f"{100 * same.low:+.2f} … {100 * same.high:+.2f} %",
            "holds 0",
            same.low <= 0 <= same.high,
        ),
    ]
    for margin in (0.0, MARGIN):
        found = drawn(ratios[0], margin=margin, exchange=True)
        alarms = sum(each.slower or each.faster for each in found)
        bound = upper_bound(alarms, count)
        rows.append(
            Row(
                setting,
                f"A/A, margin {100 * margin:g} %: false alarms",
                f"{_share(alarms / count)}, at most {_share(bound)}",
                f"{_share(MOST_FALSE)}",
                bound <= MOST_FALSE,
            )
        )
    passed = sum(each.gate == "passed" for each in drawn(ratios[0], margin=MARGIN, exchange=True)) / count
    rows.append(least(setting, f"A/A, margin {100 * MARGIN:g} %: gates pass", passed, LEAST_FOUND))
    for share, of_share in zip(SHARES, ratios[1:], strict=True):
        rows += _planted(setting, share, of_share, drawn)
    return rows


def peer_rows(setting: str, launches: Sequence[Launch]) -> list[Row]:
    """Return what peers' methods say of the same turns."""
    rows = []
    for arm, share in enumerate((0.0, *SHARES), 1):
        shares = ", ".join(f"{name} {_share(each)}" for name, each in peers(launches, (0, arm)).items())
        rows.append(Row(setting, f"peers on the same turns, planted {100 * share:g} %", shares))
    return rows


def _planted(setting: str, share: float, ratios: Sequence[float], drawn: Callable[..., Any]) -> list[Row]:
    margin = 0.0 if share <= MARGIN * 1.5 else MARGIN
    found, faster = drawn(ratios, margin=margin), drawn([-each for each in ratios], margin=margin)
    count, name = len(found), f"planted {100 * share:g} %, margin {100 * margin:g} %"
    truth = math.log1p(share)
    caught = sum(each.gate == "regressed" for each in found) / count
    sped = sum(each.faster for each in faster) / count
    covered = sum(each.low <= truth <= each.high for each in found) / count
    needed = median(each.launches for each in found)
    measured = f"{100 * math.expm1(sum(ratios) / len(ratios)):.2f} %"
    return [
        least(setting, f"{name}: gates find it", caught, LEAST_FOUND, f"after {needed:g} launches"),
        least(setting, f"{name}: speed-ups found", sped, LEAST_FOUND),
        least(setting, f"{name}: interval covers it", covered, LEAST_COVERED, f"pool {measured}"),
    ]


def least(setting: str, what: str, found: float, target: float, more: str = "") -> Row:
    """Return the row of a share that is to reach a target."""
    words = _share(found) + (f", {more}" if more else "")
    return Row(setting, what, words, _share(target), found >= target)


def _share(value: float) -> str:
    return f"{100 * value:.2f} %" if 0 < value < 0.1 else f"{100 * value:.1f} %"


def _ratios(launches: Sequence[Launch], arm: int) -> list[float]:
    return [hodges_lehmann(log_ratios(each, (0, arm), mean_step)) for each in launches]
