import io
import os
import subprocess
import sys
import time

import psutil
import pytest
from rich.console import Console

from harness import doctor, gauges, links, remedies
from harness.doctor import Doctor, Noise, Process, advice, examine, render
from harness.inspection import constructors
from harness.machine import Accelerator, Machine
from harness.registry import OPTIMIZERS

QUIET = Noise(steal_ratio=0.0, load_average=0.1, timer_resolution_s=5e-8, jitter_ratio=1.05, processes=())


GPU = Accelerator(index=0, type="cuda", name="H100", memory_bytes=80 << 30, capability="9.0")


def a_machine(**fields):
    return Machine(
        **{
            "hostname": "node-1",
            "system": "Linux 6.8 x86_64",
            "cpu": "AMD EPYC",
            "cores": 2,
            "memory_bytes": 8 << 30,
            "python": "3.12.4",
            "torch": "2.9.0+cpu",
            "compilers": {"c++": "c++ (Debian 12.2.0-14) 12.2.0", "ninja": "1.12.1", "nvcc": None},
            "packages": {"torch": "2.9.0+cpu", "deepspeed": "0.19.8", "apex": None}
            | dict.fromkeys(remedies.THIRD_PARTY, "1.0"),
            **fields,
        }
    )


@pytest.fixture(scope="module")
def examined():
    known = constructors(
        ["torch.optim:AdamW", "torch.optim:SGD", "torch.optim:SparseAdam", "torch.optim:LBFGS"], {}
    )
    return examine(a_machine(constructors=known))


def printed(found):
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(render(found))
    return console.file.getvalue()


def test_an_examination_is_json_that_reads_back(examined):
    assert Doctor.model_validate_json(examined.model_dump_json()) == examined


def test_what_runs_is_asked_of_the_registries(examined):
    parts = {part.name: part for part in examined.optimizers}
    assert parts.keys() == set(OPTIMIZERS.names())
    assert parts["adamw/forloop"].runs
    assert parts["sparseadam/forloop"].runs  # with a workload that has sparse gradients
    assert not parts["adamw/apex"].runs
    assert "github.com/NVIDIA/apex" in parts["adamw/apex"].reason
    assert {"single", "ddp"} <= {part.name for part in examined.strategies if part.runs}


def test_measured_values_are_plausible(examined):
    assert 1e8 < examined.memory_bandwidth_bytes_per_s < 1e13
    assert 0 < examined.noise.timer_resolution_s < 1e-3
    assert examined.noise.jitter_ratio >= 1
    assert examined.cores_usable == 2
    assert examined.cores_present == os.cpu_count()


def test_collectives_are_timed_between_two_ranks(examined):
    found = examined.links
    assert (found.ranks, found.device, found.backend, found.reason) == (2, "cpu", "gloo", None)
    assert {rate.collective for rate in found.rates} == set(links.COLLECTIVES)
    for rate in found.rates:
        assert rate.algorithm_bandwidth_bytes_per_s == pytest.approx(rate.message_bytes / rate.time_s)
        share = rate.bus_bandwidth_bytes_per_s / rate.algorithm_bandwidth_bytes_per_s
        assert share == pytest.approx(1 if rate.collective == "all_reduce" else 0.5)  # nccl-tests, N = 2
        assert 1e3 < rate.bus_bandwidth_bytes_per_s < 1e12
    by_size = [rate.bus_bandwidth_bytes_per_s for rate in found.rates if rate.collective == "all_reduce"]
    assert max(by_size) > 10 * by_size[0]  # 1 KiB is all latency


def test_a_world_that_cannot_start_is_told_with_its_reason():
    broken = {**os.environ, "GLOO_SOCKET_IFNAME": "no-such-interface"}
    found = links.measure(a_machine(), base=broken)
    assert found.rates == ()
    assert "no-such-interface" in found.reason
    assert links.measure(a_machine(torch=None)).reason == "torch is missing: pip install torch"
    assert "not measured: one accelerator" in printed_links(links.measure(a_machine(accelerators=(GPU,))))


def test_a_world_that_hangs_is_ended_at_its_limit():
    before = set(psutil.Process().children(recursive=True))
    assert "no rank began within 1 s" in links.measure(a_machine(), limit_s=1.0).reason
    assert set(psutil.Process().children(recursive=True)) <= before


def printed_links(found):
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    for part in doctor._links_parts(found):
        console.print(part)
    return console.file.getvalue()


def test_people_read_it_in_80_columns_without_colour(examined):
    text = printed(examined)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    for word in ("node-1", "2.9.0+cpu", "measured now", "bus bandwidth over gloo", "Cannot run", "adamw"):
        assert word in text


def test_a_quiet_machine_gets_no_advice(examined):
    assert list(advice(QUIET, cores=8)) == []
    calm = examined.model_copy(update={"noise": QUIET, "advice": ()})
    assert "Quiet enough to measure." in printed(calm)


