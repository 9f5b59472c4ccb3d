"""Remedies that install more name the place from which this optbench came."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness import __version__, installing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Another optbench, installed in a folder without a checkout."""
    folder = tmp_path / "site/optbench-9.dist-info"
    folder.mkdir(parents=True)
    needs = "Requires-Dist: torchao>=0.18; extra == 'third-party'\nRequires-Dist: ruff; extra == 'dev'\n"
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: optbench\nVersion: 9\n{needs}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert importlib.metadata.version("optbench") == "9"

    def command(noted):
        if noted is not None:
            (folder / "direct_url.json").write_text(json.dumps(noted))
        return installing.install("third-party", tmp_path / "site")

    return command


def test_a_checkout_is_named_by_its_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert installing.install("dev") == "pip install -e '.[dev]'"
    monkeypatch.chdir(ROOT.parent)
    assert shlex.split(installing.install("dev")) == ["pip", "install", "-e", f"./{ROOT.name}[dev]"]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(installing.install("dev")) == ["pip", "install", "-e", f"{ROOT}[dev]"]


def test_a_commit_is_named_by_its_repository(installed):
    noted = {"url": "https://host/o.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "python"}
    words = shlex.split(installed(noted))
    assert words[2:] == ["optbench[third-party] @ git+https://host/o.git@abc#subdirectory=python"]


def test_a_file_and_a_folder_are_named_while_they_are_there(installed, tmp_path):
    wheel = tmp_path / "a b" / "optbench-9-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    noted = {"url": wheel.as_uri(), "archive_info": {}}
    assert shlex.split(installed(noted))[2:] == [f"{wheel}[third-party]"]
    noted = {"url": wheel.parent.as_uri(), "dir_info": {"editable": True}}
    assert shlex.split(installed(noted))[2:] == ["-e", f"{wheel.parent}[third-party]"]
    wheel.unlink()
    noted = {"url": wheel.as_uri(), "archive_info": {}}
    assert installed(noted) == "pip install 'torchao>=0.18'"


def test_without_a_place_what_the_extra_asks_for_is_named(installed):
    assert installed(None) == "pip install 'torchao>=0.18'"


@pytest.mark.parametrize("words", [["-m", "optbench"], ["-m", "harness.cli"]])
def test_the_version_is_told_without_torch(words):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"optbench {__version__}\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" not in imported
    assert "typer" in imported
