"""One launch of a paired assertion: turns of both callables in random order, in a forked child or right here."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import select
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

from optbench.laziness import lazy_result

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

TURN_S = 0.02
LEAST_ROUNDS, MOST_ROUNDS = 3, 200
WARM_S, MOST_WARM_CALLS = 0.2, 1000

LONG_S = 10 * TURN_S
"""A call so long need not find its data in the caches: they are filled in a few milliseconds."""

SHORTEST_S = 5e-8
"""A call counts as no shorter than this, whatever a coarse clock says: nothing may divide by 0."""

LONGEST_WAIT_S = 3600.0
"""Of one select, which takes no infinite time."""

SIDES = ("baseline", "candidate")
"""What both callables are called, in this order."""


class LazyError(TypeError):
    """A callable returned before its work was done."""


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
        TypeError: a callable returned before its work was done.
        RuntimeError: a callable raised, or the process died.
    """
    __tracebackhide__ = True
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _child(reading, writing, baseline, candidate, length_s)
    try:
        with contextlib.suppress(OSError):  # the child does it too: whoever is first
            os.setpgid(child, child)
        os.close(writing)
        told = _read(reading, time.monotonic() + timeout_s)
    except TimeoutError:
        raise TimeoutError(
            f"a launch of both callables did not end within {timeout_s:g} s; it calls each "
            f"{1 + LEAST_ROUNDS} times at least: where they take that long pass a larger timeout_s, else one hangs"
        ) from None
    finally:
        os.close(reading)
        code = _ended(child)
    if not told.endswith(b"\n"):
        raise RuntimeError(f"a launch's process died, status {code}")
    answer = json.loads(told)
    if "lazy" in answer:
        raise TypeError(answer["lazy"])
    if "error" in answer:
        raise RuntimeError(f"a callable raised in a launch:\n{answer['error']}")
    return _estimated(answer["rounds"])


def _child(
    reading: int,
    writing: int,
    baseline: Callable[[], object],
    candidate: Callable[[], object],
    length_s: float,
) -> NoReturn:
    """Be a launch; nothing of the test runner's may run here."""
    try:
        os.setpgid(0, 0)
        os.close(reading)
        pipe = os.fdopen(writing, "wb")
        os.register_at_fork(after_in_child=pipe.close)  # what outlives this process must not hold its pipe open
        answer = _answer(baseline, candidate, length_s)
        _kill_below(os.getpid())
        pipe.write(json.dumps(answer).encode() + b"\n")
        pipe.flush()
    finally:
        os._exit(0)


def _answer(baseline: Callable[[], object], candidate: Callable[[], object], length_s: float) -> dict[str, object]:
    try:
        from launch.baton import scatter

        kept = scatter()
        answer: dict[str, object] = {"rounds": _turns(baseline, candidate, length_s)}
        del kept
    except LazyError as error:
        return {"lazy": str(error)}
    except BaseException as error:  # noqa: BLE001  # whatever a callable raises is told by the parent
        return {"error": "".join(traceback.format_exception(error.with_traceback(_of_callable(error))))}
    return answer


def _of_callable(error: BaseException) -> TracebackType | None:
    """Return the traceback from where a callable was called; all of it, where none was."""
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename == __file__:
        found = found.tb_next
    return found or error.__traceback__


def _read(reading: int, deadline: float) -> bytes:
    """Return the line that a launch tells; without its end where the process died.

    The line's end is what counts: the pipe's may never come, since what a callable left running may hold it.

    Raises:
        TimeoutError: neither came in time.
    """
    told = b""
    while not told.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if select.select([reading], [], [], min(left_s, LONGEST_WAIT_S))[0]:
            data = os.read(reading, 65536)
            if not data:
                break
            told += data
    return told


def _ended(child: int) -> int:
    """End a launch's process and what it started; return the exit code, negative for a signal."""
    os.kill(child, signal.SIGSTOP)  # so that it starts nothing meanwhile; until it is waited for it is there
    _kill_below(child)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _kill_below(pid: int) -> None:
    """Kill what a process has started: some may be in groups of their own."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for each in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                each.kill()


def _turns(
    baseline: Callable[[], object], candidate: Callable[[], object], length_s: float
) -> list[tuple[float, float]]:
    """Return seconds a call of both, round by round."""
    sides = (baseline, candidate)
    shortest = [_warmed(each, name) for each, name in zip(sides, SIDES, strict=True)]
    wait = _waits()
    chance = random.Random(os.urandom(8))  # noqa: S311  # an order, no secret
    found: list[tuple[float, float]] = []
    until = time.perf_counter() + length_s
    while len(found) < LEAST_ROUNDS or (len(found) < MOST_ROUNDS and time.perf_counter() < until):
        call_s = max(*shortest, SHORTEST_S)
        took = [0.0, 0.0]
        for side in chance.sample((0, 1), 2):
            took[side] = _turn(sides[side], call_s, wait)
        found.append((took[0], took[1]))
        # The first calls may have been slow, and one call's time is mostly the clock's own where it is short.
        shortest = [min(each) for each in zip(shortest, took, strict=True)]
    return found


def _turn(call: Callable[[], object], call_s: float, wait: Callable[[], None] | None) -> float:
    """Return seconds a call, over a turn's length of calls that take about ``call_s``, one at least.

    Args:
        call: is called.
        call_s: of one, about.
        wait: for what a call has left to a device; None: no device is in use.
    """
    if call_s < LONG_S:
        call()  # untimed: the caches held the other's data
    calls = max(1, round(TURN_S / call_s))
    if wait is None:
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) / calls
    wait()
    began = time.perf_counter()
    for _ in range(calls):
        call()
        wait()
    return (time.perf_counter() - began) / calls


def _warmed(call: Callable[[], object], side: str) -> float:
    """Call it until it is warm, once at least; return the seconds of its shortest call.

    Raises:
        LazyError: the first call returned before its work was done.
    """
    until, shortest, calls = time.perf_counter() + WARM_S, math.inf, 0
    while not calls or (calls < MOST_WARM_CALLS and time.perf_counter() < until):
        began = time.perf_counter()
        result = call()
        wait = _waits()
        if wait is not None:
            wait()
        shortest = min(shortest, time.perf_counter() - began)
        if not calls and (why := lazy_result(result, side)) is not None:
            raise LazyError(why)
        del result
        calls += 1
    return shortest


def _waits() -> Callable[[], None] | None:
    """Return what waits for all that torch's devices have been given; None: none is in use."""
    torch = sys.modules.get("torch")
    modules = [getattr(torch, name, None) for name in ("cuda", "xpu")]
    used = [each for each in modules if each is not None and each.is_initialized()]
    if torch is not None and hasattr(torch, "mps") and torch.backends.mps.is_available():
        used.append(torch.mps)
    if not used:
        return None

    def wait() -> None:
        for module in used:
            module.synchronize()

    return wait


def _estimated(rounds: list[tuple[float, float]]) -> float:
    from harness.comparison.estimate import hodges_lehmann

    return hodges_lehmann([math.log(second / first) for first, second in rounds if first > 0 and second > 0])
