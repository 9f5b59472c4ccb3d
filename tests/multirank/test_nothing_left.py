"""What a run leaves on the machine: its folder in the store, and nothing else."""

from pathlib import Path

import psutil
import pytest

from harness.registry import STRATEGIES, strategy

pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]

SHARED_MEMORY = Path("/dev/shm")


def of_each_kind():
    """Return the last strategy of each module: of DeepSpeed's the one with most parts."""
    ways = {type(strategy(name)).__module__: name for name in STRATEGIES.names() if not strategy(name).one_rank}
    return sorted(ways.values())


def processes():
    return {each.pid: " ".join(each.cmdline()) for each in psutil.process_iter() if _ours(each)}


def _ours(process):
    try:
        return any("harness" in word or "torch.distributed" in word for word in process.cmdline())
    except psutil.Error:
        return False


def listening():
    return {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid}


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system shows its shared memory nowhere")
def test_no_process_shared_memory_port_or_temporary_folder_is_left_behind(optbench, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = (set(processes()), set(SHARED_MEMORY.iterdir()), listening())
    words = [word for name in of_each_kind() for word in ("--strategy", name)]
    ran = optbench.run(
        *("--workload", "linear_regression", "--optimizer", "adamw/foreach", "--nproc", "2", "--steps", "4"),
        *words,
        "--json",
        env={"TMPDIR": str(temporary)},
        timeout=600,
    )
    records = ran.json["runs"]
    assert len(records) == len(of_each_kind())
    assert {each["outcome"] for each in records} <= {"completed", "unsupported"}, records
    left = {pid: words for pid, words in processes().items() if pid not in before[0]}
    assert left == {}
    assert set(SHARED_MEMORY.iterdir()) - before[1] == set()
    assert listening() - before[2] == set()
    # torch's cache of compiled code is no leftover: the next run reads it.
    assert [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")] == []
