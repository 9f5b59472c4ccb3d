"""Control groups, cores and memory, read from made-up trees of /proc and /sys."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import cgroup, system
from harness.cgroup import Throttling

V2 = {
    "proc/self/cgroup": "0::/user.slice/job\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 5\n",
    "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
    "sys/fs/cgroup/user.slice/memory.max": "8589934592\n",
    "sys/fs/cgroup/user.slice/cpu.stat": "nr_periods 9\nnr_throttled 1\nthrottled_usec 250000\n",
    "sys/fs/cgroup/user.slice/job/cpu.max": "350000 100000\n",
    "sys/fs/cgroup/user.slice/job/memory.max": "max\n",
    "sys/fs/cgroup/user.slice/job/cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_usec 1500000\n",
}
V1 = {
    "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n",
    "proc/self/mountinfo": (
        "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    ),
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 3\nnr_throttled 2\nthrottled_time 500000000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n",
}


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_version_2_takes_the_tightest_limit_of_the_group_and_those_above(tmp_path):
    root = tree(tmp_path, V2)
    assert cgroup.cpu_quota(root) == 3.5
    assert cgroup.memory_limit_bytes(root) == 8 << 30
    assert cgroup.throttling(root) == Throttling(periods=5, seconds=1.75)


def test_version_1_in_a_container_that_sees_the_hosts_path(tmp_path):
    root = tree(tmp_path, V1)
    assert cgroup.cpu_quota(root) == 1.5
    assert cgroup.memory_limit_bytes(root) == 1 << 30
    assert cgroup.throttling(root) == Throttling(periods=2, seconds=0.5)


def test_version_1_without_limits(tmp_path):
    files = {
        **V1,
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    root = tree(tmp_path, files)
    assert cgroup.cpu_quota(root) is None
    assert cgroup.memory_limit_bytes(root) is None


def test_a_group_outside_of_the_namespace_is_read_at_the_mount(tmp_path):
    files = {**V2, "proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}
    assert cgroup.cpu_quota(tree(tmp_path, files)) == 1.0


def test_a_system_without_control_groups_limits_nothing(tmp_path):
    assert cgroup.folders("cpu", tmp_path) == []
    assert cgroup.cpu_quota(tmp_path) is None
    assert cgroup.memory_limit_bytes(tmp_path) is None
    assert cgroup.throttling(tmp_path) is None


@given(mountinfo=st.text(max_size=200), group=st.text(max_size=80), maximum=st.text(max_size=30))
def test_whatever_the_files_hold_nothing_raises(tmp_path_factory, mountinfo, group, maximum):
    root = tree(
        tmp_path_factory.mktemp("garbled"),
        {
            "proc/self/cgroup": f"0::/\n{group}".encode("utf-8", "replace").decode(),
            "proc/self/mountinfo": V2["proc/self/mountinfo"] + mountinfo.encode("utf-8", "replace").decode(),
            "sys/fs/cgroup/cpu.max": maximum.encode("utf-8", "replace").decode(),
            "sys/fs/cgroup/memory.max": maximum.encode("utf-8", "replace").decode(),
        },
    )
    quota = cgroup.cpu_quota(root)
    assert quota is None or quota >= 0
    cgroup.memory_limit_bytes(root)


@pytest.mark.parametrize(
    ("quota", "affinity", "cores"),
    [("max 100000", 8, 8), ("350000 100000", 8, 3), ("350000 100000", 2, 2), ("50000 100000", 8, 1)],
)
def test_usable_cores_are_the_affinity_or_the_quota_rounded_down_and_one_at_least(
    tmp_path, quota, affinity, cores
):
    root = tree(tmp_path, {**V2, "sys/fs/cgroup/user.slice/job/cpu.max": f"{quota}\n"})
    assert system.cores_usable(root, affinity=affinity) == cores


@pytest.mark.parametrize(("physical", "usable"), [(4 << 30, 4 << 30), (64 << 30, 8 << 30)])
def test_usable_memory_is_the_machines_or_the_groups_limit(tmp_path, physical, usable):
    assert system.memory_usable(tree(tmp_path, V2), physical=physical) == usable


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor\t: 0\nmodel name\t: AMD  EPYC 9654\nflags\t: x\n", "AMD EPYC 9654"),
        ("processor : 0\nBogoMIPS : 50\n\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
    ],
)
def test_the_processors_name_comes_from_the_kernel(tmp_path, text, model):
    assert system.cpu_model(tree(tmp_path, {"proc/cpuinfo": text})) == model


def test_without_a_name_the_architecture_must_do(tmp_path):
    assert system.cpu_model(tmp_path)


def test_a_compiler_is_asked_for_its_version(tmp_path, monkeypatch):
    for name, text in {
        "c++": "c++ (Made up) 14.1.0",
        "ninja": "1.12",
        "nvcc": "nvcc: NVIDIA\\nrelease 12.8, V1",
    }.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\nprintf '{text}\\n'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert system.compilers() == {"c++": "c++ (Made up) 14.1.0", "ninja": "1.12", "nvcc": "release 12.8, V1"}


def test_a_compiler_that_fails_counts_as_none(tmp_path, monkeypatch):
    program = tmp_path / "my-c++"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    assert system.compilers()["c++"] is None


def test_packages_carry_versions_and_absent_ones_none():
    found = system.packages()
    assert found["pydantic"].startswith("2.")
    assert found["apex"] is None or isinstance(found["apex"], str)
    assert Path(system.program("sh")).exists()
