"""``optbench compare``: real worlds that take turns, arms of one's own, that die, hang or train something else."""

import itertools
import json
import os
import subprocess
import tempfile
import textwrap
import time
import venv
from pathlib import Path

import psutil
import pytest
from conftest import Optbench

from launch import baton

ARMS = """
import fcntl, os, sys, time, torch

class Slow(torch.optim.AdamW):
    # Twice the updates' work, of which one half is thrown away.
    def step(self, closure=None):
        kept = [p.detach().clone() for g in self.param_groups for p in g["params"]]
        for _ in range(20):
            for each in kept:
                each.add_(1e-9).mul_(1.0).sqrt_()
        return super().step(closure)

class Dies(torch.optim.AdamW):
    done = 0

    def step(self, closure=None):
        Dies.done += 1
        if Dies.done == 30:
            print("about to leave", flush=True)
            os._exit(3)
        return super().step(closure)

class Killed(torch.optim.AdamW):
    done = 0

    def step(self, closure=None):
        Killed.done += 1
        if Killed.done == 30:
            os.kill(os.getpid(), 9)
        return super().step(closure)

class Hangs(torch.optim.AdamW):
    done = 0

    def step(self, closure=None):
        Hangs.done += 1
        if Hangs.done == 30:
            time.sleep(1000)
        return super().step(closure)

class Diverges(torch.optim.AdamW):
    done = 0

    def step(self, closure=None):
        Diverges.done += 1
        if Diverges.done == 20:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.mul_(float("nan"))
        return super().step(closure)

class Stops(torch.optim.AdamW):
    done = 0

    def step(self, closure=None):
        Stops.done += 1
        return super().step(closure) if Stops.done <= 6 else None

class Idle(torch.optim.AdamW):
    def step(self, closure=None):
        return None

class OneRankBreaks(torch.optim.AdamW):
    done = 0

    def step(self, closure=None):
        OneRankBreaks.done += 1
        if OneRankBreaks.done == 30 and os.environ["RANK"] == "1":
            raise ValueError("rank one has had enough")
        return super().step(closure)

class Big(torch.optim.AdamW):
    # Fills a device of which there is one: the lock stands for its memory.
    held = []

    def __init__(self, params, **options):
        Big.held.append(open(os.path.join(os.path.dirname(__file__), "device"), "w"))
        try:
            fcntl.lockf(Big.held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise torch.OutOfMemoryError("the device is full") from None
        super().__init__(params, **options)

class Other(torch.optim.AdamW):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.neg_()
        return super().step(closure)
"""

alone = pytest.mark.alone
"""For what must come to a verdict: launches beside other tests' load would not count."""


class User(Optbench):
    """Has a folder of its own, and one for temporary files, whose path is short enough for a socket's."""

    def __init__(self, cwd, temporary):
        super().__init__(cwd / "results", cwd)
        self.temporary = Path(temporary)

    def environment(self, **more):
        return super().environment(TMPDIR=str(self.temporary), **more)

    def ranks(self):
        """Return the processes of arms that this user's comparisons have started."""
        return [each for each in psutil.process_iter() if self._is_rank(each)]

    def _is_rank(self, process):
        try:
            return baton.__file__ in process.cmdline() and process.environ().get("TMPDIR") == str(self.temporary)
        except psutil.Error:
            return False

    def logs(self):
        return list(self.temporary.glob("optbench-arms-*"))


