"""``optbench verify`` and the proofs of ``run``, as a user starts them."""

from __future__ import annotations

import textwrap

import pytest
from conftest import Optbench

SOUND = """
import torch

class Mine(torch.optim.AdamW):
    pass
"""

IDLE = SOUND.replace("pass", "def step(self, closure=None):\n        return None")
DEADLY = SOUND.replace("pass", "def step(self, closure=None):\n        import os\n        os.abort()")


@pytest.fixture
def user(tmp_path):
    """A folder of the user's with a module ``mine`` in it, and its store."""
    write(tmp_path, SOUND)
    return Optbench(tmp_path / "results", cwd=tmp_path)


def write(folder, source, name="mine"):
    (folder / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")


def verify(user, *words, **options):
    return user("verify", *words, "--results", str(user.results), **options)


def small(*words):
    return ("--workload", "linear_regression", "--nproc", "1", "--steps", "10", *words)


def test_an_optimizer_that_is_right_gets_a_certificate_that_is_found_again_unless_it_is_damaged(user):
    first = verify(user, "--optimizer", "adamw/foreach", "--json")
    (made,) = first.json["certificates"]
    assert (first.code, made["outcome"], made["cause"]) == (0, "passed", None)
    assert made["reference"].startswith("adamw: ")
    assert (user.results / made["id"] / "manifest.json").is_file()
    assert "proved right" in first.err
    again = verify(user, "--optimizer", "adamw/foreach", "--json")
    assert again.json["certificates"] == first.json["certificates"]
    assert "proved right" not in again.err
    manifest = user.results / made["id"] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"passed", b"parsed", 1))
    damaged = verify(user, "--optimizer", "adamw/foreach", "--json")
    assert damaged.json["certificates"][0]["id"] != made["id"]
    anew = verify(user, "--optimizer", "adamw/foreach", "--anew", "--json")
    assert anew.json["certificates"][0]["id"] not in {made["id"], damaged.json["certificates"][0]["id"]}


def test_a_change_of_the_users_source_ends_its_certificate(user):
    assert verify(user, "--optimizer", "mine:Mine", "--like", "adamw").code == 0
    write(user.cwd, IDLE)
    changed = verify(user, "--optimizer", "mine:Mine", "--like", "adamw", "--json")
    assert changed.code == 4
    assert changed.json["certificates"][0]["outcome"] == "wrong"
    assert changed.json["certificates"][0]["cause"] == "the step does nothing"


def test_a_wrong_optimizer_is_not_timed_unless_the_user_insists(user):
    write(user.cwd, IDLE)
    ran = user.run(*small("--optimizer", "mine:Mine", "--optimizer", "sgd/forloop"), "--verify", "--json")
    wrong, right = ran.json["runs"]
    assert (ran.code, wrong["outcome"], right["outcome"]) == (4, "wrong", "completed")
    record = user.show(wrong["run_id"])
    assert record["metrics"] == {}
    assert record["verification"]["certificate"].startswith("certificate-")
    assert record["verification"]["certificate"] in record["reason"]
    record = user.show(right["run_id"])
    assert record["verification"]["outcome"] == "passed"
    assert (user.results / record["verification"]["certificate"]).is_dir()
    insisted = user.run(*small("--optimizer", "sgd/forloop"), "--no-verify", "--json")
    record = user.show(insisted.json["runs"][0]["run_id"])
    assert record["verification"] == {"outcome": "not verified", "reason": "--no-verify"}


def test_an_optimizer_that_kills_its_process_loses_its_own_proof_only(user):
    write(user.cwd, DEADLY, "deadly")
    ran = verify(user, "--optimizer", "deadly:Mine", "--optimizer", "sgd/forloop", "--json")
    by_name = {made["optimizer"]: made for made in ran.json["certificates"]}
    assert ran.code == 1
    assert by_name["deadly:Mine"]["outcome"] == "failed"
    assert "SIGABRT" in by_name["deadly:Mine"]["reason"]
    assert by_name["deadly:Mine"]["id"] is None
    assert by_name["sgd/forloop"]["outcome"] == "passed"


def test_a_custom_class_without_a_reference_is_told_which_checks_were_made(user):
    ran = verify(user, "--optimizer", "mine:Mine")
    assert ran.code == 0
    assert "no reference for its algorithm; checked without one:" in " ".join(ran.out.split())


def test_words_that_name_nothing_are_explained(user):
    ran = verify(user, "--optimizer", "mine:Mine", "--like", "adamv")
    assert ran.code == 2
    assert "did you mean adam" in ran.err


HAND_WRITTEN = """
import torch

class Mine(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(n=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["n"] += 1
                state["m"].lerp_(p.grad, 1 - beta1)
                state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                p.mul_(1 - lr * group["weight_decay"])
                root = (state["v"] / (1 - beta2 ** state["n"])).sqrt()
                p.addcdiv_(state["m"] / (1 - beta1 ** state["n"]), root + group["eps"], value=-lr)
"""


def like_adamw(user, source):
    write(user.results.parent, source)
    found = verify(user, "--optimizer", "mine:Mine", "--like", "adamw", "--json")
    (made,) = found.json["certificates"]
    return found.code, made


def test_a_class_of_ones_own_is_held_to_an_algorithm_over_what_its_constructor_takes(user):
    code, made = like_adamw(user, HAND_WRITTEN)
    assert (code, made["outcome"]) == (0, "passed"), made["reason"]
    (maximise,) = [check for check in made["checks"] if check["name"] == "maximise"]
    assert (maximise["verdict"], maximise["detail"]) == ("not applicable", "its constructor takes no maximize")


@pytest.mark.exhaustive
def test_a_beta_that_is_off_in_a_class_of_ones_own_is_named(user):
    code, made = like_adamw(user, HAND_WRITTEN.replace('group["betas"]\n', '(group["betas"][0], 0.998)\n'))
    assert (code, made["outcome"], made["cause"]) == (4, "wrong", "beta2 is 0.998, not 0.999")


def test_a_step_that_needs_what_no_loop_knows_is_refused_with_the_reason(user):
    code, made = like_adamw(user, HAND_WRITTEN.replace("closure=None", "metrics"))
    assert (code, made["outcome"]) == (1, "unsupported")
    assert "mine:Mine.step needs metrics, which no training loop knows" in made["reason"]
    ran = user("run", *small("--optimizer", "mine:Mine", "--no-verify", "--json"), "--results", str(user.results))
    assert [row["outcome"] for row in ran.json["runs"]] == ["unsupported"]


@pytest.mark.exhaustive
def test_a_proof_that_fails_in_a_world_costs_the_next_one_nothing(user):
    write(
        user.results.parent,
        SOUND.replace("pass", "def step(self, closure=None):\n        raise RuntimeError('no')"),
    )
    asked = ("--optimizer", "mine:Mine", "--optimizer", "adamw/foreach", "--strategy", "ddp", "--nproc", "2")
    found = verify(user, *asked, "--json")
    broken, sound = found.json["certificates"]
    assert (found.code, broken["outcome"], sound["outcome"]) == (1, "failed", "passed"), sound["reason"]
    assert "no" in broken["reason"]
