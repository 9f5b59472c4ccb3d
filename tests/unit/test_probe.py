import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness import probe
from harness.cache import cache_dir
from harness.errors import InvalidInputError
from harness.inspection import json_safe
from harness.machine import Machine


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPTBENCH_USER_PATH", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Run the probe as a command; DeepSpeed's and others' noise must not reach standard output."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.probe", "--target", "torch.optim:LBFGS"],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A folder of the user's, the current one."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_standard_output_is_one_machine_as_json(printed):
    found = Machine.model_validate_json(printed)
    assert found.torch == str(torch.__version__)
    assert found.cores >= 1
    assert found.torch_build["git_version"] == torch.version.git_version
    assert "gloo" in found.torch_build["backends"]
    assert found.constructors["torch.optim:LBFGS"].parameters["history_size"] == 100


def test_every_registered_optimizer_has_a_constructor(printed):
    from harness.registry import OPTIMIZERS

    found = Machine.model_validate_json(printed)
    assert set(OPTIMIZERS.targets().values()) <= found.constructors.keys()
    adamw = found.constructors["torch.optim:AdamW"]
    assert adamw.error is None
    assert adamw.parameters["betas"] == [0.9, 0.999]
    assert "params" not in adamw.parameters
    # By the names under which the families' own modules look them up.
    assert {"native", "deepspeed", "apex", "bitsandbytes"} <= found.families.keys() <= set(OPTIMIZERS.families())


def test_a_machine_is_probed_once_and_again_when_something_changes(cache, monkeypatch, user):
    first = probe.machine()
    (file,) = (cache / "machine").iterdir()
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "hostname": "from the cache"}))
    assert probe.machine() == first.model_copy(update={"hostname": "from the cache"})
    before = probe.fingerprint()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert probe.fingerprint() != before


@pytest.mark.parametrize("text", ['{"hostname": ', "", '{"schema_version": 99, "from": "the future"}'])
def test_a_corrupt_or_foreign_cache_counts_as_none(cache, text):
    file = cache / "machine.json"
    cache.mkdir()
    file.write_text(text)
    assert probe._read(file) is None
    assert probe._read(cache / "absent.json") is None


def test_out_of_tree_code_is_looked_at_afresh_and_its_faults_cost_only_itself(user):
    write(user)
    targets = ["mine:Opt", "mine:NoOptimizer", "mine:missing", "mine:Optt", "boom:X", "quits:X", "typo:X"]
    targets.append("nowhere.at_all:X")
    words = ["--only", *(word for target in targets for word in ("--target", target))]
    found = probe.ask(probe.OutOfTree, [*words, "--workload", "mine:Load", "--workload", "mine:Opt"])
    opt = found.constructors["mine:Opt"]
    assert opt.model_dump() == {
        "parameters": {"betas": [0.9, 0.99], "scale": "inf"},
        "required": ("lr",),
        "open_ended": True,
        "error": None,
    }
    errors = {target: found.constructors[target].error for target in targets[1:]}
    assert errors["mine:NoOptimizer"] == "mine:NoOptimizer is no subclass of torch.optim.Optimizer"
    assert errors["mine:missing"].startswith("AttributeError")
    assert errors["mine:Optt"].endswith("; did you mean Opt?")
    assert errors["boom:X"] == "its import in a process of its own was killed by SIGABRT"
    assert "quits ends the process when it is imported (exit code 3)" in errors["quits:X"]
    assert errors["typo:X"].startswith("SyntaxError")
    assert errors["nowhere.at_all:X"].startswith("ModuleNotFoundError")
    assert found.workloads["mine:Load"]["sizes"]["small"]["parameters"] == 2
    assert found.workloads["mine:Opt"]["error"].startswith("mine:Opt has no traits")


def write(folder):
    (folder / "mine.py").write_text(
        """
import os, torch
from harness.interfaces import WorkloadSize, WorkloadTraits
print("noise"); os.system("echo more noise")
SIZES = {"small": WorkloadSize(parameters=1 + 1, global_batch=8)}
class Opt(torch.optim.SGD):
    def __init__(self, params, lr, *, betas=(0.9, 0.99), scale=float("inf"), **rest): ...
class NoOptimizer: ...
class Load:
    traits = WorkloadTraits(summary="mine", source="me", sizes=SIZES, default_size="small")
"""
    )
    (folder / "boom.py").write_text("import os; os.abort()")
    (folder / "quits.py").write_text("import sys; sys.exit(3)")
    (folder / "typo.py").write_text("x = (")


def test_an_import_that_hangs_is_named_and_left_out(user, monkeypatch):
    (user / "hangs.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(probe, "TIMEOUT_S", 6.0)
    found = probe.ask(probe.OutOfTree, ["--only", "--workload", "hangs:X"])
    assert found.workloads["hangs:X"]["error"] == "its import in a process of its own did not answer within 6 s"


def test_a_probe_that_cannot_start_is_one_clear_message(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no libpython here' >&2\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(
        InvalidInputError, match="ended with status 127; it said last: no libpython here"
    ) as caught:
        probe.ask(Machine, [])
    assert "-m harness.probe" in caught.value.problems[0].remedy


def test_without_torch_a_machine_is_still_described(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.probe"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = Machine.model_validate_json(done.stdout)
    assert found.torch is None
    assert "libcudart" in found.torch_build["error"]
    assert found.constructors["torch.optim:AdamW"].error


def test_a_cache_that_cannot_be_written_costs_nothing(cache, tmp_path):
    cache.write_text("a file where the folder should be")
    probe._write(cache / "machine" / "x.json", Machine.model_validate_json(MINIMAL))
    assert cache.read_text().startswith("a file")


MINIMAL = json.dumps(
    {"hostname": "h", "system": "s", "cpu": "c", "cores": 1, "memory_bytes": 1, "python": "3", "torch": None}
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((0.9, (1, None)), [0.9, [1, None]]),
        (float("nan"), "nan"),
        (torch.float32, "torch.float32"),
        ({1: True}, {"1": True}),
    ],
)
def test_defaults_become_json(value, expected):
    assert json_safe(value) == expected


def test_the_cache_folder_follows_its_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("OPTBENCH_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("OPTBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "optbench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "optbench"


def test_the_users_folder_comes_last_on_the_import_path(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('hides the real one')")
    (tmp_path / "own_module.py").write_text("")
    program = (
        "from harness import user_path; user_path.extend(); user_path.extend(); import json, own_module, sys; "
    )
    program += f"assert sys.path.count({str(tmp_path)!r}) == 1 and sys.path[-1] == {str(tmp_path)!r}"
    subprocess.run(
        [sys.executable, "-P", "-c", program], env={**os.environ, "OPTBENCH_USER_PATH": str(tmp_path)}, check=True
    )
    assert Path(tmp_path).exists()
