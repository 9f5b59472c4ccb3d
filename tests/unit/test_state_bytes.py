"""What counts as an optimizer's state, wherever it keeps it; what is kept where nobody finds it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import held_state
import holders
import pytest

from harness.collectors.memory import occupied

LINE = 2 * 4
"""Bytes of a line's weight and bias, and of what holds one number for each."""
CLAIMED = (holders.Deque, holders.Array, holders.Generator)


@pytest.mark.parametrize("kind", holders.REACHED, ids=lambda kind: kind.__name__)
def test_state_counts_wherever_it_can_be_reached_and_nothing_counts_twice(kind):
    trained = held_state.Trained(f"holders:{kind.__name__}")
    held = occupied(trained.engine.tensors())
    assert held == {
        "parameters": LINE, "gradients": LINE, "master": 0, "state": LINE, "buffers": 0, "communication": 0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def traced() -> dict[str, list[int]]:
    """Name -> held and unclaimed bytes; memory that other tests' globals hold would count too."""
    here = Path(__file__).parent
    names = [kind.__name__ for kind in (*CLAIMED, *holders.HIDDEN, holders.Snapshots)]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(here / "held_state.py"), *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", CLAIMED, ids=lambda kind: kind.__name__)
def test_of_state_that_is_reached_nothing_is_unclaimed(kind, traced):
    assert traced[kind.__name__][1] == 0


@pytest.mark.parametrize("kind", holders.HIDDEN, ids=lambda kind: kind.__name__)
def test_state_that_cannot_be_reached_is_seen_in_the_traced_steps(kind, traced):
    assert traced[kind.__name__] == [0, LINE]


def test_state_that_no_traced_step_touches_is_seen_too(traced):
    assert traced["Snapshots"][1] >= 4 << 16


def test_an_optimizer_inside_of_another_one_counts_with_its_wrapper():
    trained = held_state.Trained("holders:SlowWeights")
    assert trained.held() == LINE + 2 * LINE + 2 * 4  # slow; two moments; two step counts
