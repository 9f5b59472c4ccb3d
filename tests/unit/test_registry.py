"""Names to code: what is known, what is near, and traits read from source that is never run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from harness.errors import InvalidInputError
from harness.interfaces import OptimizerTraits, Target, WorkloadSize, WorkloadTraits
from harness.registry import COLLECTORS, Registry, is_target, load, static_traits, summary

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = {
    "__init__.py": 'REGISTRY = {"circle": "shapes.round:Circle", "square": "shapes.angular:Square"}\n',
    "round.py": "class Circle:\n    class Inner:\n        sides = 0\n",
    "angular.py": 'raise RuntimeError("imported")\n',
}

WORKLOAD = '''
import torch_that_does_not_exist
raise RuntimeError("this module must not be run")


class Mine(torch_that_does_not_exist.Base):
    """A workload."""

    other = 3
    traits{annotation} = WorkloadTraits(
        summary="a " "summary",
        source="here",
        sizes={{"tiny": WorkloadSize(parameters=10, global_batch=8, target=Target(
            metric="loss", value=-0.5, better="lower"))}},
        default_size="tiny",
        metrics={{"loss": "lower"}},
        options={{"layers": [1, 2], "bias": None}},
        blocks=("blocks.*",),
    )
'''


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    folder = tmp_path / "shapes"
    folder.mkdir()
    for name, text in PACKAGE.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "shapes"]:
        monkeypatch.delitem(sys.modules, name)
    return Registry("shape", "shapes", "shapes")


def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", ["my.module:Class", "module:Class", "a.b.c:Outer.Inner"])
def test_code_out_of_tree_is_written_as_module_and_class(name: str) -> None:
    assert is_target(name)


@pytest.mark.parametrize(
    "name", ["adamw/fused", "module", "module:", ":Class", "my-module:Class", "a..b:C", "a:b:c", ""]
)
def test_anything_else_is_a_registered_name(name: str) -> None:
    assert not is_target(name)


def test_a_name_is_imported_on_demand_and_the_others_are_not(shapes: Registry) -> None:
    assert shapes.names() == ["circle", "square"]
    assert shapes.get("circle").__name__ == "Circle"
    assert shapes.get("shapes.round:Circle.Inner").sides == 0
    with pytest.raises(RuntimeError, match="imported"):
        shapes.get("square")


def test_an_unknown_name_gets_the_near_ones(shapes: Registry) -> None:
    assert shapes.remedy("circle") is None
    assert shapes.remedy("my.module:Shape") is None
    assert shapes.target("my.module:Shape") == "my.module:Shape"
    with pytest.raises(InvalidInputError) as caught:
        shapes.get("circel")
    (problem,) = caught.value.problems
    assert (problem.where, problem.what) == ("shape", "unknown name 'circel'")
    yours = "yours: package.module:Class, or ./file.py:Class; all: optbench list shapes"
    assert problem.remedy == f"did you mean circle?  ({yours})"


def test_a_name_near_none_gets_all(shapes: Registry) -> None:
    assert (shapes.remedy("xyz") or "").startswith("known: circle, square")


def test_an_installed_package_adds_names_and_ours_win(shapes: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "more_shapes-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: more-shapes\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[optbench.shapes]\noval = shapes.round:Circle\ncircle = wrong:Wrong\n"
    )
    assert sorted(shapes.names()) == ["circle", "oval", "square"]
    assert shapes.get("oval") is shapes.get("circle")


def test_loading_what_is_not_there_raises_as_importing_does(shapes: Registry) -> None:
    with pytest.raises(ModuleNotFoundError):
        load("no_such_module:Class")
    with pytest.raises(AttributeError):
        load("shapes.round:Square")


@pytest.mark.parametrize("annotation", ["", ": WorkloadTraits"])
def test_traits_are_read_from_source_that_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, annotation: str
) -> None:
    name = f"mine_{len(annotation)}"
    module(tmp_path, monkeypatch, name, WORKLOAD.format(annotation=annotation))
    traits = static_traits(f"{name}:Mine", WorkloadTraits, [WorkloadSize, Target])
    assert traits == WorkloadTraits(
        summary="a summary",
        source="here",
        sizes={
            "tiny": WorkloadSize(
                parameters=10, global_batch=8, target=Target(metric="loss", value=-0.5, better="lower")
            )
        },
        default_size="tiny",
        metrics={"loss": "lower"},
        options={"layers": [1, 2], "bias": None},
        blocks=("blocks.*",),
    )
    assert name not in sys.modules


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("computed", "class Mine:\n    traits = OptimizerTraits(algorithm=ALGORITHM, granularity='element')\n"),
        ("called", "class Mine:\n    traits = make_traits()\n"),
        ("attribute", "class Mine:\n    traits = harness.OptimizerTraits(algorithm='a', granularity='element')\n"),
        ("wrong_field", "class Mine:\n    traits = OptimizerTraits(algorithm='a', moon='full')\n"),
        ("wrong_type", "class Mine:\n    traits = {'algorithm': 'a'}\n"),
        ("absent", "class Mine:\n    other = 1\n"),
        ("another", "class Yours:\n    traits = OptimizerTraits(algorithm='a', granularity='element')\n"),
        ("declared", "class Mine:\n    traits: OptimizerTraits\n"),
        ("positional", "class Mine:\n    traits = OptimizerTraits('a', 'element')\n"),
    ],
)
def test_traits_that_are_no_literals_are_left_to_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    module(tmp_path, monkeypatch, f"traits_{name}", text)
    assert static_traits(f"traits_{name}:Mine", OptimizerTraits) is None


def test_traits_are_never_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "run"
    code = f"class Mine:\n    traits = OptimizerTraits(algorithm=open({str(marker)!r}, 'w').name)\n"
    module(tmp_path, monkeypatch, "traits_evaluated", code)
    assert static_traits("traits_evaluated:Mine", OptimizerTraits) is None
    assert not marker.exists()


@pytest.mark.parametrize(
    "target", ["no_such_module_at_all:X", "no_such_package.module:X", "sys:X", "math:X", ":X"]
)
def test_a_module_without_source_has_no_static_traits(target: str) -> None:
    assert static_traits(target, OptimizerTraits) is None


def test_a_module_that_does_not_parse_has_no_static_traits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, monkeypatch, "traits_broken", "class Mine(:\n")
    assert static_traits("traits_broken:Mine", OptimizerTraits) is None


def test_every_collector_says_in_one_line_what_it_tells():
    for name, target in COLLECTORS.targets().items():
        told = summary(target)
        assert told is not None, name
        assert told.endswith("."), name
    assert summary("no.such.module:Class") is None
