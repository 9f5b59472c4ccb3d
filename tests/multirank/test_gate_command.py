"""``optbench gate`` as a user would run it: a baseline is written, holds, and names the change that it sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Optbench

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


MINE = """
import torch

class Mine(torch.optim.AdamW):
    def step(self, closure=None):
        for _ in range({passes}):
            for group in self.param_groups:
                for p in group["params"]:
                    p.detach().clone().add_(1e-9).mul_(1.0).sqrt_()
        return super().step(closure)
"""


@pytest.mark.alone
def test_code_that_is_slower_than_that_of_the_projects_base_regresses(optbench, tmp_path):
    """The whole way for a project of one's own: its two checkouts, a slowdown of one, and what is kept of it."""
    for folder, passes in (("older", 0), ("now", 20)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own_project.py").write_text(MINE.format(passes=passes), encoding="utf-8")
    (tmp_path / "gate.toml").write_text(LIVE.format(optimizer="own_project:Mine"), encoding="utf-8")
    user = Optbench(optbench.results, tmp_path / "now")
    words = ("gate", str(tmp_path / "gate.toml"), "--no-verify", "--results", str(user.results), "--json")
    found = user(*words)
    assert (found.code, found.json["verdict"]) == (1, "regressed"), (found.out, found.err)
    slower = [row for row in found.json["rows"] if row["verdict"] == "regressed"]
    assert {row["axis"] for row in slower} >= {"speed"}
    (kept,) = user.results.glob("comparison-*")
    assert user("compare", "--from", kept.name, "--results", str(user.results)).code == 0