def test_each_kind_of_noise_is_named_with_a_remedy():
    noise = Noise(
        steal_ratio=0.25,
        load_average=9.0,
        timer_resolution_s=5e-8,
        jitter_ratio=4.0,
        processes=(
            Process(pid=7, name="ffmpeg", cores=1.5, stuck=False),
            Process(pid=8, name="nfs-client", cores=0.0, stuck=True),
        ),
    )
    lines = list(advice(noise, cores=2))
    assert lines[0].startswith("25% of CPU time is stolen")
    assert "1.5 of 2 cores (ffmpeg" in lines[1]
    assert "nfs-client (8)" in lines[2]
    assert "4.0 times its median" in lines[3]


def test_names_of_processes_are_printed_as_they_are(examined):
    process = Process(pid=7, name="[red]markup[/nonsense]", cores=1.0, stuck=False)
    noisy = examined.model_copy(update={"noise": QUIET.model_copy(update={"processes": (process,)})})
    assert "[red]markup[/nonsense] (7)" in printed(noisy)


def test_a_machine_that_has_everything_misses_nothing(tmp_path):
    assert list(remedies.missing(a_machine(), tmp_path)) == []


@pytest.mark.parametrize(
    ("fields", "part", "remedy"),
    [
        ({"torch": None, "torch_build": {"error": "ImportError: libc"}}, "torch", "pip install torch"),
        ({"compilers": {"c++": None, "ninja": "1.12"}}, "C++ compiler", "g++"),
        ({"compilers": {"c++": "12", "ninja": None}}, "ninja", "pip install ninja"),
        ({"packages": {"deepspeed": None}}, "DeepSpeed", "pip install -e '.[deepspeed]'"),
        (
            {"packages": dict.fromkeys(("torchao", "heavyball"), "1.0")},
            "bitsandbytes, pytorch-optimizer, schedulefree",
            "pip install -e '.[third-party]'",
        ),
    ],
)
def test_each_missing_part_comes_with_its_remedy(tmp_path, fields, part, remedy):
    found = {each.part: each for each in remedies.missing(a_machine(**fields), tmp_path)}
    assert remedy in found[part].remedy


def test_a_missing_git_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [each.part for each in remedies.missing(a_machine(), tmp_path)] == ["git"]


def test_a_gpu_that_torch_cannot_see_is_told(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    (found,) = remedies.missing(a_machine(torch_build={"cuda": None}), tmp_path)
    assert "built without CUDA" in found.why


def test_a_cuda_machine_is_asked_for_what_gpus_need(tmp_path):
    gpu = Accelerator(index=0, type="cuda", name="NVIDIA H200", memory_bytes=141 << 30, capability="9.0")
    parts = {
        each.part for each in remedies.missing(a_machine(accelerators=(gpu,), torch_build={"hip": None}), tmp_path)
    }
    assert {"NVIDIA Apex", "nvcc"} <= parts
    assert "NVML" in parts or os.path.exists("/proc/driver/nvidia")  # noqa: PTH110  # a plain question


def test_a_process_that_takes_a_core_is_seen():
    # a grandchild, whose parent has ended: nobody's child that could be ours
    busy = subprocess.run([sys.executable, "-c", SPAWN], stdout=subprocess.PIPE, text=True, check=True)
    pid = int(busy.stdout)
    try:
        company = gauges.Company()
        time.sleep(0.5)
        assert pid in {each.pid for each in company.busy(threshold=0.02)}
    finally:
        os.kill(pid, 9)


SPAWN = """
import subprocess, sys
loop = "import time\\nend = time.time() + 20\\nwhile time.time() < end: pass"
print(subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.DEVNULL, start_new_session=True).pid)
"""


def test_the_last_cache_is_the_largest_of_the_first_core(tmp_path):
    for index, text in enumerate(("32K", "1024K", "33M", "garbage")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{text}\n")
    assert gauges.last_cache_bytes(tmp_path) == 33 << 20


def test_bandwidth_is_unknown_where_memory_is_too_small_to_leave_the_caches():
    assert gauges.memory_bandwidth(threads=1, memory_bytes=64 << 20) is None


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("c++ (Ubuntu 13.2.0-23ubuntu4) 13.2.0", "13.2.0"),
        ("Apple clang version 15.0.0 (clang-1500.3.9.4)", "15.0.0"),
        ("Cuda compilation tools, release 13.0, V13.0.88", "13.0"),
        ("1.13.2.git.kitware.jobserver-pipe-1", "1.13.2"),
        ("2.9.0+cpu", "2.9.0+cpu"),
        ("unknown", "unknown"),
    ],
)
def test_versions_are_shown_by_number(said, number):
    assert doctor._short(said) == number
