"""A forked launch ends, whatever its callables leave behind, and leaves nothing behind itself."""

import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from optbench import launches

LEFT_S = 20.0
"""What is left behind would hold the pipe for so long."""


def ended(file):
    """Return whether the processes whose ids stand in a file are gone, or soon are: a kill takes a moment."""
    deadline = time.monotonic() + LEFT_S / 4
    while alive := [pid for pid in map(int, file.read_text().split()) if lives(pid)]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return not alive


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # a zombie is somebody else's to reap
    except psutil.NoSuchProcess:
        return False


def noted(file, pids):
    with file.open("a") as notes:
        notes.writelines(f"{pid}\n" for pid in pids)


@pytest.fixture
def once():
    """Return what makes a callable that acts in its first call only."""

    def made(act):
        acted = []

        def call():
            if not acted:
                acted.append(act())

        return call

    return made


def test_workers_that_a_callable_leaves_keep_no_launch_from_ending(tmp_path, once):
    file = tmp_path / "pids"

    def act():
        context = multiprocessing.get_context("fork")
        pool, worker = context.Pool(2), context.Process(target=time.sleep, args=(LEFT_S,))
        worker.start()
        noted(file, [worker.pid, *(each.pid for each in pool._pool)])
        return pool

    began = time.monotonic()
    launches.forked(int, once(act), 0.1, LEFT_S)
    assert time.monotonic() - began < LEFT_S
    assert ended(file)


def test_a_worker_in_a_session_of_its_own_is_ended_too(tmp_path, once):
    file = tmp_path / "pids"

    def act():
        process = subprocess.Popen(["sleep", str(LEFT_S)], start_new_session=True)
        noted(file, [process.pid])
        return process

    launches.forked(int, once(act), 0.1, LEFT_S)
    assert ended(file)


def test_a_launch_that_dies_beside_its_workers_is_told_at_once(once):
    def act():
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(LEFT_S,)).start()
        os._exit(3)

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="a launch's process died, status 3"):
        launches.forked(int, once(act), 0.1, LEFT_S)
    assert time.monotonic() - began < LEFT_S


def test_what_a_hanging_callable_has_started_is_ended_with_it(tmp_path):
    file = tmp_path / "pids"

    def hang():
        process = subprocess.Popen(["sleep", str(LEFT_S)], start_new_session=True)
        noted(file, [os.getpid(), process.pid])
        time.sleep(LEFT_S)

    with pytest.raises(TimeoutError, match="it calls each 4 times at least: where they take that long"):
        launches.forked(int, hang, 0.1, 2.0)
    assert ended(file)


def test_a_tiny_timeout_leaves_no_process():
    before, began = psutil.Process().children(), time.monotonic()
    for _ in range(20):
        with pytest.raises(TimeoutError):
            launches.forked(int, lambda: time.sleep(LEFT_S), 0.1, 1e-9)
    assert time.monotonic() - began < LEFT_S
    assert psutil.Process().children() == before


def test_a_timeout_may_be_infinite():
    assert abs(launches.forked(int, int, 0.1, float("inf"))) < 1.0


def test_a_launch_leaves_no_open_file():
    opened = Path("/proc/self/fd")
    launches.forked(int, int, 0.1, LEFT_S)
    before = len(list(opened.iterdir()))
    launches.forked(int, int, 0.1, LEFT_S)
    assert len(list(opened.iterdir())) == before
