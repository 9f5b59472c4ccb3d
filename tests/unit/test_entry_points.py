"""Names that installed packages add; a broken package costs its own names only."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from harness import entry_points, registry
from harness.machine import Machine
from harness.plan import optimizer_runs_here
from harness.verbs import listing

ENTRY_POINTS = """
[optbench.workloads]
mine = outside_package:Mine
lost = nowhere:Workload
[optbench.strategies]
replicas = outside_package:Replicas
lost = nowhere:Strategy
[optbench.optimizers]
lost = nowhere:OPTIMIZERS
[optbench.collectors]
timing = outside_package:Mine
"""

CLASS = "from harness.optimizers.custom import Custom"

RAISING = f"""
{CLASS}

class Raising(Custom):
    name = "raising/it"
    traits = property(lambda self: 1 / 0)

    def __init__(self):
        self.target = "torch.optim:SGD"

OPTIMIZERS = {{"raising/it": Raising()}}
"""

SHADOWING = f"{CLASS}; x = Custom('torch.optim:SGD'); x.name = 'adamw/fused'; OPTIMIZERS = {{x.name: x}}"

FAULTS = {
    "linking": ("raise ImportError('libmine.so: cannot open shared object file')", "libmine.so: cannot open"),
    "leaving": ("import sys; print('bye'); sys.exit(3)", "exit code 3), and printed: bye"),
    "crashing": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes the process (SIGSEGV)"),
    "ending": ("import os; os._exit(0)", "ends the process with exit code 0"),
    "stopping": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "counting": ("OPTIMIZERS = 7", "is of type int, not a mapping"),
    "empty": ("OPTIMIZERS = {}", "names no optimizer"),
    "nameless": ("", "no attribute 'OPTIMIZERS'"),
    "listing": ("OPTIMIZERS = {'a/b': 'torch.optim:SGD'}", "lacks unsupported, options, build"),
    "odd": (f"{CLASS}; OPTIMIZERS = {{'My SGD!': Custom('torch.optim:SGD')}}", "has the key 'My SGD!'"),
    "other": (f"{CLASS}; OPTIMIZERS = {{'my/sgd': Custom('torch.optim:SGD')}}", "and the name 'torch.optim:SGD'"),
    "shadowing": (SHADOWING, "has adamw/fused, a name of optbench's own"),
    "native": ("", "has a name of optbench's own"),
    "un named": ("", "has the name 'un named'"),
    "raising": (RAISING, "cannot be used: ZeroDivisionError"),
}
"""Name of an entry point of optimizers -> its module, and what is said of it."""

SOUND = """
import os
from harness.optimizers.custom import Custom
print("one line", flush=True)
os.system("echo another line")

class Sound(Custom):
    def __init__(self, name):
        super().__init__("torch.optim:SGD")
        self.name = name

    def unsupported(self, spec, workload, machine):
        return 1 / 0 if self.name == "my/raising" else None

    def options(self, machine):
        return 1 / 0 if self.name == "my/raising" else {}

OPTIMIZERS = {name: Sound(name) for name in ("my/sgd", "my/raising")}
"""

MODULE = """
from harness.interfaces import WorkloadSize, WorkloadTraits
from harness.strategies.torch import DDP

def traits():
    sizes = {"one": WorkloadSize(parameters=2, global_batch=8)}
    return WorkloadTraits(summary="no literals", source="this test", sizes=sizes, default_size="one")

class Mine:
    traits = traits()

class Replicas(DDP):
    name = "replicas"
