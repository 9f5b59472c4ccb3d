"""Each arm's code is planned and proved where it lies: two paths need no third copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.comparison.model import Arm
from harness.errors import InvalidInputError
from harness.store import Store
from harness.verbs import arm_plans, comparing, placed
from harness.verbs import arms as arms_file
from harness.verification.identity import Job
from launch import baton, placing, proving
from launch.arms import Arms

ROOT = Path(harness.__file__).parents[1]

SGD = """
import torch
from harness.interfaces import OptimizerTraits

class Mine(torch.optim.Optimizer):
    traits = OptimizerTraits(algorithm="sgd", granularity="element", state_tensors=0{traits})

    def __init__(self, params, lr=0.01{more}):
        super().__init__(params, dict(lr=lr))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for each in group["params"]:
                if each.grad is not None:
                    each.add_(each.grad, alpha={rate})
"""


@pytest.fixture
def arms(tmp_path, monkeypatch):
    """Two arms whose module has one name, in two folders; the current folder has none."""
    for name, more, rate, traits in (
        ("right", "", '-group["lr"]', ""),
        ("off", ", extra=1", '-1.1 * group["lr"]', ', state_dtypes=("bfloat16",), compiled=True'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code_of_an_arm.py").write_text(SGD.format(more=more, rate=rate, traits=traits))
    file = tmp_path / "arms.toml"
    file.write_text(
        '[defaults]\nworkload = "linear_regression"\ndevice = "cpu"\noptimizer = "code_of_an_arm:Mine"\n'
        '[[arm]]\nname = "right"\npath = "right"\n[[arm]]\nname = "off"\npath = "off"\n'
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return arms_file.from_file(file, {}, [])[0]


def test_two_paths_are_planned_and_proved_each_with_its_own_code(arms, tmp_path) -> None:
    plans = arm_plans.plan_arms(arms)
    sides = comparing.planned(arms, plans.plan)
    store, told = Store(tmp_path / "results"), []
    proofs, wrong = comparing.proved(sides, plans, store, told.append, asked=True, timeout_s=60)

    assert [each["outcome"] for each in proofs] == ["passed", "wrong"]
    assert wrong.startswith("off: ")
    told.clear()
    assert comparing.proved(sides, plans, store, told.append, asked=True, timeout_s=60)[0] == proofs
    assert not told, "certificates of both places are found again"


@pytest.mark.exhaustive
def test_each_arm_tells_the_driver_what_its_own_copy_declares(arms) -> None:
    sides = comparing.planned(arms, arm_plans.plan_arms(arms).plan)
    with Arms(sides, 120) as worlds:
        worlds.prepared()
        right, off = worlds.launch([0, 1]).values()
        worlds.end_launch()

    assert (right.compiled, right.state_dtypes) == (False, ("float32",))
    assert (off.compiled, off.state_dtypes) == (True, ("bfloat16",))
    assert min(right.build_s, off.build_s) > 0


@pytest.mark.exhaustive
def test_an_option_that_only_one_arms_copy_has_is_refused_for_the_other_alone(arms) -> None:
    asked = [
        arm.model_copy(update={"spec": arm.spec.model_copy(update={"optimizer_options": {"extra": 2}})})
        for arm in arms
    ]
    with pytest.raises(InvalidInputError, match="has no option 'extra'") as told:
        arm_plans.plan_arms(asked)

    assert [str(each.where) for each in told.value.problems] == ["arm right"]


def test_an_older_optbench_is_planned_here_and_says_why_it_is_not_proved(arms, tmp_path) -> None:
    old = tmp_path / "old"
    (old / "harness").mkdir(parents=True)
    (old / "harness" / "__init__.py").touch()
    spec = arms[0].spec.model_copy(update={"optimizer": "sgd/forloop"})
    arm = arms[0].model_copy(update={"path": str(old), "spec": spec})
    plans = arm_plans.plan_arms([arm])
    sides = comparing.planned([arm], plans.plan)
    proofs, _ = comparing.proved(sides, plans, Store(tmp_path / "results"), print, asked=True, timeout_s=60)

    assert plans.placed == {}
    assert proofs == [{"outcome": "unsupported", "reason": arm_plans.MAKES_NO_PROOFS}]


def test_what_the_prover_of_another_version_writes_becomes_an_outcome(arms, tmp_path) -> None:
    lines = [b'{"outcome": "passed"}', b"no JSON", b"[1]", b"\xff\xfe", b"", b'{"outcome": ']
    folder = tmp_path / "other" / "harness" / "verification"
    folder.mkdir(parents=True)
    for each in (folder.parent, folder):
        (each / "__init__.py").touch()
    written = b"".join(each + b"\n" for each in [*lines, b"one line too many"])
    (folder / "prove.py").write_text(f"import sys\nopen(sys.argv[2], 'wb').write({written!r})\n")
    arm = arms[0].model_copy(update={"path": str(tmp_path / "other")})
    jobs = [Job(spec=arm.spec.model_copy(update={"lr": 0.1 * each}), like=None) for each in range(1, 7)]
    made = []
    proving.prove(jobs, lambda job, each: made.append((job, each)), 60, arm=arm)

    assert [job for job, _ in made] == jobs
    assert {each.outcome for _, each in made} == {"failed"}
    assert made[0][1].reason == f"{proving.UNREADABLE}: optimizer: Field required; {proving.OTHER_VERSION}"


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(65)",
        "import sys; open(sys.argv[2], 'w').write('{\"cell\": null, \"later\": 1}')",
    ],
)
def test_an_optbench_that_cannot_be_understood_is_planned_here(arms, tmp_path, code) -> None:
    verbs = tmp_path / "other" / "harness" / "verbs"
    verbs.mkdir(parents=True)
    for each in (verbs.parent, verbs):
        (each / "__init__.py").touch()
    (verbs / "placed.py").write_text(code)
    spec = arms[0].spec.model_copy(update={"optimizer": "sgd/forloop"})
    plans = arm_plans.plan_arms([arms[0].model_copy(update={"path": str(tmp_path / "other"), "spec": spec})])

    assert plans.placed == {}
    assert [each.unsupported for each in plans.plan.cells] == [None]


def test_what_a_place_cannot_read_has_its_own_exit_code(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "asked.json").write_text('{"later": 1}')
    assert placed.main([str(tmp_path / "asked.json"), str(tmp_path / "out.json")]) == placing.UNREAD
    assert not (tmp_path / "out.json").exists()


def test_a_place_whose_interpreter_cannot_be_started_is_named(arms) -> None:
    arm = arms[0].model_copy(update={"python": "/no/such/python"})
    with pytest.raises(InvalidInputError, match="arm right: cannot be planned"):
        placing.planned(arm, None)


def test_the_arms_path_comes_first_and_the_drivers_checkout_last() -> None:
    spec = {"workload": "linear_regression", "optimizer": "sgd/forloop"}
    arm = Arm.model_validate({"name": "x", "spec": spec, "path": "/theirs", "env": {"A": "1"}})
    found = placing.settings(arm, {"PYTHONPATH": "/users", "PET_NNODES": "2"})

    assert found["PYTHONPATH"] == f"/theirs:/users:{ROOT}"
    assert found["A"] == "1"
    assert "PET_NNODES" not in found


@pytest.mark.exhaustive
def test_the_commit_of_an_arms_path_is_that_of_its_repository(tmp_path) -> None:
    def git(*words):
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x", *words], check=True
        )

    git("init", "-q")
    git("commit", "-qm", "m", "--allow-empty")
    code = f"""
import json, os, sys
os.environ |= dict(RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
sys.path.insert(0, {str(tmp_path)!r})
from launch import baton
spec = dict(workload="linear_regression", optimizer="here_it_is:Mine", device="cpu")
about = baton._prepared(spec, {str(tmp_path)!r})
sys.exit(f"{{about['path']}} {{about['path_commit']}}")
"""
    (tmp_path / "here_it_is.py").write_text(SGD.format(more="", rate="-1", traits=""))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stderr.splitlines()[-1] == f"{tmp_path} {baton._commit(tmp_path)}"
