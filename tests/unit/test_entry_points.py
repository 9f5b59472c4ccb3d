"""Names that installed packages add; a broken package costs its own names only."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

ENTRY_POINTS = """
[optbench.workloads]
mine = outside_package:Mine
lost = nowhere:Workload
[optbench.strategies]
replicas = outside_package:Replicas
lost = nowhere:Strategy
[optbench.optimizers]
lost = nowhere:OPTIMIZERS
"""

MODULE = """
from harness.interfaces import WorkloadSize, WorkloadTraits
from harness.strategies.torch import DDP

def traits():
    sizes = {"one": WorkloadSize(parameters=2, global_batch=8)}
    return WorkloadTraits(summary="no literals", source="this test", sizes=sizes, default_size="one")

class Mine:
    traits = traits()

class Replicas(DDP):
    name = "replicas"
"""


@pytest.fixture
def command(tmp_path):
    package = tmp_path / "site" / "outside-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "site" / "outside_package.py").write_text(MODULE)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])

    def run(*words):
        return subprocess.run(
            [sys.executable, "-P", "-m", "harness.cli", *words],
            env={**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    return run


def test_lists_go_on_beside_broken_entry_points(command):
    workloads = {
        row["name"]: row for row in json.loads(command("list", "workloads", "--json").stdout)["workloads"]
    }
    assert "gpt" in workloads
    assert "when it is run or planned" in workloads["mine"]["reason"]
    listed = json.loads(command("list", "strategies", "--json").stdout)["strategies"]
    strategies = {row["name"]: row for row in listed}
    assert strategies["replicas"]["ranks"] == "any"
    assert "No module named 'nowhere'" in strategies["lost"]["reason"]
    assert "ModuleNotFoundError" in command("list", "strategies").stdout


def test_an_installed_workload_and_strategy_are_planned_by_name(command):
    words = ("--workload", "mine", "--strategy", "replicas", "--nproc", "2", "--json")
    planned = command("plan", *words, "--optimizer", "sgd/forloop")
    assert planned.returncode == 0, planned.stderr
    (cell,) = json.loads(planned.stdout)["cells"]
    assert (cell["spec"]["size"], cell["unsupported"]) == ("one", None)
    unknown = command("plan", *words, "--optimizer", "lost/fused")
    assert unknown.returncode == 2
    assert "lost: nowhere:OPTIMIZERS cannot be imported: ModuleNotFoundError" in unknown.stderr
