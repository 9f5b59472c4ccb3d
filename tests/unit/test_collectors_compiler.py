import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from collector_runs import train

from harness.collectors.compiler import Compiler, Stopwatch, is_recompile
from harness.interfaces import Phase


def test_the_first_optimizer_call_is_timed_and_nothing_is_called_compiled():
    found = train(Compiler())
    assert found["optimizer_first_call_s"] > 0
    assert found["compile_time_s"] is None
    assert found["graphs"] in {0, None}
    assert found["compile_cache_warm"] is None


PROGRAM = """
import json, sys
sys.path.insert(0, {folder!r})
import torch
from harness.collectors.compiler import Compiler
from harness.interfaces import Phase

collector = Compiler()
collector.start(None)
assert "torch._inductor" not in sys.modules

@torch.compile(backend={backend!r})
def step(x, k):
    y = x * k
    {between}
    return y + 1

values = {values}
for number, k in enumerate(values):
    collector.mark(Phase.DATA, number)
    collector.mark(Phase.OPTIMIZER, number)
    step(torch.ones(4), k)
    collector.mark(Phase.END, number)
    list(collector.turn())
print(json.dumps({{reading.info.name: reading.value for reading in collector.stop()}}))
"""


def compiled(tmp_path, backend="eager", between="pass", values="[2.0] * 4"):
    program = PROGRAM.format(folder=str(Path(__file__).parent), backend=backend, between=between, values=values)
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(program)],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_graph_is_counted_with_the_time_that_compiling_took(tmp_path):
    found = compiled(tmp_path)
    assert (found["graphs"], found["graph_breaks"], found["recompiles"]) == (1, 0, 0)
    assert 0 < found["compile_time_s"] < found["optimizer_first_call_s"]


def test_breaks_and_recompiles_are_counted(tmp_path):
    found = compiled(tmp_path, between="print(end='')", values="[2.0, 3.0, 4.0, 5.0]")
    assert found["graph_breaks"] >= 1
    assert found["graphs"] >= 3
    assert found["recompiles"] == 1  # the float becomes a dynamic input at its second value


@pytest.mark.slow
def test_a_cold_cache_misses_and_a_warm_one_hits(tmp_path):
    cold, warm = (compiled(tmp_path, backend="inductor") for _ in range(2))
    assert (cold["compile_cache_hits"], cold["compile_cache_misses"], cold["compile_cache_warm"]) == (0, 1, 0)
    assert (warm["compile_cache_hits"], warm["compile_cache_misses"], warm["compile_cache_warm"]) == (1, 0, 1)


def test_counters_are_unknown_where_nothing_imported_the_compiler():
    program = """
import sys
from harness.collectors.compiler import Compiler
collector = Compiler()
collector.start(None)
found = {reading.info.name: reading.value for reading in [*collector.turn(), *collector.stop()]}
assert set(found.values()) == {None}, found
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0


def test_a_step_without_phases_is_timed_as_a_whole(monkeypatch):
    clock = iter([0.0, 5.0, 5.0, 6.0, 6.0, 8.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    for _ in range(3):
        watch.mark(time.perf_counter(), begins=True, ends_step=False)
        watch.mark(time.perf_counter(), begins=False, ends_step=True)
    assert watch.durations == [5.0, 1.0, 2.0]


def test_parts_of_a_phase_in_one_step_add_up(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 6.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    for begins, ends in ((True, False), (False, False), (True, False), (False, True)):
        watch.mark(time.perf_counter(), begins=begins, ends_step=ends)
    assert watch.durations == [3.0]


def test_a_step_that_has_no_phases_has_no_first_optimizer_call():
    collector = Compiler()
    collector.start(None)
    for step in range(3):
        for phase in (Phase.DATA, Phase.WORK, Phase.END):
            collector.mark(phase, step)
    found = {reading.info.name: reading.value for reading in collector.stop()}
    assert found["optimizer_first_call_s"] is None


@pytest.mark.parametrize(
    ("compilation", "again"),
    [("0/0", False), ("3/0", False), ("3/1", True), ("!0/2/0", False), ("0/0_1", False), ("1/2_1", True)],
)
def test_only_a_frame_compiled_before_is_recompiled(compilation, again):
    assert is_recompile(compilation) is again
