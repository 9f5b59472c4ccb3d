"""Fixtures that start optbench as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from harness.plan import read_plan_file
from harness.store import Store
from launch import local

if TYPE_CHECKING:
    from collections.abc import Iterable

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("searching", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("OPTBENCH_HYPOTHESIS", "repeatable"))

# Two workers share the cores: threads that wait for one another would take them from the other worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
OUTSIDE = HERE / "multirank" / "outside"


def pytest_addoption(parser):
    parser.addoption(
        "--alone",
        choices=["not", "only"],
        help="without, or only, tests that must have the machine for themselves",
    )


def pytest_collection_modifyitems(config, items):
    # Short ones last: no worker is left with a long file while the others have nothing to do.
    items.sort(key=lambda item: HERE / "unit" in item.path.parents)
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

    def together(self, *runs: dict, timeout: float = 300) -> list[dict]:
        """Train runs in one torchrun world, planned and stored as a user's are; return their records.

        A world of its own takes longer to start than most of these runs to train. What each costs the process it
        is in must not matter to the test, nor how runs are started and ended.
        """
        plans = Path(tempfile.mkdtemp(prefix="plans-", dir=self.results.parent))
        (plans / "sweep.toml").write_text(sweep_file(runs), encoding="utf-8")
        planned = self("plan", str(plans / "sweep.toml"), "--write", str(plans), "--json")
        assert planned.code == 0, planned.err
        specs = [read_plan_file(plans / f"plan-{number}.json") for number in range(len(runs))]
        largest = max(specs, key=lambda spec: spec.world_size)
        store = Store(self.results)
        folders = [store.new_run(spec) for spec in specs]
        words = [word for folder in folders for word in (str(local.free_port()), str(folder))]
        done = subprocess.run(
            local.torchrun(largest, [str(HERE / "several.py"), *words], port=None),
            env=local.environment(largest, folders[0].name, self.environment(OPTBENCH_USER_PATH=str(self.cwd)))
            | {"PYTHONPATH": str(HERE.parent)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [store.finish(folder.name).model_dump(mode="json") for folder in folders]


def sweep_file(runs: Iterable[dict], **defaults: object) -> str:
    """Return the text of a sweep's TOML file."""
    lines = ["[defaults]", *(f"{key} = {_toml(value)}" for key, value in defaults.items())]
    for run in runs:
        lines += ["[[runs]]", *(f"{key} = {_toml(value)}" for key, value in run.items())]
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture
def optbench(tmp_path):
    return Optbench(tmp_path / "results")
