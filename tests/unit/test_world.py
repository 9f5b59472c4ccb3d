"""There is one way to become a rank: runs, counts, proofs and comparisons compute under the same settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import harness
from harness import world
from harness.counts.model import Job as Counted
from harness.errors import UnsupportedError
from harness.spec import RunSpec
from harness.store import Store
from harness.verification.identity import Job as Proof

ROOT = Path(harness.__file__).parents[1]

NOTING = """
import json, os, torch

class Noting(torch.optim.SGD):
    def __init__(self, params, lr=0.01):
        super().__init__(params, lr=lr)
        found = {
            "matmul": torch.get_float32_matmul_precision(),
            "cudnn": torch.backends.cudnn.allow_tf32,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
        with open(os.environ["NOTES"], "a") as file:
            file.write(json.dumps(found) + "\\n")
"""


def spec(**fields) -> RunSpec:
    known = {"workload": "linear_regression", "optimizer": "sgd/forloop", "strategy": "single", "device": "cpu"}
    sizes = {"world_size": 1, "threads": 1, "steps": 3, "warmup_steps": 1, "turn_steps": 1, "global_batch": 4}
    return RunSpec.model_validate({**known, **sizes, "size": "small", **fields})


@pytest.fixture
def settings():
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.set_num_threads(before[1])


@pytest.mark.parametrize(("precision", "matmul"), [("fp32", "highest"), ("bf16", "highest"), ("tf32", "high")])
def test_tf32_is_in_products_under_tf32_only(settings, precision, matmul) -> None:
    joined = world.enter(spec(precision=precision))

    assert torch.get_float32_matmul_precision() == matmul
    assert (joined.rank, joined.size, joined.device.type, joined.backend) == (0, 1, "cpu", None)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one")
def test_an_accelerator_that_is_not_there_is_refused_not_replaced_by_the_cpu() -> None:
    with pytest.raises(UnsupportedError, match="sees no accelerator"):
        world.join("accelerator")


def test_nobody_else_joins_a_world_or_chooses_the_arithmetic() -> None:
    words = ("init_process_group(", "set_device_index(", "allow_tf32 = tf32", 'set_float32_matmul_precision("')
    found = {
        str(path.relative_to(ROOT))
        for room in ("harness", "launch", "optbench", "workloads")
        for path in ROOT.glob(f"{room}/**/*.py")
        if any(each in path.read_text(encoding="utf-8") for each in words)
    }

    assert found == {"harness/world.py"}


@pytest.mark.exhaustive
def test_runs_counts_and_proofs_compute_under_the_same_settings(tmp_path) -> None:
    (tmp_path / "noting.py").write_text(NOTING)
    asked = spec(optimizer="noting:Noting", precision="tf32")
    folder = Store(tmp_path / "results").new_run(asked)
    counts, proofs = tmp_path / "counts.json", tmp_path / "proofs.json"
    counts.write_text(json.dumps([Counted(spec=asked, drift_steps=0).model_dump(mode="json")]))
    proofs.write_text(json.dumps([Proof(spec=asked, like="sgd").model_dump(mode="json")]))
    notes = {}
    for name, words in {
        "run": ("harness.worker", "--prepared", str(folder)),
        "counts": ("harness.counts.rank", str(counts), str(tmp_path)),
        "proofs": ("harness.verification.prove", str(proofs), str(tmp_path / "certificates")),
    }.items():
        place = tmp_path / f"notes-{name}"
        environment = {**os.environ, "OPTBENCH_USER_PATH": str(tmp_path), "NOTES": str(place)}
        subprocess.run([sys.executable, "-P", "-m", *words], env=environment, check=True, capture_output=True)
        notes[name] = {line for line in place.read_text().splitlines() if '"high"' in line or name != "proofs"}

    assert notes["run"] == notes["counts"] == notes["proofs"]
    assert len(notes["run"]) == 1
