import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness import environment
from harness.environment import answers, capture, git_state, governor, hardware, settings, turbo, variables
from harness.interfaces import World
from harness.record import Environment


def git(folder, *words):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_what_is_captured_is_json_and_says_what_ran_where():
    world = World(rank=0, size=2, local_rank=0, device=torch.device("cpu"), backend="gloo")
    found = capture(world)
    assert Environment.model_validate_json(found.model_dump_json()) == found
    assert found.software["torch"] == torch.__version__
    assert found.software["torch_git"] == torch.version.git_version
    assert found.software["packages"]["numpy"]
    assert found.settings["threads"] == torch.get_num_threads()
    assert found.settings["affinity"] == sorted(os.sched_getaffinity(0))
    assert found.settings["backend"] == "gloo"
    assert found.hardware["cores_usable"] >= 1
    assert found.hardware["memory_usable_bytes"] <= found.hardware["memory_bytes"]


def test_flags_are_those_of_this_process():
    torch.set_float32_matmul_precision("high")
    try:
        assert capture().settings["float32_matmul_precision"] == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert capture().settings["float32_matmul_precision"] == "highest"


def test_a_fact_that_cannot_be_had_is_none_and_costs_no_other():
    assert answers({"broken": lambda: 1 / 0, "fine": lambda: 7}) == {"broken": None, "fine": 7}


def test_an_empty_file_system_costs_only_what_it_would_have_told(tmp_path):
    found = answers({**hardware(tmp_path), **settings(tmp_path)})
    assert [found[name] for name in ("cpu_max_hz", "sockets", "smt", "governor", "turbo")] == [None] * 5
    assert found["memory_bytes"] > 0


def test_only_variables_that_steer_libraries_are_recorded_and_never_secrets():
    assert variables(
        {
            "OMP_NUM_THREADS": "4",
            "NCCL_DEBUG": "INFO",
            "LD_PRELOAD": "libjemalloc.so",
            "HOME": "/home/me",
            "AWS_SECRET_ACCESS_KEY": "s",
            "TORCH_API_KEY": "s",
            "CUDA_TOKEN": "s",
            "NCCL_PASSWORD": "s",
        }
    ) == {"LD_PRELOAD": "libjemalloc.so", "NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4"}


def test_the_command_is_the_launchers(monkeypatch):
    words = ["optbench", "run", "--set", "optimizer.betas=[0.9, 0.99]"]
    monkeypatch.setenv("OPTBENCH_COMMAND", json.dumps(words))
    assert environment.command() == tuple(words)


@pytest.mark.parametrize("text", [None, "not json", '"a string"', "7"])
def test_without_a_launcher_the_command_is_this_process(monkeypatch, text):
    monkeypatch.delenv("OPTBENCH_COMMAND", raising=False)
    if text is not None:
        monkeypatch.setenv("OPTBENCH_COMMAND", text)
    assert environment.command() == tuple(sys.argv)


def test_a_clean_work_tree_and_a_changed_one(repository):
    state = git_state(repository)
    assert len(state["commit"]) == 40
    assert (state["branch"], state["dirty"]) == ("trunk", False)
    (repository / "untracked").write_text("new")
    assert git_state(repository)["dirty"] is False
    (repository / "file").write_text("two")
    assert git_state(repository)["dirty"] is True


def test_a_detached_head_has_no_branch_and_a_new_repository_no_commit(repository, tmp_path_factory):
    git(repository, "checkout", "-q", "--detach")
    assert git_state(repository)["branch"] is None
    fresh = tmp_path_factory.mktemp("fresh")
    git(fresh, "init", "-q", "-b", "trunk")
    assert git_state(fresh) == {"commit": None, "branch": "trunk", "dirty": False}


def test_no_repository_or_no_git_is_none(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path(__file__).parent) is None


def test_a_git_that_hangs_is_given_up(tmp_path, monkeypatch):
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(environment, "GIT_TIMEOUT_S", 0.2)
    assert git_state(tmp_path) is None


def test_governors_and_turbo_are_read_from_the_kernel(tmp_path):
    cpu = tmp_path / "sys/devices/system/cpu"
    for number, name in enumerate(("performance", "powersave", "performance")):
        policy = cpu / f"cpufreq/policy{number}"
        policy.mkdir(parents=True)
        (policy / "scaling_governor").write_text(f"{name}\n")
    assert governor(tmp_path) == "performance+powersave"
    (cpu / "cpufreq/boost").write_text("0\n")
    assert turbo(tmp_path) is False
    (cpu / "intel_pstate").mkdir()
    (cpu / "intel_pstate/no_turbo").write_text("0\n")
    assert turbo(tmp_path) is True
