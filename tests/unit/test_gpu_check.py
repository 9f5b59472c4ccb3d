"""tests/gpu/check.sh without a GPU: its parts are rows, and every name of ours that it uses is known."""

from __future__ import annotations

import ast
import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from harness.cli import app
from harness.machine import Machine
from tests.unit import synthetic_machines

GPU = Path(__file__).parent.parent / "gpu"
COMMANDS = typer.main.get_command(app)
SECONDS = {"correct": 300, "timed": 240}


def check(out: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if key not in {"ONLY", "DRY", "END", "DEVICE", "APEX"}}
    return subprocess.run(
        ["bash", str(GPU / "check.sh"), *words],
        env={**kept, "PYTHON": sys.executable, "OUT": str(out), **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def rows(out: Path) -> list[dict[str, str]]:
    head, *lines = (out / "rows.tsv").read_text().splitlines()
    return [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]


def parts(*words: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> kind and command of every part, as the script itself prints them."""
    done = check(Path("/tmp"), *words, DRY="1")  # nothing is written there
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return {name: (kind, shlex.split(command)) for name, kind, _, command in lines}


@pytest.fixture(scope="module")
def everything():
    return parts()


def verb_of(command: list[str]) -> list[str] | None:
    """Words after ``-m harness.cli``; None: another module's."""
    return command[command.index("harness.cli") + 1 :] if "harness.cli" in command else None


def test_doctor_and_plan_are_rows_and_describe_the_machine(tmp_path):
    done = check(tmp_path, DEVICE="cpu", ONLY="doctor plan")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(row["part"], row["code"]) for row in rows(tmp_path)] == [("doctor", "0"), ("plan", "0")]
    Machine.model_validate_json((tmp_path / "machine.json").read_text())


def test_a_part_that_fails_is_a_row_and_the_check_ends_with_1(tmp_path):
    done = check(tmp_path, DEVICE="cpu", ONLY="plan strategies fp16", PYTHON="false")
    assert done.returncode == 1
    codes = {row["part"]: (row["code"], row["last line"]) for row in rows(tmp_path)}
    assert codes["plan"][0] == codes["strategies"][0] == "1"
    assert codes["fp16"] == ("skipped", "needs a GPU")


def test_a_part_for_which_no_time_is_left_is_a_row(tmp_path):
    done = check(tmp_path, DEVICE="cpu", ONLY="plan", END="0")
    assert done.returncode == 0
    (row,) = rows(tmp_path)
    assert (row["code"], row["last line"]) == ("skipped", "no time was left; run it with ONLY=plan")


def test_two_calls_do_what_one_does(everything):
    calls = {kind: parts(kind) for kind in SECONDS}
    assert set().union(*calls.values()) == set(everything)
    both = {name for name, (kind, _) in everything.items() if kind == "both"}
    assert set(calls["correct"]) & set(calls["timed"]) == both


def test_a_call_of_neither_kind_is_answered_with_how_to_call_it(tmp_path):
    done = check(tmp_path, "everything")
    assert done.returncode == 2
    assert "bash tests/gpu/check.sh correct" in done.stderr


def test_every_command_of_the_check_is_one_that_optbench_takes(everything):
    for name, (_, command) in everything.items():
        words = verb_of(command)
        if words is None:
            continue
        verb = COMMANDS.commands[words[0]]
        verb.make_context(name, words[1:])  # raises where an option is unknown


def test_every_module_that_the_check_runs_is_there(everything):
    modules = {command[command.index("-m") + 1] for _, command in everything.values() if "-m" in command}
    assert "harness.kernels" in modules
    for module in modules:
        importlib.import_module(module)


def test_every_cell_of_the_check_runs_on_one_h100(everything, optbench, tmp_path):
    machine = tmp_path / "machine.json"
    machine.write_text(synthetic_machines.read("h100").model_dump_json())
    reasons = {}
    for name, (_, command) in everything.items():
        words = verb_of(command)
        if words is None or words[0] not in {"run", "verify", "compare"}:
            continue
        planned = optbench("plan", *as_plan(words), "--machine", str(machine), "--json")
        assert planned.code == 0, planned.err
        assert planned.json["cells"]
        reasons |= {
            f"{name}: {cell['unsupported']}": None for cell in planned.json["cells"] if cell["unsupported"]
        }
    assert set(reasons) == {"quickstart: DeepSpeed's DeepSpeedCPUAdam works on cpu only; use adamw/deepspeed"}


def as_plan(words: list[str]) -> list[str]:
    """The words of a run, a comparison or a verification as those of a plan."""
    verb, *rest = words
    left = iter(rest)
    found = ["--workload", "linear_regression"] if verb == "verify" else []
    for word in left:
        if word in {"--results", "--budget"}:
            next(left)
        elif word != "--no-verify":
            found.append("--optimizer" if word == "--arm" else word)
    return found


def test_every_name_of_ours_that_the_facts_use_is_there():
    tree = ast.parse((GPU / "facts.py").read_text(encoding="utf-8"))
    imported: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(("harness", "launch")):
            module = importlib.import_module(node.module)
            for alias in node.names:
                try:
                    imported[alias.asname or alias.name] = getattr(module, alias.name)
                except AttributeError:
                    imported[alias.asname or alias.name] = importlib.import_module(f"{node.module}.{alias.name}")
    assert imported
    modules = {name: value for name, value in imported.items() if isinstance(value, ModuleType)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f"{node.value.id}.{node.attr}"
