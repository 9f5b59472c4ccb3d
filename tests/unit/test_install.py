"""What `launch/install.sh` makes: .venv for this Python in this folder, once. Python and pip are stand-ins."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PYTHON = r"""#!/bin/sh
# A Python called {name} whose torch is {torch}; `-m venv` copies it, `-m pip install` makes the command.
echo a sitecustomize of {name} prints a line
case "$*" in
  "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin .venv/site; cp "$0" .venv/bin/python ;;
  "-m pip --version") ;;
  "-m pip install"*) echo "$*" >>installed; touch .venv/bin/optbench ; chmod +x .venv/bin/optbench ;;
  *executable*) echo {name} >&3 ;;
  *purelib*) printf %s .venv/site >&3 ;;
  *-packages*) echo /{name}/site-packages >&3 ;;
  *version_info*) ;;
  -) printf %s "{torch}" >&3 ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with what the script reads, and two Pythons beside it: plain, and one that has torch."""
    folder = tmp_path / "clone"
    (folder / "launch").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "launch/install.sh", "launch/quickstart.sh"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    for name, torch in (("plain", ""), ("image", "2.11.0a0+nv")):
        path = tmp_path / name
        path.write_text(PYTHON.format(name=name, torch=torch))
        path.chmod(0o755)
    return folder


def install(folder, python, extras="deepspeed"):
    """Install, and return what pip was asked for."""
    (folder / "installed").write_text("")
    subprocess.run(
        ["bash", "-euc", f"source launch/install.sh; install_optbench {extras}"],
        cwd=folder,
        env={**os.environ, "PYTHON": str(folder.parent / python)},
        check=True,
    )
    return (folder / "installed").read_text().splitlines()


def test_each_set_of_extras_is_installed_once(clone):
    assert [len(install(clone, "plain", each)) for each in ("deepspeed", "deepspeed,dev")] == [1, 1]
    assert [install(clone, "plain", each) for each in ("deepspeed", "deepspeed,dev")] == [[], []]


def test_a_torch_that_is_there_is_borrowed_and_pinned(clone):
    (line,) = install(clone, "image")
    assert "-c .venv/constraints.txt" in line
    assert (clone / ".venv/constraints.txt").read_text() == "torch==2.11.0a0+nv\n"
    assert (clone / ".venv/site/borrowed.pth").read_text() == "/image/site-packages\n"


@pytest.mark.parametrize(("before", "after"), [("image", "plain"), ("plain", "image")])
def test_another_python_gets_an_environment_of_its_own(clone, before, after):
    install(clone, before)
    (clone / ".venv/left-over").touch()
    assert len(install(clone, after)) == 1
    assert not (clone / ".venv/left-over").exists()
    assert (clone / ".venv/site/borrowed.pth").exists() == (after == "image")


def test_a_folder_that_was_moved_gets_its_scripts_anew(clone):
    install(clone, "plain")
    moved = clone.rename(clone.with_name("moved"))
    assert len(install(moved, "plain")) == 1


def test_an_interrupted_installation_is_finished(clone):
    install(clone, "plain")
    (clone / ".venv/.installed-deepspeed").unlink()
    (clone / ".venv/kept").touch()
    assert len(install(clone, "plain")) == 1
    assert (clone / ".venv/kept").exists()


@pytest.mark.parametrize("where", ["clone", "."])
def test_the_quickstart_runs_in_the_folder_of_whoever_called_and_keeps_its_results_in_the_clone(clone, where):
    install(clone, "plain")
    command = clone / ".venv/bin/optbench"
    command.write_text('#!/bin/sh\necho "$0 in $PWD: $*"\n')
    cwd = (clone.parent / where).resolve()
    done = subprocess.run(
        ["bash", str(clone / "launch/quickstart.sh"), "--", "--steps", "40"],
        cwd=cwd,
        env={**os.environ, "PYTHON": str(clone.parent / "plain")},
        check=True,
        capture_output=True,
        text=True,
    )
    store = "" if cwd == clone else f" --results {clone}/results"
    assert done.stdout == f"{command} in {cwd}: run quickstart{store} --steps 40\n"
