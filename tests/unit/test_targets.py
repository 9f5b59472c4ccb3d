"""Code named by its file: imported with its packages, whatever else has its name, and hiding nothing."""

from __future__ import annotations

import glob
import sys

import pytest

import workloads
from harness import targets
from harness.errors import InvalidInputError
from harness.gating.file import load as load_gate
from harness.plan import name_checks
from harness.registry import OPTIMIZERS, WORKLOADS
from harness.spec import load_sweep
from harness.verbs import arms, specs
from harness.verification.identity import key, plain_job, user_sources
from tests.unit.test_plan import machine

RELATIVE = "from .beside import NAME\nfrom ..above import OTHER\n\nclass Mine:\n    names = NAME, OTHER\n"

OPTIMIZER = """
class Lion:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), *, weight_decay=0.0, mode=None):
        pass

    def step(self, closure):
        pass
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The user's folder, current; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTBENCH_USER_PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None) or getattr(module, "__path__", "")).find(str(tmp_path)) >= 0:
            del sys.modules[name]


def write(folder, **files):
    """Write modules; two underscores stand for a slash."""
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def package(folder, text=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text(text)


@pytest.mark.parametrize("packages", [True, False])
def test_relative_imports_of_a_file_work_with_and_without_packages(user, packages):
    write(user, pack__inner__mine=RELATIVE, pack__inner__beside="NAME = 1", pack__above="OTHER = 2")
    if packages:
        package(user / "pack")
        package(user / "pack/inner")
    found = targets.load(targets.located("./pack/inner/mine.py:Mine"))
    assert found.names == (1, 2)
    assert targets.load(targets.located("pack/inner/mine.py:Mine")) is found
    if packages:
        assert found.__module__ == "pack.inner.mine"


def test_a_module_beside_the_file_is_imported_by_its_name(user):
    write(user, elsewhere__mine_by_file="from only_beside import Mine", elsewhere__only_beside="class Mine: pass")
    assert targets.load(f"{user}/elsewhere/mine_by_file.py:Mine").__name__ == "Mine"


@pytest.mark.parametrize("name", ["workloads", "launch", "harness"])
def test_a_package_of_the_users_with_a_name_of_ours_is_reached_by_file_and_hides_nothing(user, name):
    package(user / name, "from .mine import Mine")
    write(user, **{f"{name}__mine": "class Mine: pass"})
    found = targets.load(targets.located(f"{name}/mine.py:Mine"))
    assert sys.modules[found.__module__].__file__ == str(user / name / "mine.py")
    assert sys.modules["workloads"] is workloads
    assert WORKLOADS.get("gpt").__module__ == "workloads.gpt"


def test_a_name_that_is_taken_says_by_whom_and_names_the_file(user):
    write(
        user,
        glob=OPTIMIZER,
        workloads__mine="class Mine: pass",
        pytest="class Mine: pass",
        free="class Mine: pass",
    )
    assert targets.load("./glob.py:Lion").__name__ == "Lion"
    assert sys.modules["glob"] is glob
    told = OPTIMIZERS.remedy("glob:Lion") or ""
    assert told == (
        "the name glob is taken by Python's standard library, which hides ./glob.py; name the file: ./glob.py:Lion"
    )
    told = WORKLOADS.remedy("workloads.mine:Mine") or ""
    assert "taken by optbench's own package" in told
    assert told.endswith("workloads/mine.py:Mine")
    assert f"taken by the installed {pytest.__file__}" in (WORKLOADS.remedy("pytest:Mine") or "")
    sys.path.append(str(user))
    assert WORKLOADS.remedy("free:Mine") is None


def test_an_absolute_import_of_a_taken_name_says_what_to_write(user):
    write(
        user, workloads__mine="from workloads.of_mine import NAME", workloads____init__="", workloads__of_mine=""
    )
    (user / "workloads/__init__.py").touch()
    with pytest.raises(ImportError, match=r"taken by optbench's own package: import relatively, from \. import"):
        targets.load(f"{user}/workloads/mine.py:Mine")


def test_a_file_that_is_not_there_and_one_without_a_class_say_so(user):
    write(user, mine="class One: pass\nclass Two: pass")
    assert OPTIMIZERS.remedy(f"{user}/mine.py:One") is None
    assert OPTIMIZERS.remedy(f"{user}/mnie.py:One") == f"there is no file {user}/mnie.py"
    told = OPTIMIZERS.remedy(f"{user}/mine.py") or ""
    assert told == f"name a class of it: {user}/mine.py:One  (it has One, Two)"


@pytest.mark.parametrize("code", ["parser.add_argument('--needed', required=True)", "parser.exit(3, 'no luck')"])
def test_a_module_that_ends_the_process_on_import_shows_what_it_printed(user, code, capsys):
    write(user, script=f"import argparse\nparser = argparse.ArgumentParser()\n{code}\nparser.parse_args()")
    with pytest.raises(ImportError, match="ends the process when it is imported") as caught:
        targets.load("./script.py:Mine")
    printed = "the following arguments are required: --needed" if "needed" in code else "no luck"
    assert printed in str(caught.value)
    assert '__name__ == "__main__"' in str(caught.value)
    assert printed in capsys.readouterr().err


def test_a_script_finds_none_of_our_arguments(user, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["optbench", "--target", "x"])
    write(user, script="import argparse\nclass Mine: words = argparse.ArgumentParser().parse_args()")
    assert targets.load("./script.py:Mine")
    assert sys.argv == ["optbench", "--target", "x"]


def test_a_relative_file_begins_beside_the_toml_that_names_it_else_in_the_current_folder(user):
    write(user, sweeps__beside=OPTIMIZER, mine=OPTIMIZER)
    sweep = user / "sweeps/s.toml"
    sweep.write_text('[[runs]]\nworkload = "gpt"\noptimizer = ["beside.py:Lion", "mine.py:Lion"]\n')
    runs = load_sweep(sweep, name_checks()).runs
    assert [run.optimizer for run in runs] == [f"{user}/sweeps/beside.py:Lion", f"{user}/mine.py:Lion"]
    gate = user / "sweeps/g.toml"
    gate.write_text('[baseline]\ncounts="c"\n[[cell]]\nworkload = "gpt"\noptimizer = "beside.py:Lion"\n')
    (cell,) = load_gate(gate, name_checks()).cells
    assert cell.spec.optimizer == f"{user}/sweeps/beside.py:Lion"
    (run,) = specs.read([], {"workload": "gpt", "optimizer": "./mine.py:Lion"}, []).runs
    assert run.optimizer == f"{user}/mine.py:Lion"


def test_an_arms_file_begins_in_the_arms_own_folder(user):
    write(user, one__mine=OPTIMIZER, two__mine=OPTIMIZER)
    file = user / "arms.toml"
    each = '[[arm]]\nname = "{0}"\npath = "{0}"\noptimizer = "mine.py:Lion"\nworkload = "gpt"\n'
    file.write_text(each.format("one") + each.format("two"))
    found, _ = arms.from_file(file, {}, [])
    assert [arm.spec.optimizer for arm in found] == [f"{user}/one/mine.py:Lion", f"{user}/two/mine.py:Lion"]


def test_a_source_tells_defaults_and_closure_without_an_import(user):
    write(user, mine=f"raise RuntimeError\n{OPTIMIZER}")
    assert targets.constructor_defaults("./mine.py:Lion") == {
        "lr": 0.001,
        "betas": [0.9, 0.99],
        "weight_decay": 0.0,
        "mode": None,
    }
    assert OPTIMIZERS.get("./mine.py:Lion").target == "./mine.py:Lion"
    (user / "marked.py").write_bytes(b"\xef\xbb\xbf" + OPTIMIZER.encode())
    assert targets.class_definition("./marked.py:Lion") is not None


def test_a_package_that_fails_is_not_imported_to_find_a_source(user):
    package(user / "failing", "raise SystemExit(3)")
    write(user, failing__mine=OPTIMIZER)
    sys.path.append(str(user))
    assert targets.source("failing.mine:Lion") == user / "failing/mine.py"
    assert "failing" not in sys.modules


def test_a_certificate_is_keyed_by_the_files_content(user):
    code = f"from torch.optim import Optimizer\n{OPTIMIZER.replace('Lion:', 'Lion(Optimizer):')}"
    write(user, mine=code)
    (run,) = specs.read([], {"workload": "gpt", "optimizer": "./mine.py:Lion"}, ["optimizer.mode=1"]).runs
    here = machine()
    before = key(plain_job(run), here)
    assert key(plain_job(run), here) == before
    write(user, mine=f"{code}# changed")
    assert key(plain_job(run), here) != before
    targets.load(run.optimizer)
    assert str(user / "mine.py") in user_sources(sys.modules.values())


def test_a_table_shows_as_much_of_a_path_as_tells_files_apart():
    names = ["/a/b/lion.py:Lion", "/a/c/lion.py:Lion", "/a/c/sgd.py:SGD", "adamw/fused"]
    assert [targets.short(name, names) for name in names] == [
        "b/lion.py:Lion",
        "c/lion.py:Lion",
        "sgd.py:SGD",
        "adamw/fused",
    ]


@pytest.mark.parametrize("name", ["./a.py:B", "/a/b-c.py:B.C", "../a b.py:B", "a.b:C"])
def test_files_and_modules_are_out_of_tree(name):
    assert targets.is_target(name)


@pytest.mark.parametrize("name", ["./a.py", "a.py:", "./a.txt:B", "adamw/fused"])
def test_what_names_no_class_is_not(name):
    assert not targets.is_target(name)


def test_two_files_of_one_name_are_two_modules(user):
    write(user, one__same="class Mine: number = 1", two__same="class Mine: number = 2")
    assert [targets.load(f"{user}/{each}/same.py:Mine").number for each in ("one", "two")] == [1, 2]


def test_the_same_file_of_another_checkout_is_named_where_it_is_there(user):
    write(user, now__mine=OPTIMIZER, main__mine=OPTIMIZER, now__new=OPTIMIZER)
    moved = [targets.moved(f"{user}/now/{name}.py:Lion", user / "main", user / "now") for name in ("mine", "new")]
    assert moved == [f"{user}/main/mine.py:Lion", f"{user}/now/new.py:Lion"]
    assert targets.moved("adamw/fused", user / "main") == "adamw/fused"


def test_problems_of_files_come_with_their_place(user):
    with pytest.raises(InvalidInputError) as caught:
        specs.read([], {"workload": "gpt", "optimizer": "./absent.py:Lion"}, [])
    (problem,) = caught.value.problems
    assert problem.where == "--optimizer"
    assert problem.remedy == f"there is no file {user}/absent.py"


def test_what_an_arms_own_path_holds_is_meant_whatever_the_current_folder_holds(user, tmp_path, monkeypatch):
    text = "import torch\n\n\nclass Mine(torch.optim.SGD):\n    pass\n"
    (user / "own_project.py").write_text(text)
    other = tmp_path / "older"
    other.mkdir()
    (other / "own_project.py").write_text(text)
    monkeypatch.syspath_prepend(str(other))
    assert "is taken by" in (OPTIMIZERS.remedy("own_project:Mine") or "")
    monkeypatch.setenv("OPTBENCH_PLACE", str(other))
    assert OPTIMIZERS.remedy("own_project:Mine") is None
