"""Each fault is one row with its reason; the rest of the sweep goes on; nothing is left running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import psutil
import pytest
from conftest import sweep_file

from harness import cgroup
from launch import memory_kills, processes

if TYPE_CHECKING:
    from pathlib import Path

FAULTY = ("--workload", "faulty:Faulty", "--strategy", "ddp", "--nproc", "2", "--steps", "6")


def sweep(tmp_path, runs) -> str:
    """Write a sweep of the faulty workload under ddp on two ranks."""
    path = tmp_path / "sweep.toml"
    path.write_text(sweep_file(runs, workload="faulty:Faulty", strategy="ddp", world_size=2, steps=6))
    return str(path)


def faulty(fault: str, **more) -> dict:
    return {"optimizer": "sgd/forloop", "workload_options": {"fault": fault}, **more}


def nothing_left(results: Path) -> bool:
    return not any(processes.of_run(folder.name) for folder in results.iterdir())


TOLD = {
    "raises": ("failed", "the model broke on purpose"),
    "nan": ("diverged", "nan on rank 1 in step 3"),
}
MORE_TOLD = {
    "segv": ("failed", "SIGSEGV"),
    "kill": ("failed", "SIGKILL"),
    "out_of_memory": ("out_of_memory", "OutOfMemory"),
}


@pytest.mark.parametrize("expected", [TOLD, pytest.param(MORE_TOLD, marks=pytest.mark.exhaustive)], ids=len)
def test_faults_of_ranks_become_rows_with_reasons_and_the_sweep_goes_on(optbench, tmp_path, expected):
    runs = [faulty(fault) for fault in expected]
    ran = optbench.run(sweep(tmp_path, [*runs, {"optimizer": "faulty:Halving", "lr": 0.05}]), "--json")
    *rows, sound = ran.json["runs"]
    assert [row["outcome"] for row in rows] == [outcome for outcome, _ in expected.values()]
    for row, (_, words) in zip(rows, expected.values(), strict=True):
        assert words in row["reason"]
    assert ran.code == 1
    assert nothing_left(optbench.results)
    logs = {fault: optbench.results / row["run_id"] / "log" for fault, row in zip(expected, rows, strict=True)}
    for fault, words in (("raises", "the model broke on purpose"), ("segv", "Segmentation fault")):
        assert fault not in logs or words in (logs[fault] / "rank-1.log").read_text()
    assert sound["outcome"] == "completed"
    losses = optbench.show(sound["run_id"])["metrics"]["train_loss"]["series"]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


BLAMED = {"exits_quietly": "rank 1 exited with 0 before the run was over"}
MORE_BLAMED = {
    "torchrun_is_told_to_end": "torchrun was ended by SIGTERM, sent from outside",
    "exits": "exited with 7",
    "calls_sys_exit": "rank 1, after 2 steps: SystemExit: 0 (in calls_sys_exit, faulty.py:",
    "is_told_to_end": "rank 1 was killed by SIGTERM",
}


@pytest.mark.parametrize("faults", [BLAMED, pytest.param(MORE_BLAMED, marks=pytest.mark.exhaustive)], ids=len)
def test_the_rank_that_left_is_blamed_and_not_the_one_that_lost_its_peer(optbench, tmp_path, faults):
    ran = optbench.run(sweep(tmp_path, [faulty(fault, turn_steps=1) for fault in faults]), "--json")
    for row, words in zip(ran.json["runs"], faults.values(), strict=True):
        assert row["outcome"] == "failed"
        assert words in row["reason"]
    assert nothing_left(optbench.results)


def test_out_of_tree_code_that_lingers_or_breaks_is_a_row(optbench, tmp_path):
    runs = [
        faulty("leaves_a_thread", timeout_s=60.0),
        faulty("none", collectors=["timing", "faulty:BrokenCollector"]),
        {"optimizer": "faulty:RaisesInConstructor"},
        {"optimizer": "faulty:OwnNameForTheRate", "lr": 0.1},
    ]
    rows = optbench.run(sweep(tmp_path, runs), "--json").json["runs"]
    assert [row["outcome"] for row in rows] == ["completed", "failed", "failed", "unsupported"]
    assert "the collector broke on purpose (in turn, faulty.py:" in rows[1]["reason"]
    assert "no luck" in rows[2]["reason"]
    assert "takes no lr (it takes: learning_rate)" in rows[3]["reason"]
    assert nothing_left(optbench.results)


@pytest.mark.exhaustive
def test_out_of_tree_code_that_is_sound_trains(optbench):
    base = {"workload": "faulty:Faulty", "strategy": "ddp", "world_size": 2, "steps": 6}
    options = {"strategy_options": {"find_unused_parameters": True}}
    records = optbench.together(
        {**base, "optimizer": "sgd/forloop", "strategy": "faulty:Replicas", **options},
        {**base, "optimizer": "faulty:OwnNameForTheRate", "optimizer_options": {"learning_rate": 0.2}},
    )
    assert [record["outcome"] for record in records] == ["completed"] * 2, records


def test_strategies_that_are_none_are_explained_before_anything_starts(optbench):
    names = ["nowhere:Strategy", "faulty:NotAnOptimizer", "faulty:Nothing"]
    asked = [word for name in names for word in ("--strategy", name)]
    ran = optbench.run("--workload", "faulty:Faulty", "--nproc", "2", "--optimizer", "sgd/forloop", *asked)
    assert ran.code == 2
    for name in names:
        assert f"strategy {name}: " in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("fault", [pytest.param("hang", marks=pytest.mark.exhaustive), "fork_and_hang"])
def test_a_hanging_rank_is_timed_out_with_the_stacks_of_all_ranks(optbench, tmp_path, fault):
    ran = optbench.run(sweep(tmp_path, [faulty(fault, timeout_s=20.0)]), "--json")  # a busy machine starts slowly
    (row,) = ran.json["runs"]
    assert row["outcome"] == "timed_out"
    assert "20" in row["reason"]
    logs = optbench.results / row["run_id"] / "log"
    assert f"in {fault}" in (logs / "rank-1.log").read_text()
    assert "in _forward_backward" in (logs / "rank-0.log").read_text()
    assert nothing_left(optbench.results)


def test_ctrl_c_keeps_what_is_finished_and_resume_goes_on(optbench, tmp_path):
    file = sweep(tmp_path, [faulty("none"), faulty("hang")])
    process = subprocess.Popen(
        [*optbench.command("run", file, "--results", str(optbench.results))],
        cwd=optbench.cwd,
        env=optbench.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: len(ranks_that_began(optbench.results)) == 2)
    for _ in range(3):  # an impatient user's: none may cut the cleaning up short
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    assert "--resume" in out
    assert nothing_left(optbench.results)
    rows = optbench("show", "--results", str(optbench.results), "--json").json["runs"]
    assert [row["outcome"] for row in rows] == ["completed", "incomplete"]

    specs = next(optbench.results.glob("sweep-*"))  # the hang must not repeat itself when the cell runs again
    document = (specs / "sweep.json").read_bytes()
    assert b'"fault":"hang"' in document
    resumed = optbench.run("--resume", "--json", env={"FAULTY_HANG_ONCE": "1"})
    outcomes = [row["outcome"] for row in resumed.json["runs"]]
    assert outcomes == ["completed", "completed"]
    assert resumed.json["runs"][0]["run_id"] == rows[0]["run_id"]


def ranks_that_began(results: Path) -> list[Path]:
    """Return the run folders in which both ranks wrote their first line."""
    return [f for f in results.glob("2*") if (f / "rank-0.jsonl").exists() and (f / "rank-1.jsonl").exists()]


def wait_for(condition, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.parametrize("victim", ["optbench", pytest.param("torchrun", marks=pytest.mark.exhaustive)])
def test_no_rank_nor_its_child_outlives_parents_killed_with_sigkill(optbench, tmp_path, victim):
    process = subprocess.Popen(
        optbench.command("run", sweep(tmp_path, [faulty("fork_and_hang")]), "--results", str(optbench.results)),
        cwd=optbench.cwd,
        env=optbench.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: len(ranks_that_began(optbench.results)) == 1)
    run_id = ranks_that_began(optbench.results)[0].name
    # torchrun, two ranks and the grandchild, which left its session
    wait_for(lambda: len(processes.of_run(run_id)) == 4)
    if victim == "optbench":
        process.kill()
    else:
        torchrun = (p for p in psutil.Process(process.pid).children() if "torch.distributed.run" in p.cmdline())
        next(torchrun).kill()
    process.wait(timeout=30)
    wait_for(lambda: not processes.of_run(run_id), limit_s=10)
    (row,) = optbench("show", "--results", str(optbench.results), "--json").json["runs"]
    assert row["outcome"] == ("incomplete" if victim == "optbench" else "failed")
    if victim == "torchrun":
        assert "torchrun was ended by SIGKILL" in optbench.show(run_id)["reason"]


def test_a_read_only_results_folder_is_refused_before_anything_starts(optbench, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    ran = optbench("run", *FAULTY, "--optimizer", "sgd/forloop", "--results", str(blocked / "results"))
    assert ran.code == 2
    assert str(blocked) in ran.err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_a_failed_run_with_its_reason(optbench, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        (disk / "filler").write_bytes(bytes(2**20))
        process = subprocess.Popen(
            [
                *optbench.command("run", *FAULTY, "--steps", "200000", "--optimizer", "sgd/forloop"),
                "--results",
                str(disk / "r"),
                "--json",
            ],
            cwd=optbench.cwd,
            env=optbench.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: (disk / "r").exists() and len(ranks_that_began(disk / "r")) == 1)
        with (disk / "filler").open("ab", buffering=0) as filler:
            while shutil.disk_usage(disk).free:
                try:
                    filler.write(bytes(min(2**16, shutil.disk_usage(disk).free)))
                except OSError:
                    break
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "No space left on device" in out + err
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_taken_port_is_a_row_that_names_the_remedy(optbench):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = optbench.run(*FAULTY, "--optimizer", "sgd/forloop", "--master-port", str(port), "--json")
    (row,) = ran.json["runs"]
    assert row["outcome"] == "failed"
    assert f"port {port} is taken" in row["reason"]
    assert "--master-port" in row["reason"]


def test_a_model_that_cannot_fit_is_refused_by_the_plan(optbench):
    ran = optbench.run(*FAULTY, "--size", "huge", "--optimizer", "adamw/forloop", "--json")
    (row,) = ran.json["runs"]
    assert row["outcome"] == "unsupported"
    assert "GiB" in row["reason"]
    assert ran.code == 1  # nothing could run at all


def test_more_ranks_than_accelerators_is_unsupported_with_the_remedy(optbench):
    words = [*FAULTY[:4], "--nproc", "64", "--set", "device=accelerator", "--set", "global_batch=64"]
    ran = optbench.run(*words, "--optimizer", "sgd/forloop", "--json")
    (row,) = ran.json["runs"]
    assert row["outcome"] == "unsupported"
    assert "64 accelerators" in row["reason"]
    assert "--device cpu" in row["reason"] or "device=cpu" in row["reason"]


def test_every_error_of_a_sweep_file_is_listed_at_once_with_its_place(optbench, tmp_path):
    file = sweep(
        tmp_path,
        [
            {"optimizer": "adamw/fussed"},
            {"optimizer": "sgd/forloop", "stpes": 3},
            {"optimizer": "sgd/forloop", "lr": "high"},
            {"workload": "gtp", "optimizer": "sgd/forloop"},
        ],
    )
    ran = optbench.run(file)
    assert ran.code == 2
    assert ran.out == ""
    for words in (
        "runs[0].optimizer",
        "did you mean adamw/fused",
        "runs[1].stpes",
        "did you mean steps",
        "runs[2].lr",
        "'high'",
        "runs[3].workload",
        "gpt",
    ):
        assert words in ran.err
    assert not list(optbench.results.glob("*")) if optbench.results.exists() else True


def test_an_unknown_option_names_the_known_ones_and_a_batch_that_cannot_be_divided_the_nearest(optbench):
    ran = optbench.run(
        *FAULTY, "--optimizer", "adamw/foreach", "--set", "optimizer.weight_deca=0.1", "--nproc", "3"
    )
    assert ran.code == 2
    assert "weight_decay" in ran.err
    ran = optbench.run(*FAULTY, "--optimizer", "adamw/foreach", "--nproc", "3")
    assert ran.code == 2
    assert "6 or 9" in ran.err


def test_a_class_that_is_no_optimizer_and_a_module_that_is_not_there_are_explained(optbench):
    ran = optbench.run(
        *FAULTY, "--optimizer", "faulty:NotAnOptimizer", "--optimizer", "nowhere:Optimizer", "--json"
    )
    told = ran.out + ran.err
    assert ran.code in {1, 2}
    assert "torch.optim.Optimizer" in told
    assert "nowhere" in told


def test_memory_kills_are_read_from_the_cgroup_of_either_version_and_from_the_machine(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/vmstat").write_text("nr_free 1\noom_kill 2\n")
    assert memory_kills.count(tmp_path) == 2
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    (tmp_path / "proc/self/mountinfo").write_text("30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    group = tmp_path / "sys/fs/cgroup/a/b"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("oom 4\noom_kill 3\n")
    assert memory_kills.count(tmp_path) == 5
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/c\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "31 1 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    )
    old = tmp_path / "sys/fs/cgroup/memory/c"
    old.mkdir(parents=True)
    (old / "memory.oom_control").write_text("under_oom 0\noom_kill 7\n")
    assert memory_kills.count(tmp_path) == 9
    assert memory_kills.count(tmp_path / "nowhere") is None


def limited_group(limit: int) -> Path | None:
    """Make a memory cgroup below our own or one above it, of whichever version; None: this user may not."""
    for parent in cgroup.folders("memory"):
        group = parent / f"optbench-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            name = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
            (group / name).write_text(str(limit))
        except OSError:
            group.rmdir()
            continue
        return group
    return None


@pytest.fixture
def small_memory():
    group = limited_group(3 * 2**29)
    if group is None:
        pytest.skip("this user may not make memory cgroups")
    yield group
    wait_for(lambda: not (group / "cgroup.procs").read_text().split())
    group.rmdir()


def test_a_rank_that_the_kernel_kills_for_memory_ran_out_of_memory(optbench, tmp_path, small_memory):
    file = sweep(tmp_path, [faulty("eats_memory"), faulty("none")])
    inside = f'echo $$ > {small_memory}/cgroup.procs && exec "$@"'
    done = subprocess.run(
        [
            "bash",
            "-c",
            inside,
            "bash",
            *optbench.command("run", file, "--results", str(optbench.results), "--json"),
        ],
        cwd=optbench.cwd,
        env=optbench.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    eaten, other = json.loads(done.stdout)["runs"]
    assert eaten["outcome"] == "out_of_memory", eaten
    assert "killed rank 1 for memory" in eaten["reason"]
    assert other["outcome"] == "completed"
