"""The workflow for pull requests, and the script that it runs: a real repository, and a stand-in for optbench."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from harness.counts import baseline
from harness.gating.file import load
from harness.plan import name_checks

CI = Path(__file__).parents[2] / "launch" / "ci"

OPTBENCH = """#!/bin/sh
# Stands in for optbench: notes its words, writes a verdict, ends as it is told.
echo "$@ base=$(cat ../base/file)" >>../asked
while [ $# -gt 0 ]; do [ "$1" = --markdown ] && [ -z "$MUTE" ] && echo "### verdict" >"$2"; shift; done
exit ${CODE:-0}
"""


@pytest.fixture
def repository(tmp_path):
    """A main branch that went on after a change was begun, checked out at the change."""
    folder = tmp_path / "candidate"
    folder.mkdir()

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)

    git("init")
    for name, branch in (("base", "main"), ("later", "main"), ("change", "change")):
        if branch == "change":
            git("checkout", "-b", "change", "main~1")
        (folder / "file").write_text(name)
        git("add", "file")
        git("commit", "-m", name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "optbench").write_text(OPTBENCH)
    (tmp_path / "bin" / "optbench").chmod(0o755)
    return folder


def run(folder, **settings):
    summary = folder.parent / "summary.md"
    summary.unlink(missing_ok=True)
    path = f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(CI / "gate.sh"), "g.toml"],
        cwd=folder,
        env={**os.environ, "PATH": path, "BASE_REF": "main", "GITHUB_STEP_SUMMARY": str(summary), **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, summary.read_text() if summary.exists() else ""


def test_a_change_is_held_against_its_merge_base_not_the_branchs_tip(repository):
    for _ in range(2):  # a second run finds the base checked out
        done, summary = run(repository)
        assert done.returncode == 0, done.stderr
        assert summary == "### verdict\n"
    first, second = (repository.parent / "asked").read_text().splitlines()
    assert re.fullmatch(r"gate g.toml --markdown \S+ base=base", first)
    assert second.endswith("base=base")


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_the_gates_exit_code_is_the_jobs(repository, code):
    done, summary = run(repository, CODE=str(code))
    assert done.returncode == code
    assert summary == "### verdict\n"


def test_a_gate_that_ended_early_is_told_in_the_summary(repository):
    done, summary = run(repository, CODE="2", MUTE="1")
    assert done.returncode == 2
    assert "no verdict" in summary
    assert "code 2" in summary


@pytest.mark.parametrize("settings", [{}, {"BASE_REF": "nowhere"}, {"CODE": "2", "MUTE": "1"}])
def test_without_a_page_for_the_summary_the_verdict_is_printed_once(repository, settings):
    done, summary = run(repository, GITHUB_STEP_SUMMARY="", **settings)
    assert summary == ""
    assert "###" not in done.stdout + done.stderr  # the stand-in's Markdown; the gate has printed its own words
    assert settings == {} or done.stderr


@pytest.mark.parametrize("broken", ["no such branch", "something in the way"])
def test_without_a_base_the_gate_is_invalid_and_says_why(repository, broken):
    settings = {}
    if broken == "no such branch":
        settings = {"BASE_REF": "origin/nowhere"}
    else:
        (repository.parent / "base").mkdir()
    done, summary = run(repository, **settings)
    assert done.returncode == 4
    assert "invalid" in summary
    assert not (repository.parent / "asked").exists()


def test_the_shell_of_the_workflow_parses():
    subprocess.run(["bash", "-n", str(CI / "gate.sh")], check=True)


def test_the_workflow_is_valid_and_can_only_read():
    import yaml

    document = yaml.safe_load((CI / "optbench-gate.yml").read_text())
    assert document["permissions"] == {"contents": "read"}
    (job,) = document["jobs"].values()
    scripts = [step["run"] for step in job["steps"] if "run" in step]
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert "${{" not in script  # what a pull request says must not become shell
    checkout = next(step for step in job["steps"] if "checkout" in step.get("uses", ""))
    assert checkout["with"]["fetch-depth"] == 0
    gate = next(step for step in job["steps"] if "gate.sh" in step.get("run", ""))
    assert (CI.parents[1] / gate["env"]["GATE"]).is_file()


def test_the_projects_own_gates_read_and_have_the_baselines_cells():
    alone, live = (load(CI / name, name_checks()) for name in ("gate.toml", "pull-request.toml"))
    assert alone.baseline.counts == live.baseline.counts == CI / "counts.json"
    assert {cell.name for cell in alone.cells} == set(baseline.read(CI / "counts.json"))
    assert alone.cells == live.cells
    assert live.baseline.path is not None
    assert live.baseline.path.resolve() == CI.parents[2] / "base"
