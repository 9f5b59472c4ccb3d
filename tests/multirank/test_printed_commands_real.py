"""Every command that optbench prints is executed by a shell, as it stands, from the folder it was printed in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PRINTED = re.compile(
    r"\S*(?:optbench|python[\d.]* (?:-P )?-m [\w.]+) (?:run|show|list|compare|verify|plan|gate|selftest) [^\n]*"
)
SMALL = ("--workload", "linear_regression", "--strategy", "single", "--set", "global_batch=8")
GATE = """
[gate]
budget = 30
margin = "5 %"
self_check = false
[baseline]
counts = "counts.json"
path = "{checkout}"
[[cell]]
workload = "linear_regression"
optimizer = "sgd/foreach"
strategy = "single"
steps = 20
"""


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize("program", ["python -m", "script"])
def test_every_printed_command_works_with_a_store_of_another_name(optbench, tmp_path, program):
    store = tmp_path / "my results"
    here = tmp_path / "here"
    here.mkdir()
    starts = {"python -m": [sys.executable, "-P", "-m", "harness.cli"]}
    starts["script"] = [str(Path(sys.executable).with_name("optbench"))]
    environment = {**optbench.environment(), "OPTBENCH_VERIFY": "1", "COLUMNS": "80"}
    (here / "gate.toml").write_text(GATE.format(checkout=Path(__file__).parents[2]))

    def start(*words: str) -> str:
        done = subprocess.run(
            [*starts[program], *words, "--results", os.path.relpath(store, here)],
            cwd=here, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode in {0, 3}, done.stderr
        return f"{done.stdout}\n{done.stderr}"

    both = ("--optimizer", "sgd/foreach", "--optimizer", "sgd/fused")
    texts = [start("run", *SMALL, *both, "--steps", "5")]
    texts.append(start("verify", "--optimizer", "sgd/foreach"))
    texts.append(start("compare", *SMALL, "--arm", "sgd/foreach", "--arm", "sgd/fused", "--budget", "30s"))
    texts.append(start("gate", "gate.toml", "--update-baseline"))
    texts.append(start("gate", "gate.toml"))
    runs = sorted(path.name for path in store.iterdir() if path.name[0].isdigit())
    texts += [start("show"), start("show", "sweep-"), start("show", runs[0]), start("compare", *runs)]
    found = list(dict.fromkeys(command for text in texts for command in PRINTED.findall(text)))
    verbs = {re.sub(r".*?(?:optbench|-m \S+) ", "", command).split()[0] for command in found}
    assert verbs >= {"show", "list", "compare"}
    for command in found:
        quick = command + (" --budget 30s" if "--arm" in command else "")
        done = subprocess.run(
            quick, shell=True, cwd=here, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode in {0, 3}, (command, done.stderr)
    assert not (here / "results").exists()
