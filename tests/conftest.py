"""Fixtures that start optbench as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("searching", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("OPTBENCH_HYPOTHESIS", "repeatable"))

OUTSIDE = Path(__file__).parent / "multirank" / "outside"


def pytest_addoption(parser):
    parser.addoption(
        "--alone",
        choices=["not", "only"],
        help="without, or only, tests that must have the machine for themselves",
    )


def pytest_collection_modifyitems(config, items):
    wanted = config.getoption("--alone")
    if wanted is None:
        return
    chosen, left = [], []
    for item in items:
        is_alone = any(item.get_closest_marker(name) for name in ("alone", "gpu"))
        (chosen if is_alone == (wanted == "only") else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = chosen


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


class Optbench:
    """Runs the command line in a folder of the user's, with a store of its own."""

    def __init__(self, results: Path, cwd: Path = OUTSIDE) -> None:
        self.results, self.cwd = results, cwd

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "harness.cli", *words]

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPTBENCH_RUN", "OMP_", "COLUMNS"))}
        return {**kept, "PYTHONWARNINGS": "", "OPTBENCH_VERIFY": "0", **more}

    def __call__(self, *words: str, env: dict[str, str] | None = None, timeout: float = 300) -> Ran:
        done = subprocess.run(
            self.command(*words),
            cwd=self.cwd,
            env=self.environment(**(env or {})),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def run(self, *words: str, **options) -> Ran:
        return self("run", *words, "--results", str(self.results), **options)

    def show(self, run_id: str) -> dict:
        return self("show", run_id, "--results", str(self.results), "--json").json


@pytest.fixture
def optbench(tmp_path):
    return Optbench(tmp_path / "results")