@pytest.fixture
def user(tmp_path):
    """A folder of the user's with arms in it, and its store; nothing is left behind at the end."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(ARMS), encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="optbench-user-") as temporary:
        user = User(tmp_path, temporary)
        yield user
        assert user.logs() == []
        assert user.ranks() == []


def compare(user, *words):
    return user("compare", *words, "--results", str(user.results), "--json")


def small(*arms, budget="14s"):
    named = [word for arm in arms for word in ("--arm", arm)]
    return ("--workload", "linear_regression", "--nproc", "1", *named, "--budget", budget, "--no-self-check")


@alone
def test_a_planted_slowdown_is_found_and_the_analysis_can_be_redone(user):
    found = compare(user, *small("mine:Slow", "plain=mine:Slow", "adamw/forloop", budget="80s"), "--margin", "20%")
    same, fast = found.json["comparisons"]
    assert found.code in {0, 3}, found.err
    assert fast["arms"] == ["mine:Slow", "adamw/forloop"]
    assert (fast["verdict"], fast["metrics"]["step_time_s"]["high"] < 1) == ("faster", True)
    assert same["verdict"] in {"equivalent", "inconclusive"}
    again = compare(user, "--from", found.json["id"])
    assert again.json == found.json
    assert again.code == found.code
    manifest = user.results / found.json["id"] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"arms"', b'"arns"', 1))
    assert compare(user, "--from", "latest").code == 4


@alone
def test_two_ranks_take_turns_and_another_checkout_can_be_an_arm(user, tmp_path):
    root = Path(__file__).parents[2]
    older = tmp_path / "older"
    made = subprocess.run(["git", "-C", root, "worktree", "add", "--detach", older, "HEAD"], check=False)
    if made.returncode:
        pytest.skip("not in a git checkout")
    file = tmp_path / "arms.toml"
    file.write_text(
        textwrap.dedent(f"""
        margin = "50 %"
        budget = "80 s"
        [defaults]
        workload = "linear_regression"
        optimizer = "adamw/foreach"
        strategy = "ddp"
        world_size = 2
        [[arm]]
        name = "here"
        [[arm]]
        name = "there"
        path = "{older}"
        env = {{ MINE = "1" }}
        """),
        encoding="utf-8",
    )
    try:
        found = compare(user, str(file), "--no-self-check")
    finally:
        subprocess.run(["git", "-C", root, "worktree", "remove", "--force", older], check=True)
    (pair,) = found.json["comparisons"]
    assert pair["arms"] == ["here", "there"]
    assert pair["launches"] >= 4
    stored = json.loads((user.results / found.json["id"] / "manifest.json").read_text(encoding="utf-8"))
    assert [Path(each["harness"]).parent for each in stored["facts"]] == [root, older]
    mine = sorted(os.sched_getaffinity(0))
    assert len({each["addresses_alike"] for each in stored["facts"]}) == 1
    assert {tuple(each["cores"]) for each in stored["facts"]} == {tuple(mine[: max(1, len(mine) // 2)])}


@pytest.mark.parametrize(
    ("arm", "told"),
    [
        pytest.param("mine:Dies", "a rank died in its turn: ended with code 3", marks=pytest.mark.exhaustive),
        pytest.param(*("mine:Killed", "a rank died in its turn: killed by SIGKILL"), marks=pytest.mark.exhaustive),
        ("mine:Hangs", "hung in its turn: no answer within 6 s"),
    ],
)
def test_an_arm_that_dies_or_hangs_ends_the_comparison_with_its_log(user, arm, told):
    found = user(
        "compare", *small("adamw/forloop", arm, budget="90s"), "--timeout", "6", "--results", str(user.results)
    )
    assert found.code == 1
    assert f"arm {arm}: {told}" in " ".join((found.err + found.out).split())


def test_arms_that_train_differently_are_refused_unless_told_so(user):
    found = compare(user, *small("adamw/forloop", "mine:Other", budget="90s"))
    assert found.code == 1
    assert "train differently: in step 2" in found.err
    assert "--allow-different-training" in found.err


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("arm", "told", "more"),
    [
        ("mine:Diverges", "arm mine:Diverges diverged: its loss is not finite in step 21", ()),
        ("mine:Stops", "train differently: their losses part in step 8", ()),
        ("mine:Idle", "arm mine:Idle: RuntimeError: no parameter moved in", ("--allow-different-training",)),
    ],
)
def test_an_arm_that_trains_nothing_worth_having_is_never_called_faster(user, arm, told, more):
    found = compare(user, *small("adamw/forloop", arm, budget="90s"), "--no-verify", *more)
    assert found.code == 1
    assert told in " ".join((found.err + found.out).split())


def test_of_two_ranks_the_one_that_knows_why_is_heard(user):
    words = ("--strategy", "ddp", "--nproc", "2", "--budget", "90s", "--no-verify", "--no-self-check")
    arms = ("--arm", "adamw/forloop", "--arm", "mine:OneRankBreaks")
    found = compare(user, "--workload", "linear_regression", *arms, *words)
    assert found.code == 1
    assert "rank one has had enough" in json.dumps(found.json) + found.err


def test_a_baseline_whose_folder_holds_none_of_the_code_is_no_evidence(user, tmp_path):
    """What is installed would be compared with itself, and pass."""
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "gate.toml"
    file.write_text(
        '[baseline]\npath = "elsewhere"\n[gate]\nbudget = "90 s"\nself_check = false\n'
        '[[cell]]\nworkload = "linear_regression"\noptimizer = "adamw/foreach"\n',
        encoding="utf-8",
    )
    found = user("gate", str(file), "--no-verify", "--results", str(user.results), "--json")
    assert found.code == 4
    assert "no module of it was imported" in json.dumps(found.json)


def test_an_interpreter_without_the_packages_is_named_with_the_remedy(user, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    file = tmp_path / "arms.toml"
    file.write_text(
        textwrap.dedent("""
        [defaults]
        workload = "linear_regression"
        optimizer = "adamw/foreach"
        [[arm]]
        [[arm]]
        python = "bare/bin/python"
        [[arm]]
        python = "bare/bin/none"
        """),
        encoding="utf-8",
    )
    done = user("compare", str(file))
    assert done.code == 2
    assert f"{tmp_path / 'bare/bin/python'} lacks torch, pydantic, optbench" in done.err
    assert "-m pip install" in done.err
    assert f"{tmp_path / 'bare/bin/none'} is no program" in done.err


def test_bad_words_are_explained_with_the_remedy(user, tmp_path):
    found = user("compare", *small("adamw/forloop"))
    assert (found.code, "name two or more" in found.err) == (2, True)
    found = user("compare", *small("adamw/forloop", "adamw/fused", budget="3s"))
    assert (found.code, "need --budget" in found.err) == (2, True)
    file = tmp_path / "arms.toml"
    file.write_text(
        '[[arm]]\nworkload = "gpt"\noptimizer = "adamw/fused"\npython = "/no/such/python"\n'
        '[[arm]]\nworkload = "gpt"\noptimizer = "adamw/fused"\npath = "nowhere"\n',
        encoding="utf-8",
    )
    found = user("compare", str(file))
    assert found.code == 2
    assert "/no/such/python is no program" in found.err
    assert f"there is no folder {tmp_path / 'nowhere'}" in found.err


@alone
def test_a_driver_that_is_killed_leaves_its_launches_in_the_store_and_no_process(user):
    words = ("--arm", "sgd/foreach", "--arm", "sgd/fused", "--budget", "90s", "--margin", "0", "--no-verify")
    with subprocess.Popen(
        user.command("compare", "--workload", "linear_regression", *words, "--results", str(user.results)),
        cwd=user.cwd,
        env=user.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as driver:
        for line in driver.stderr:
            if line.startswith("launch 2"):
                break
        driver.kill()
    deadline = time.monotonic() + 20
    while user.ranks():
        assert time.monotonic() < deadline, "its ranks live on"
        time.sleep(0.1)
    while user.logs():
        assert time.monotonic() < deadline, "its folder of logs is left"
        time.sleep(0.1)
    done = user("compare", "--from", "latest", "--json")
    assert done.json["outcome"] == "incomplete"
    assert done.code == 1
    assert "its driver was killed" in user("compare", "--from", "latest").out


def launches_of(user, found):
    return json.loads((user.results / found.json["id"] / "manifest.json").read_text())["launches"]


@alone
def test_arms_that_do_not_fit_together_take_turns_in_abba_order(user):
    found = compare(user, *small("mine:Big", "same=mine:Big", budget="90s"), "--margin", "50%", "--no-verify")
    assert found.code in {0, 3}, found.err
    assert "do not fit into memory together" in found.err
    assert any("do not fit into memory together" in note for note in found.json["notes"])
    made = launches_of(user, found)
    assert len(made) >= 4
    for launch in made:
        assert not launch["resident"]
        arms = [turn["arm"] for turn in launch["turns"]]
        there = [arm for arm, _ in itertools.groupby(arms)]
        assert there in ([0, 1, 0], [1, 0, 1])
        assert arms.count(0) == arms.count(1)
    assert {launch["turns"][0]["arm"] for launch in made} <= {0, 1}
    again = compare(user, "--from", "latest")
    assert again.json["comparisons"] == found.json["comparisons"]


@alone
@pytest.mark.exhaustive
def test_every_launch_can_have_new_interpreters(user):
    found = compare(user, *small("adamw/forloop", "adamw/foreach", budget="160s"), "--margin", "90%", "--fresh")
    assert found.code in {0, 3}, found.err
    assert {launch["kind"] for launch in launches_of(user, found)} == {"fresh"}


def test_an_arm_that_cannot_launch_leaves_a_stored_failure(user):
    (user.cwd / "mine.py").write_text(
        "import torch\n\nclass Breaks(torch.optim.AdamW):\n"
        "    def step(self, closure=None):\n        raise ValueError('never right')\n",
        encoding="utf-8",
    )
    found = compare(user, *small("mine:Breaks", "adamw/foreach"), "--no-verify")
    assert found.code == 1, (found.code, found.err)
    assert "never right" in json.dumps(found.json)
    assert compare(user, "--from", found.json["id"]).json == found.json