"""


def distribution(site, name, entry_points):
    package = site / f"{name}-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def command(tmp_path):
    distribution(tmp_path / "site", "outside", ENTRY_POINTS)
    (tmp_path / "site" / "outside_package.py").write_text(MODULE)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])

    def run(*words):
        return subprocess.run(
            [sys.executable, "-P", "-m", "harness.cli", *words],
            env={**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    return run


def test_lists_go_on_beside_broken_entry_points(command):
    workloads = {
        row["name"]: row for row in json.loads(command("list", "workloads", "--json").stdout)["workloads"]
    }
    assert "gpt" in workloads
    assert "when it is run or planned" in workloads["mine"]["reason"]
    listed = json.loads(command("list", "strategies", "--json").stdout)["strategies"]
    strategies = {row["name"]: row for row in listed}
    assert strategies["replicas"]["ranks"] == "any"
    assert "No module named 'nowhere'" in strategies["lost"]["reason"]
    assert (strategies["lost"]["package"], strategies["lost"]["kind"]) == ("outside 1.0", "strategies")
    assert "maintainers" in strategies["lost"]["remedy"]
    assert "No module named 'nowhere'" in workloads["lost"]["reason"]
    assert "ModuleNotFoundError" in command("list", "strategies").stdout


def test_an_installed_workload_and_strategy_are_planned_by_name(command):
    words = ("--workload", "mine", "--strategy", "replicas", "--nproc", "2", "--json")
    planned = command("plan", *words, "--optimizer", "sgd/forloop")
    assert planned.returncode == 0, planned.stderr
    (cell,) = json.loads(planned.stdout)["cells"]
    assert (cell["spec"]["size"], cell["unsupported"]) == ("one", None)
    unknown = command("plan", *words, "--optimizer", "lost/fused")
    assert [(each["kind"], each["name"]) for each in json.loads(planned.stdout)["entry_points"]] == [
        ("workloads", "lost"),
        ("optimizers", "lost"),
        ("strategies", "lost"),
        ("collectors", "timing"),
    ]
    assert unknown.returncode == 2
    assert "lost: nowhere:OPTIMIZERS cannot be imported: ModuleNotFoundError" in unknown.stderr


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Installed packages with a faulty entry point each, and one whose own is sound."""
    folder = tmp_path / "site"
    for number, (name, (code, _)) in enumerate(FAULTS.items()):
        distribution(folder, f"faulty{number}", f"[optbench.optimizers]\n{name} = faulty{number}:OPTIMIZERS\n")
        (folder / f"faulty{number}.py").write_text(code)
    distribution(folder, "sound", "[optbench.optimizers]\nmy = sound_family:OPTIMIZERS\n")
    (folder / "sound_family.py").write_text(SOUND)
    distribution(folder, "twin", "[optbench.optimizers]\nmy = sound_family:OPTIMIZERS\nown = twin:OPTIMIZERS\n")
    (folder / "twin.py").write_text("from sound_family import OPTIMIZERS")
    distribution(folder, "unwritten", "[optbench.optimizers]\nunwritten = not a target\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("OPTBENCH_CACHE", str(tmp_path / "cache"))
    yield folder
    for name in [name for name in sys.modules if name in {"sound_family", "twin"} or name.startswith("faulty")]:
        del sys.modules[name]


def test_each_faulty_entry_point_is_told_with_package_reason_and_remedy(site, capfd):
    found = {(each.package, each.name): each for each in registry.OPTIMIZERS.faults()}
    for number, (name, (_, reason)) in enumerate(FAULTS.items()):
        (told,) = (each for (package, _), each in found.items() if package == f"faulty{number} 1.0")
        assert reason in told.reason, name
        assert told.remedy
    (second,) = (each for (_, name), each in found.items() if name == "my")
    assert "has the name of an entry point of" in second.reason
    assert "is not written as module:attribute" in found["unwritten 1.0", "unwritten"].reason
    assert capfd.readouterr().out == ""


def test_beside_faulty_entry_points_everything_else_is_as_before(site, capfd):
    own = {name for name in registry.OPTIMIZERS.names() if not name.startswith("my/")}
    assert own == set(registry.OPTIMIZERS.own_names())
    assert registry.OPTIMIZERS.get("adamw/fused").target == "torch.optim:AdamW"
    assert registry.OPTIMIZERS.get("my/sgd").name == "my/sgd"
    machine = Machine(hostname="h", system="s", cpu="c", cores=1, memory_bytes=2**34, python="3", torch="2")
    assert optimizer_runs_here("my/sgd", machine) is None
    assert "ZeroDivisionError" in (optimizer_runs_here("my/raising", machine) or "")
    rows = {row["name"]: row for row in listing.rows("optimizers", lambda: machine)}
    assert rows["my/raising"]["options"] is None
    assert rows["adamw/fused (faulty11 1.0)"]["package"] == "faulty11 1.0"
    assert "runs" in rows["adamw/fused"]
    assert capfd.readouterr().out == ""


def test_what_was_sound_is_not_imported_again_until_its_file_changes(tmp_path, monkeypatch):
    folder, seen = tmp_path / "site", tmp_path / "seen"
    distribution(folder, "sound", "[optbench.optimizers]\nmine = once:OPTIMIZERS\n")
    (folder / "once.py").write_text(f"open({str(seen)!r}, 'a').write('x')\nOPTIMIZERS = {{1: 2}}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("OPTBENCH_CACHE", str(tmp_path / "cache"))
    points = tuple(entry_points.find("optimizers", {}).sound.values())
    for _ in range(2):
        entry_points.unusable.cache_clear()
        assert entry_points.unusable(points, tuple(sys.path)) == ()
    assert seen.read_text() == "x"
    (folder / "once.py").write_text("raise RuntimeError('broken since')")
    entry_points.unusable.cache_clear()
    (told,) = entry_points.unusable(points, tuple(sys.path))
    assert "broken since" in told.reason
