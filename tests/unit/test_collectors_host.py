import resource
import time

import pytest
from collector_runs import train

from harness.collectors.host import Host
from harness.system import CpuTimes, cpu_times, shares


def test_a_run_counts_its_own_cpu_time_switches_and_faults():
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = train(Host())
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert 0 < found["cpu_user_time_s"] <= after.ru_utime - before.ru_utime
    assert 0 <= found["page_faults_minor"] <= after.ru_minflt - before.ru_minflt
    for name in ("context_switches_voluntary", "context_switches_involuntary", "page_faults_major"):
        assert found[name] >= 0


def test_the_node_is_described_once_a_turn_by_its_first_rank():
    found = train(Host(), steps=4, turn_steps=2)
    steps = [step for step, _ in found["threads"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == 4
    assert [step for step, _ in found["node_load_average"]] == steps
    for name in ("node_cpu_busy_ratio", "node_steal_ratio"):
        assert all(value is None or 0 <= value <= 1 for _, value in found[name])
    assert {"cgroup_throttled_periods", "cgroup_throttled_time_s", "cgroup_quota_cores"} <= found.keys()


def test_other_ranks_of_the_node_speak_for_themselves_only():
    found = train(Host(), local_rank=1)
    assert "cpu_user_time_s" in found
    assert not {name for name in found if name.startswith(("node_", "cgroup_"))}


def test_a_mark_reads_nothing():
    host = Host()
    before = dict(vars(host))
    assert vars(host) == before


def test_threads_are_counted():
    assert all(value >= 1 for _, value in train(Host())["threads"])


def test_shares_of_cpu_time_are_differences():
    before, after = CpuTimes(total=100, idle=40, steal=5), CpuTimes(total=120, idle=45, steal=10)
    assert shares(before, after) == (pytest.approx(0.5), pytest.approx(0.25))


def test_shares_stay_within_bounds_when_a_counter_steps_back():
    assert shares(CpuTimes(100, 50, 5), CpuTimes(101, 49, 4.9)) == (1.0, 0.0)


@pytest.mark.parametrize("after", [None, CpuTimes(100, 50, 5)])
def test_shares_are_unknown_where_no_time_passed(after):
    assert shares(CpuTimes(100, 50, 5), after) == (None, None)


def test_the_nodes_cpu_times_grow():
    before = cpu_times()
    time.sleep(0.05)
    after = cpu_times()
    assert after.total > before.total
