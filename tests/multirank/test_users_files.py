"""Workloads named by file, in a folder whose packages have our names, through ranks started by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from torch import nn

from harness.errors import OptbenchError
from harness.strategies.torch_engine import TorchEngine

WORKLOAD = """
import torch
from torch import nn
from harness.interfaces import WorkloadSize, WorkloadTraits
from .samples import samples


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 1)
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        return self.body(x)


class Mine:
    traits = WorkloadTraits(
        summary="s", source="drawn", default_size="one", sizes={"one": WorkloadSize(parameters=11, global_batch=8)}
    )

    def __init__(self, size=None, data=None):
        pass

    def build(self):
        return Net()

    def initialise(self, name, tensor, seed):
        with torch.no_grad():
            tensor.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed + len(name)))

    def batches(self, shard):
        generator = torch.Generator().manual_seed(shard.seed)
        while True:
            whole = samples(shard.global_batch, generator)
            for micro in range(shard.accumulation):
                yield {"x": whole[list(shard.positions(micro))]}

    def loss(self, model, batch):
        return (model(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()

    def evaluate(self, model):
        return {}
"""

UNUSED = (
    "Expected to have finished reduction in the prior iteration. … by passing the keyword argument "
    "`find_unused_parameters=True` to `torch.nn.parallel.DistributedDataParallel` … "
    "Parameter indices which did not receive grad for rank 0: 2 3"
)


def test_parameters_that_the_loss_does_not_need_are_named_with_our_option():
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    engine = SimpleNamespace(_module=module, _spec=SimpleNamespace(strategy="ddp"))
    with pytest.raises(OptbenchError) as caught, TorchEngine._naming_unused(engine):
        raise RuntimeError(UNUSED)
    assert "1.weight, 1.bias" in str(caught.value)
    assert "--set strategy.find_unused_parameters=true" in str(caught.value)
    with pytest.raises(RuntimeError, match="another"), TorchEngine._naming_unused(engine):
        raise RuntimeError("another")


@pytest.mark.exhaustive
def test_a_package_of_our_name_trains_by_hand_without_noise_and_unused_parameters_say_what_to_set(tmp_path):
    for name in ("workloads", "launch", "harness"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("" if name == "workloads" else "raise RuntimeError('theirs')")
    (tmp_path / "workloads/mine.py").write_text(WORKLOAD)
    (tmp_path / "workloads/samples.py").write_text(
        "import torch\ndef samples(count, generator):\n    return torch.randn(count, 4, generator=generator)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def start(*words):
        command = [sys.executable, "-P", "-m", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    def trained(*settings):
        words = ("--workload", "workloads/mine.py:Mine", "--optimizer", "sgd/fused", "--steps", "6")
        planned = start("optbench", "plan", *words, "--strategy", "ddp", "--nproc", "1", *settings, "--write", "p")
        assert planned.returncode == 0, planned.stderr
        done = start("harness.worker", "p/plan-0.json")
        (run,) = {path.parent for path in tmp_path.glob("results/2*/manifest.json")} - seen
        seen.add(run)
        return done, json.loads((run / "manifest.json").read_text())

    seen = set()
    _, failed = trained()
    assert "the loss does not depend on spare.weight, spare.bias" in failed["reason"]
    assert "--set strategy.find_unused_parameters=true" in failed["reason"]
    done, record = trained("--set", "strategy.find_unused_parameters=true")
    assert record["outcome"] == "completed", record["reason"]
    assert set(record["facts"]["sources"]) >= {str(tmp_path / "workloads/mine.py")}
    for noise in ("ActivityProfiler", "profiler_start", "CPUAllocator", "STAGE"):
        assert noise not in done.stderr
