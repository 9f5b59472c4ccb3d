"""What stands between a verb and its reader: a terminal's size, a full disk, a reader that has gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.verbs.console import sensible

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def optbench(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **variables):
    return subprocess.run(
        [sys.executable, "-P", "-m", "optbench", *words],
        env={**os.environ, **variables},
        stdout=stdout,
        stderr=stderr,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("columns", ["0", "-3", "", "wide"])
def test_a_size_that_no_terminal_has_counts_as_none(columns):
    assert sensible({"COLUMNS": columns, "LINES": "0", "A": "0"}) == {"A": "0"}
    assert sensible({"COLUMNS": "72"}) == {"COLUMNS": "72"}


def test_zero_columns_print_like_none():
    shown = optbench("list", "collectors", COLUMNS="0")
    assert "Durations from phase marks" in shown.stdout
    assert "Commands" in optbench("--help", COLUMNS="0").stdout


@needs_full
@pytest.mark.parametrize("words", [("list", "collectors"), ("list", "collectors", "--json"), ("--help",)])
def test_a_full_output_ends_with_a_message_and_a_code_of_its_own(words):
    with FULL.open("w") as full:
        done = optbench(*words, stdout=full)
    assert done.returncode == 74
    assert done.stderr.startswith("optbench: standard output cannot be written: No space left on device")
    assert "Traceback" not in done.stderr


@needs_full
def test_full_messages_end_with_that_code_too():
    with FULL.open("w") as full:
        assert optbench("list", "nothing", stderr=full).returncode == 74
