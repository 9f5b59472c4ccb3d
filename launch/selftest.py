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

from harness.comparison.analysis import analyse
from harness.comparison.designing import LOOKS
from harness.comparison.estimate import hodges_lehmann, log_ratios, mean_step
from harness.comparison.model import STEP_TIME, Arm
from harness.comparison.replay import peers, replays, upper_bound
from harness.errors import OptbenchError
from harness.gating import timed
from harness.spec import RunSpec
from launch.comparing import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.comparison.model import Comparison, Launch

Setting = Literal["alone", "neighbour", "two-ranks"]

SHARES = (0.03, 0.05, 0.10)
MARGIN = 0.025
GATES: tuple[tuple[float, float, float, str], ...] = (
    (0.0, MARGIN, 240.0, "passed"),
    (0.03, 0.0, 360.0, "regressed"),
    (0.05, MARGIN, 240.0, "regressed"),
    (0.10, MARGIN, 90.0, "regressed"),
)
"""Of live gates: planted share, margin, seconds at most, and the right verdict."""

MOST_FALSE, LEAST_FOUND, LEAST_COVERED = 0.015, 0.95, 0.98
LAUNCH_S = {1: 11.0, 2: 45.0}
"""Of a launch of all five arms, by ranks: a pair of them has about the turns of a gate of two arms."""

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


def pool(setting: Setting, launches: int, told: Callable[[str], None]) -> list[Comparison]:
    """Return comparisons of five arms, the first twice and one for each share, of so many launches together.

    Raises:
        OptbenchError: an arm could not run.
    """
    found: list[Comparison] = []
    with surroundings(setting) as ranks:
        arms = [
            Arm(name=f"{100 * share:g} % ({number})", spec=spec(share, ranks))
            for number, share in enumerate((0.0, 0.0, *SHARES))
        ]
        while sum(len(each.launches) for each in found) < launches:
            made = compare(
                arms,
                margin=MARGIN,
                budget_s=LOOKS[0][-1] * LAUNCH_S[ranks],
                seed=len(found),
                ready=lambda _: False,
                told=told,
            )
            if made.outcome != "completed":
                raise OptbenchError(f"selftest: {made.outcome}: {made.reason}")
            found.append(made)
    return found


def live_gate(share: float, margin: float, budget_s: float, seed: int, ranks: int = 1) -> tuple[str, float]:
    """Return the verdict of one complete gate on step time, and the seconds it took, its start included."""
    began = time.monotonic()
    margins = {STEP_TIME: margin}

    def verdict(so_far: Comparison) -> str:
        looked = timed.Compared("", analyse(so_far, whole=True), len(so_far.design.looks), margins)
        return str(timed.judged([looked])[0].verdict)

    arms = [Arm(name="baseline", spec=spec(0.0, ranks)), Arm(name="now", spec=spec(share, ranks))]
    found = compare(
        arms, margin=margin, budget_s=budget_s, seed=seed, ready=lambda each: verdict(each) != "inconclusive"
    )
    return verdict(found) if found.outcome == "completed" else found.outcome, time.monotonic() - began


def gate_rows(setting: Setting, count: int, told: Callable[[str], None]) -> list[Row]:
    """Run complete gates in a setting, planted and not, in turn."""
    rows = []
    ended: dict[int, list[tuple[str, float]]] = {index: [] for index in range(len(GATES))}
    with surroundings(setting) as ranks:
        for seed in range(count):
            for index, (share, margin, budget_s, _) in enumerate(GATES):
                verdict, took_s = live_gate(share, margin, budget_s, seed, ranks)
                planted = f"planted {100 * share:g} %, margin {100 * margin:g} %"
                told(f"{setting} {seed + 1}: {planted}: {verdict} in {took_s:.0f} s")
                ended[index].append((verdict, took_s))
    for index, (share, margin, budget_s, right) in enumerate(GATES):
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


def rows_of(setting: str, launches: Sequence[Launch], count: int) -> list[Row]:
    """Return what replays of a pool say, and what peers' methods say of the same turns.

    Args:
        setting: of the pool.
        launches: valid ones, of the arms of `pool`.
        count: replays of each kind.
    """
    drawn = functools.partial(replays, looks=LOOKS[0], count=count)
    ratios = [_ratios(launches, arm) for arm in range(1, 2 + len(SHARES))]
    rows = [Row(setting, "launches in the pool", str(len(launches)))]
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
    rows.append(_least(setting, f"A/A, margin {100 * MARGIN:g} %: gates pass", passed, LEAST_FOUND))
    for share, of_share in zip(SHARES, ratios[1:], strict=True):
        rows += _planted(setting, share, of_share, drawn)
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
        _least(setting, f"{name}: gates find it", caught, LEAST_FOUND, f"after {needed:g} launches"),
        _least(setting, f"{name}: speed-ups found", sped, LEAST_FOUND),
        _least(setting, f"{name}: interval covers it", covered, LEAST_COVERED, f"pool {measured}"),
    ]


def _least(setting: str, what: str, found: float, target: float, more: str = "") -> Row:
    words = _share(found) + (f", {more}" if more else "")
    return Row(setting, what, words, _share(target), found >= target)


def _share(value: float) -> str:
    return f"{100 * value:.2f} %" if 0 < value < 0.1 else f"{100 * value:.1f} %"


def _ratios(launches: Sequence[Launch], arm: int) -> list[float]:
    return [hodges_lehmann(log_ratios(each, (0, arm), mean_step)) for each in launches]
