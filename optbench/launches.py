"""One launch of a paired assertion: turns of both callables in random order, in a forked child or right here."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import select
import signal
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

TURN_S = 0.02
LEAST_ROUNDS, MOST_ROUNDS = 10, 200
WARM_CALLS, WARM_S = 3, 0.2


def in_process(
    baseline: Callable[[], object], candidate: Callable[[], object], length_s: float, timeout_s: float
) -> float:
    """Return log(candidate/baseline) of one launch in this process.

    Args:
        baseline: callable.
        candidate: callable.
        length_s: of all turns, about.
        timeout_s: has no meaning here: nothing can end a call of one's own process.
    """
    from launch.baton import scatter

    del timeout_s
    kept = scatter()
    found = _estimated(_turns(baseline, candidate, length_s))
    del kept
    return found


def forked(
    baseline: Callable[[], object], candidate: Callable[[], object], length_s: float, timeout_s: float
) -> float:
    """Return log(candidate/baseline) of one launch in a forked process, which has ended when this returns.

    Args:
        baseline: callable.
        candidate: callable.
        length_s: of all turns, about.
        timeout_s: after which the process is killed.

    Raises:
        TimeoutError: it did not end in time.
        RuntimeError: a callable raised, or the process died.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(writing, baseline, candidate, length_s)
    os.close(writing)
    try:
        told = _read(reading, time.monotonic() + timeout_s)
    except TimeoutError:
        raise TimeoutError(f"a launch of both callables did not end within {timeout_s:g} s") from None
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if not told:
        raise RuntimeError(f"a launch's process died, status {os.waitstatus_to_exitcode(status)}")
    answer = json.loads(told)
    if "error" in answer:
        raise RuntimeError(f"in a launch:\n{answer['error']}")
    return _estimated(answer["rounds"])


def _child(
    writing: int, baseline: Callable[[], object], candidate: Callable[[], object], length_s: float
) -> NoReturn:
    """Be a launch; nothing of the test runner's may run here."""
    from launch.baton import scatter

    try:
        os.setpgid(0, 0)
        kept = scatter()
        answer: dict[str, object] = {"rounds": _turns(baseline, candidate, length_s)}
        del kept
    except BaseException:  # noqa: BLE001  # whatever a callable raises is told by the parent
        answer = {"error": traceback.format_exc()}
    try:
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)


def _read(reading: int, deadline: float) -> bytes:
    told = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            raise TimeoutError
        data = os.read(reading, 65536)
        if not data:
            return told
        told += data


def _turns(
    baseline: Callable[[], object], candidate: Callable[[], object], length_s: float
) -> list[tuple[float, float]]:
    """Return seconds a call of both, round by round."""
    calls = max(1, round(TURN_S / max(_warmed(baseline), _warmed(candidate), 1e-7)))
    sides = (baseline, candidate)
    chance = random.Random(os.urandom(8))  # noqa: S311  # an order, no secret
    found: list[tuple[float, float]] = []
    until = time.perf_counter() + length_s
    while len(found) < LEAST_ROUNDS or (len(found) < MOST_ROUNDS and time.perf_counter() < until):
        took = [0.0, 0.0]
        for side in chance.sample((0, 1), 2):
            took[side] = _turn(sides[side], calls)
        found.append((took[0], took[1]))
    return found


def _turn(call: Callable[[], object], calls: int) -> float:
    call()  # untimed: the caches held the other's data
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def _warmed(call: Callable[[], object]) -> float:
    """Call it until it is warm; return the seconds of its shortest call."""
    until, shortest, calls = time.perf_counter() + WARM_S, math.inf, 0
    while calls < WARM_CALLS or (time.perf_counter() < until and calls < 1000):
        began = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - began)
        calls += 1
    return shortest


def _estimated(rounds: list[tuple[float, float]]) -> float:
    from harness.comparison.estimate import hodges_lehmann

    return hodges_lehmann([math.log(second / first) for first, second in rounds if first > 0 and second > 0])
