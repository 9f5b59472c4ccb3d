"""Whatever prints a line (a sitecustomize, a wrapper of git or of a compiler) breaks nothing that we ask."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness import environment, launching, probe, system
from harness.comparison.model import Arm
from harness.counts.model import Job
from harness.errors import OptbenchError
from harness.plan import read_plan_file
from harness.spec import RunSpec
from harness.store import Store
from harness.summary import summarise
from harness.verbs import comparing
from launch import baton, counting, elsewhere, local

ROOT = Path(harness.__file__).parents[1]
ROOMS = ("harness", "launch", "optbench", "workloads")
SOURCES = sorted(each for room in ROOMS for each in ROOT.glob(f"{room}/**/*.py"))
SITE = 'import sys\nprint("hello 1.2")\nsys.stderr.write("SyntaxError: hello, with no end of line ")\n'


@pytest.fixture
def noisy(tmp_path, monkeypatch):
    """Every interpreter prints as it starts, and every git as well."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (tmp_path / "sitecustomize.py").write_text(SITE)
    git = programs / "git"
    git.write_text(f'#!/bin/sh\necho "hello from a wrapper"\nexec {shutil.which("git")} "$@"\n')
    git.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_the_probe_answers(noisy) -> None:
    found = probe.ask(probe.OutOfTree, ["--only", "--target", "torch.optim:SGD"])

    assert "momentum" in found.constructors["torch.optim:SGD"].parameters


def test_what_the_probe_looked_at_last_is_found_behind_a_strangers_words() -> None:
    assert probe._last_stage("probing: a:A\nhello probing: b:B\nwords") == "b:B"


def test_an_arms_interpreter_lacks_nothing_that_it_has(noisy) -> None:
    spec = RunSpec.model_validate({"workload": "linear_regression", "optimizer": "sgd/forloop"})
    words = {"name": "x", "spec": spec, "python": sys.executable, "path": str(ROOT)}

    assert comparing._missing_packages(Arm(**words)) == []


def test_commits_and_states_are_gits(noisy, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("repository")
    commit = ["-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "m", "--allow-empty"]
    for words in (["init", "-q"], commit):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    state = environment.git_state(folder)

    assert state["dirty"] is False
    assert len(state["commit"]) == 40
    assert state["commit"].startswith(baton._commit(folder))
    assert baton._commit(noisy) is None


def test_a_compilers_version_is_the_line_that_tells_one(tmp_path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho caching wrapper at work\necho 'c++ (Some) 12.2.0'\necho 'more'\n")
    compiler.chmod(0o755)

    assert system._said_version(str(compiler)) == "c++ (Some) 12.2.0"


def test_the_runs_of_another_checkout_are_read_from_its_store(tmp_path) -> None:
    spec = RunSpec.model_validate({"workload": "linear_regression", "optimizer": "sgd/forloop"})
    store = Store(tmp_path / "results")
    with store.new_sweep("gate", [spec, spec]) as log:
        for index in (1, 0):
            log.started(index, f"run-{index}")

    assert elsewhere._run_ids(store) == ["run-0", "run-1"]
    assert elsewhere._run_ids(Store(tmp_path / "none")) == []


def test_ranks_tell_why_they_failed_beside_their_output(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(launching.BEGUN, str(tmp_path))
    launching.announce_failure(1, "RuntimeError: Connection closed by peer")
    launching.announce_failure(0, "ValueError: the cause")

    assert launching.failure(tmp_path) == "ValueError: the cause"
    assert not launching.begun(tmp_path)
    launching.announce(0)
    assert launching.begun(tmp_path)


@pytest.mark.parametrize("optimize", ["", pytest.param("2", marks=pytest.mark.exhaustive)])
def test_a_run_and_counts_end_well_amid_it_under_another_launcher_and_without_docstrings(
    optbench, noisy, monkeypatch, tmp_path, optimize
) -> None:
    """All at once, since worlds cost seconds; where docstrings are gone, all of torch is compiled anew."""
    words = ("--workload", "linear_regression", "--optimizer", "sgd/forloop", "--strategy", "ddp", "--nproc", "1")
    planned = optbench("plan", *words, "--steps", "4", "--write", str(tmp_path / "plans"), env={"PYTHONPATH": ""})
    assert planned.code == 0, planned.err
    spec = read_plan_file(tmp_path / "plans" / "plan-0.json")
    theirs = {
        "PYTHONOPTIMIZE": optimize,
        "PET_NNODES": "2",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": "192.0.2.1:29400",
        "LOGLEVEL": "debug",
        "RANK": "3",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "192.0.2.1",
        "PYTHON_EXEC": "/bin/false",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    folder = Store(optbench.results).new_run(spec)
    ended = local.run(spec, folder, lambda _: None)

    assert (ended.outcome, ended.reason) == (None, None)
    assert summarise(folder).outcome == "completed"
    broken = spec.model_copy(update={"workload_options": {"no_such": 1}})
    with pytest.raises(OptbenchError, match="no_such") as told:
        counting.measured([Job(spec=broken, drift_steps=0)])
    assert "hello" not in str(told.value)


def test_nothing_depends_on_docstrings_or_on_asserts() -> None:
    """PYTHONOPTIMIZE=2 removes both: none is data, and no assert does work that is needed without it, too."""
    found = {}
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        asserted = [each for node in nodes if isinstance(node, ast.Assert) for each in ast.walk(node.test)]
        calls = {ast.unparse(each.func) for each in asserted if isinstance(each, ast.Call)} - {"isinstance"}
        names = {getattr(each, "attr", None) or getattr(each, "id", None) for each in nodes} & {"__doc__"}
        if calls | names:
            found[str(path.relative_to(ROOT))] = calls | names

    assert not found


def test_reasons_name_logs_that_are_there(tmp_path) -> None:
    log, shared = tmp_path / "rank-0.log", tmp_path / "torchrun.log"
    assert local._see(log) == "; it left no log"
    shared.write_text("Traceback (most recent call last):\nAttributeError: 'NoneType' object\nChildFailedError: x")
    assert local._see(log) == f": AttributeError: 'NoneType' object; see {shared}"
    log.write_text("words\n")
    assert local._see(log) == f"; see {log}"
    assert local._stacks(tmp_path) == "; no rank wrote its stacks"
    log.write_text("Current thread 0x1 (most recent call first):\n")
    assert local._stacks(tmp_path) == f"; the ranks' stacks are in {tmp_path}: rank-0.log"
