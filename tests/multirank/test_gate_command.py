"""``optbench gate`` as a user would run it: a baseline is written, holds, and names the change that it sees."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

GATE = """
name = "line"
[baseline]
counts = "counts.json"
[[cell]]
name = "line"
workload = "linear_regression"
optimizer = "{optimizer}"
strategy = "single"
device = "cpu"
lr = 0.01
"""


@pytest.fixture
def gate(optbench, tmp_path):
    path = tmp_path / "gate.toml"

    def run(*words, optimizer="planted:Plain", text=GATE):
        path.write_text(text.format(optimizer=optimizer))
        return optbench("gate", str(path), "--results", str(optbench.results), *words)

    return run


def test_a_baseline_is_written_then_holds_and_then_names_what_moved(gate, tmp_path, monkeypatch):
    counts, told = tmp_path / "counts.json", tmp_path / "verdict.md"
    without = gate("--json")
    assert (without.code, without.json["verdict"]) == (4, "invalid")
    assert "no such baseline" in without.out
    written = gate("--update-baseline")
    assert written.code == 0, written.err
    before = counts.read_bytes()
    same = gate("--json", "--markdown", str(told))
    assert (same.code, same.json["verdict"]) == (0, "passed"), same.out
    assert "passed" in told.read_text(encoding="utf-8").splitlines()[0]
    monkeypatch.setenv("PLANTED_OPERATOR", "1")
    moved = gate("--json")
    assert (moved.code, moved.json["verdict"]) == (1, "regressed"), moved.out
    assert "aten::neg 0 -> 2 a step" in [row["what"] for row in moved.json["rows"]]
    assert counts.read_bytes() == before


def test_words_that_are_wrong_are_all_told_with_exit_code_2(gate, optbench, tmp_path):
    ran = gate(text='[gate]\nmargin = "x"\n[[cell]]\nworkload = "gpd"\noptimizer = "{optimizer}"\n')
    assert ran.code == 2
    assert "gate.margin" in ran.err
    assert "cell[0].workload: unknown name 'gpd'" in ran.err
    assert optbench("gate", str(tmp_path / "none.toml")).code == 2
    assert json.loads(gate("--json", optimizer="planted:Nowhere").out)["verdict"] == "invalid"


def test_this_checkout_holds_its_own_gate(optbench):
    """What counts exactly; the machine's own drift is for the gate that CI runs by itself."""
    file = Path(__file__).parents[2] / "launch" / "ci" / "gate.toml"
    ran = optbench("gate", str(file), "--no-verify", "--json", "--results", str(optbench.results))
    assert ran.json["verdict"] in {"passed", "regressed"}, ran.err
    moved = [row for row in ran.json["rows"] if row["verdict"] != "passed"]
    machine = ("step time", "resident memory")
    assert [row for row in moved if not any(word in row["what"] for word in machine)] == []


LIVE = """
name = "live"
[gate]
budget = "90 s"
margin = "10 %"
[baseline]
path = "older"
[[cell]]
name = "line"
workload = "linear_regression"
optimizer = "{optimizer}"
strategy = "single"
device = "cpu"
"""


@pytest.mark.alone
def test_code_that_is_slower_than_the_baselines_checkout_regresses(gate, optbench, tmp_path, monkeypatch):
    """The whole way: two checkouts' worlds, a slowdown that only this one has, and what is kept of it."""
    root, older = Path(__file__).parents[2], tmp_path / "older"
    made = subprocess.run(["git", "-C", root, "worktree", "add", "--detach", older, "HEAD"], check=False)
    if made.returncode:
        pytest.skip("not in a git checkout")
    monkeypatch.setenv("PLANTED_BASELINE", str(older))
    try:
        found = gate("--no-verify", "--json", optimizer="planted:SlowerThanBaseline", text=LIVE)
    finally:
        subprocess.run(["git", "-C", root, "worktree", "remove", "--force", older], check=True)
    assert (found.code, found.json["verdict"]) == (1, "regressed"), (found.out, found.err)
    slower = [row for row in found.json["rows"] if row["verdict"] == "regressed"]
    assert {row["axis"] for row in slower} >= {"speed"}
    (kept,) = optbench.results.glob("comparison-*")
    assert optbench("compare", "--from", kept.name, "--results", str(optbench.results)).code == 0
