"""Worlds of ours are not steered by other launchers' variables, and a world in which no rank begins says why."""

from __future__ import annotations

import os
import time

import pytest
import torch
from torch.distributed import argparse_util
from torch.distributed import run as torchrun

from harness import launching, probe
from harness.comparison.model import Arm
from harness.counts.model import Job as Counted
from harness.errors import InvalidInputError, OptbenchError
from harness.interfaces import World
from harness.machine import Machine
from harness.registry import OPTIMIZERS
from harness.spec import RunSpec
from harness.verbs import arms as arms_file
from harness.verification import engines
from harness.verification.identity import Job
from launch import counting, hand, local, proving
from launch.arms import ArmError, Arms

FOREIGN = {
    "PET_NNODES": "2",
    "PET_RDZV_BACKEND": "c10d",
    "PET_RDZV_ENDPOINT": "192.0.2.1:29400",
    "LOGLEVEL": "debug",
    "RANK": "3",
    "WORLD_SIZE": "8",
    "MASTER_ADDR": "192.0.2.1",
    "PYTHON_EXEC": "/bin/false",
    "TORCHELASTIC_RUN_ID": "theirs",
}
MEANT = {"NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "1"}


def spec(**fields) -> RunSpec:
    known = {"workload": "linear_regression", "optimizer": "sgd/forloop", "device": "cpu", "world_size": 1}
    return RunSpec.model_validate({"strategy": "ddp", "steps": 2, **known, **fields})


@pytest.fixture
def stuck(tmp_path, monkeypatch):
    """Every interpreter of a world sleeps before its first line."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nprint('about to hang', flush=True)\ntime.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setattr(launching, "BEGIN_S", 1.0)


def test_what_steers_launchers_is_left_out_and_what_users_mean_stays() -> None:
    found = local.environment(spec(device="accelerator"), "run", {**FOREIGN, **MEANT, "HOME": "/root"})

    assert not found.keys() & FOREIGN.keys()
    assert found["HOME"] == "/root"
    assert {name: found[name] for name in MEANT if name != "OMP_NUM_THREADS"} == {
        name: value for name, value in MEANT.items() if name != "OMP_NUM_THREADS"
    }


def test_every_option_of_torchrun_that_a_variable_gives_is_left_out() -> None:
    kinds = (argparse_util.env, argparse_util.check_env)
    options = [each.dest for each in torchrun.get_args_parser()._actions if isinstance(each, kinds)]

    assert len(options) > 10
    assert all(launching.steers(f"PET_{option.upper()}") for option in options)


def test_a_run_in_which_no_rank_begins_ends_soon_with_what_is_known(stuck, tmp_path) -> None:
    folder = tmp_path / "run"
    (folder / "log").mkdir(parents=True)
    ended = local.run(spec(timeout_s=900), folder, lambda _: None)

    assert ended.outcome == "failed"
    for told in ("no rank began within 1 s", "127.0.0.1:", "PET_NNODES", "about to hang", "torchrun.log"):
        assert told in ended.reason


def test_counts_in_which_no_rank_begins_end_soon_with_what_is_known(stuck) -> None:
    with pytest.raises(OptbenchError, match=r"no rank began within 1 s.*its log ends with: about to hang"):
        counting.measured([Counted(spec=spec(), drift_steps=0)])


def test_a_proof_that_does_not_begin_ends_soon_with_what_is_known(stuck) -> None:
    made = []
    proving.prove([Job(spec=spec(), like=None)], lambda _, certificate: made.append(certificate))

    assert [each.outcome for each in made] == ["failed"]
    assert "no rank began within 1 s" in made[0].reason


def test_a_world_of_proofs_is_told_of_the_machine_that_they_were_planned_for(tmp_path, monkeypatch) -> None:
    job = Job(spec=spec(), like=None)
    (tmp_path / proving.KNOWN).write_text("{}")
    words = proving._words(job, tmp_path / "jobs", tmp_path / "out", tmp_path, 5, None)
    monkeypatch.setattr(probe, "machine", lambda: pytest.fail("a rank looks, and its peers wait"))
    about = {"hostname": "h", "system": "Linux", "cpu": "c", "python": "3.12", "torch": "2.13.0"}
    known = Machine(cores=2, memory_bytes=2**34, **about)
    alone = World(0, 1, 0, torch.device("cpu"), None)

    assert f"--machine={tmp_path / proving.KNOWN}" in words
    assert engines._refused(OPTIMIZERS.get("sgd/forloop"), job.spec, alone, known) is None


def test_an_arm_that_never_begins_ends_the_comparison_within_its_budget(stuck) -> None:
    began = time.monotonic()
    arms = [Arm(name=name, spec=spec()) for name in ("left", "right")]
    with (
        pytest.raises(ArmError, match="arm left: no rank began within 1 s"),
        Arms(arms, 300, begin_s=60) as worlds,
    ):
        worlds.prepared()

    assert time.monotonic() - began < 30


def test_an_arm_may_not_steer_the_launcher(tmp_path) -> None:
    file = tmp_path / "arms.toml"
    arm = '[[arm]]\noptimizer = "sgd/forloop"\nworkload = "linear_regression"\n'
    file.write_text(f'{arm}env = {{ PET_NNODES = "2" }}\n{arm}')
    with pytest.raises(InvalidInputError, match=r"env\.PET_NNODES: steers the launcher"):
        arms_file.from_file(file, {}, [])


def test_several_nodes_started_by_hand_share_the_ranks_and_leave_standalone_out() -> None:
    words, where, nodes = hand.torchrun(
        4, ["--nnodes", "2", "--node-rank=1", "--master_addr=h", "--master-port=5"]
    )

    assert (where, nodes) == ("h:5", 2)
    assert "--nproc-per-node=2" in words
    assert "--standalone" not in words
    assert hand.torchrun(4, [])[0] == ["--nnodes=1", "--nproc-per-node=4", "--standalone"]


@pytest.mark.parametrize(
    ("further", "told"),
    [
        ("--nnodes=2", "need --node-rank, --master-addr, --master-port"),
        ("--nnodes=3 --rdzv-endpoint=h:1", "2 ranks cannot be shared"),
        ("--nnodes=1:2", "write one number"),
    ],
)
def test_words_that_make_no_world_are_refused_with_the_remedy(further, told, tmp_path, capsys) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"spec": {"world_size": 2, "threads": 1, "device": "cpu"}}')

    assert hand.main([str(plan)], {"TORCHRUN_ARGS": further}) == 2
    assert told in capsys.readouterr().err


def test_a_node_started_by_hand_says_what_it_waits_for_and_gives_up(stuck, tmp_path, capsys) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"spec": {"world_size": 2, "threads": 1, "device": "cpu"}}')
    further = "--nnodes=2 --node-rank=0 --master-addr=127.0.0.1 --master-port=29511"
    code = hand.main([str(plan)], {**os.environ, "TORCHRUN_ARGS": further, "TORCHRUN_WAIT_S": "1"})
    told = capsys.readouterr().err

    assert code == 1
    assert "waiting for all 2 nodes at 127.0.0.1:29511, 1 s at most" in told
    assert "no rank began within" in told
    assert "each with its own --node-rank" in told


def test_the_log_is_named_only_where_it_stays(tmp_path) -> None:
    log = tmp_path / "log"
    log.write_text("$ the command\nlast words\n")

    assert str(log) not in launching.not_begun(1, "x", {}, log)
    assert f"{log} ends with: last words" in launching.not_begun(1, "x", {}, log, kept=True)
    assert "log" not in launching.not_begun(1, "x", {}, tmp_path / "none", kept=True)
