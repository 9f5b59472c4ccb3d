"""The real pynvml loads a library compiled here, tests/fake_nvml, in place of the driver's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from collector_runs import train

from harness.collectors.nvml import NVML, trapezoid

SOURCE = Path(__file__).parents[1] / "fake_nvml" / "nvml.c"

PROGRAM = """
import json, sys
from types import SimpleNamespace
import torch
from harness.collectors.nvml import NVML
from harness.interfaces import Observed, World

device = SimpleNamespace(uuid=sys.argv[1], pci_domain_id=0, pci_bus_id=int(sys.argv[2]), pci_device_id=0)
torch.cuda.get_device_properties = lambda asked: device  # no GPU here: torch says what it would say
clock = iter(range(100))
stretch = float(sys.argv[3])
collector = NVML(clock=lambda: stretch * next(clock))
world = World(rank=0, size=1, local_rank=0, device=torch.device("cuda", 0), backend=None)
collector.start(Observed(spec=None, workload=None, engine=None, world=world))
readings = []
for step in range(4):
    collector.observe(step, None)
    if step % 2:
        readings += collector.turn()
readings += collector.turn()
readings += collector.stop()
found = {}
for reading in readings:
    if reading.series is None:
        found[reading.info.name] = reading.value
    else:
        found.setdefault(reading.info.name, []).extend(zip(reading.steps, reading.series))
print(json.dumps(found))
"""

FIRST, SECOND = (f"00000000-0000-0000-0000-00000000000{n}" for n in (1, 2))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    words = [
        compiler,
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        folder / "libnvidia-ml.so.1",
        SOURCE,
    ]
    subprocess.run(words, check=True)
    return folder


def observed(folder, uuid=FIRST, bus=0, reading_s=1.0, **variables):
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, uuid, str(bus), str(reading_s)],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


WATCHED = """
import json
from harness.comparison.model import Arm
from harness.spec import RunSpec
from launch.watching import Machine

spec = RunSpec(workload="gpt", optimizer="adamw/fused", device="accelerator", world_size=1)
with Machine([Arm(name="a", spec=spec)]) as machine:
    print(json.dumps([machine.clock_hz(), machine.held_down()]))
"""


def watched(folder, uuid, **variables):
    done = subprocess.run(
        [sys.executable, "-P", "-c", WATCHED],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), "CUDA_VISIBLE_DEVICES": f"GPU-{uuid}", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def values(series):
    return [value for _, value in series]


def test_a_gpu_that_answers_gives_every_metric_in_si_units(library):
    found = observed(library)
    assert found["energy_joules"] == 5.0  # the counter's difference, in joules
    assert [step for step, _ in found["gpu_power_watts"]] == [2, 4]
    assert values(found["gpu_power_watts"]) == [300.0, 100.0]
    assert values(found["gpu_sm_clock_hz"]) == [1.98e9] * 2
    assert values(found["gpu_memory_clock_hz"]) == [2.619e9] * 2
    assert values(found["gpu_temperature_celsius"]) == [41] * 2
    assert values(found["gpu_memory_used_bytes"]) == [3 << 30] * 2
    assert values(found["gpu_utilisation_ratio"]) == [0.75] * 2
    assert values(found["gpu_throttle_sw_power_cap_ratio"]) == [1, 1]
    assert values(found["gpu_throttle_sw_thermal_ratio"]) == [1, 1]
    assert values(found["gpu_throttle_hw_slowdown_ratio"]) == [0, 0]


def test_a_gpu_that_refuses_some_questions_loses_those_metrics_only(library):
    found = observed(library, SECOND)
    for name in (
        "gpu_sm_clock_hz",
        "gpu_memory_clock_hz",
        "gpu_other_processes",
        "gpu_throttle_hw_slowdown_ratio",
    ):
        assert values(found[name]) == [None, None], name
    assert values(found["gpu_temperature_celsius"]) == [41, 41]
    assert values(found["gpu_memory_used_bytes"]) == [3 << 30] * 2


def test_without_an_energy_counter_power_is_integrated(library):
    # a second between readings of 100, 300, 100 and 300 W: at the start, at two turns, at the end
    assert observed(library, SECOND)["energy_joules"] == pytest.approx(600.0)


@pytest.mark.parametrize("uuid", [FIRST, SECOND])
def test_energy_of_a_run_shorter_than_the_counters_steps_allow_is_unknown(library, uuid):
    assert observed(library, uuid, reading_s=0.1)["energy_joules"] is None
    assert observed(library, uuid, reading_s=0.9)["energy_joules"] is not None


def test_an_older_driver_tells_the_reasons_under_their_old_name(library):
    found = observed(library, SECOND, FAKE_NVML_OLD="1")
    assert values(found["gpu_throttle_hw_slowdown_ratio"]) == [1, 1]
    assert values(found["gpu_throttle_sw_power_cap_ratio"]) == [0, 0]


def test_a_comparison_watches_the_clocks_of_the_gpus_that_its_ranks_see(library):
    clock, _ = watched(library, FIRST)
    assert clock is not None
    assert clock > 1e8
    assert watched(library, SECOND, FAKE_NVML_OLD="1")[1] == ["hw_slowdown"]
    assert watched(library, "nowhere")[1] == []


def test_a_device_that_torch_gives_no_known_uuid_is_found_by_its_bus(library):
    assert values(observed(library, "unknown", bus=10)["gpu_sm_clock_hz"]) == [1.98e9] * 2


def test_processes_beside_ours_are_counted(library):
    assert values(observed(library)["gpu_other_processes"]) == [
        2,
        2,
    ]  # ours is one of three, under a host's number


@pytest.mark.parametrize("case", ["no library", "no driver", "unknown device"])
def test_without_nvml_every_metric_is_unknown_and_nothing_raises(library, tmp_path, case):
    found = {
        "no library": lambda: observed(tmp_path),
        "no driver": lambda: observed(library, FAKE_NVML_NO_DRIVER="1"),
        "unknown device": lambda: observed(library, "unknown", bus=99),
    }[case]()
    assert {"energy_joules", "gpu_power_watts", "gpu_temperature_celsius"} <= found.keys()
    assert set(found.values()) == {None}


def test_a_run_on_a_cpu_reports_nothing():
    assert train(NVML()) == {}


def test_the_trapezoidal_rule_is_exact_for_straight_lines():
    assert trapezoid([(0.0, 0.0), (1.0, 2.0), (3.0, 6.0)]) == 9.0
