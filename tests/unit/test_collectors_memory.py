import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from collector_runs import train
from hypothesis import given
from hypothesis import strategies as st

from harness.collectors import memory
from harness.collectors.memory import Memory, occupied, peak_resident_bytes, resident_bytes
from harness.interfaces import Observed, Phase, World
from harness.tracing.storages import union


def test_the_bytes_of_a_line_under_adamw_are_exact():
    found = train(Memory())
    assert found["parameter_bytes"] == 2 * 4
    assert found["gradient_bytes"] == 2 * 4
    assert found["optimizer_state_bytes"] == 2 * (4 + 4 + 4)  # two moments, and a step count a parameter
    assert found["master_weight_bytes"] == 0
    assert found["buffer_bytes"] == 0


def test_state_is_none_at_all_for_plain_sgd():
    assert train(Memory(), optimizer="sgd/foreach")["optimizer_state_bytes"] == 0


def test_an_allocators_peaks_are_unknown_on_a_cpu():
    found = train(Memory())
    assert found["peak_allocated_bytes"] is None
    assert found["peak_reserved_bytes"] is None


class Allocator:
    """Counts as an accelerator's caching allocator does."""

    def __init__(self):
        self.peak = 0

    def uses(self, size):
        self.peak = max(self.peak, size)

    def ask(self, what, device):
        if what == "reset_peak_memory_stats":
            self.peak = 0
            return None
        return self.peak


def test_the_allocators_peak_is_that_of_measured_steps_not_of_what_comes_between_turns(monkeypatch):
    allocator = Allocator()
    monkeypatch.setattr(memory, "_ask", allocator.ask)
    world = World(0, 1, 0, torch.device("cuda", 0), "nccl")
    engine = SimpleNamespace(tensors=lambda: ())
    spec = SimpleNamespace(warmup_steps=1)
    collector = Memory()
    allocator.uses(9000)  # the model is built
    collector.start(Observed(spec=spec, workload=None, engine=engine, world=world))
    for step, (compiling, training, checking) in enumerate([(700, 100, 0), (0, 120, 600), (0, 110, 800)]):
        for phase in (Phase.DATA, Phase.FORWARD, Phase.OPTIMIZER, Phase.END):
            collector.mark(phase, step)
            allocator.uses(max(compiling, training) if phase is Phase.OPTIMIZER else 50)
        collector.observe(step, None)
        list(collector.turn())
        allocator.uses(checking)  # the run's own checks, an evaluation
    list(collector.turn())  # after the last evaluation
    found = {reading.info.name: reading.value for reading in collector.stop()}
    assert found["peak_allocated_bytes"] == found["peak_reserved_bytes"] == 120


def test_the_peak_of_a_run_that_only_warms_up_is_the_warm_ups(monkeypatch):
    allocator = Allocator()
    monkeypatch.setattr(memory, "_ask", allocator.ask)
    world = World(0, 1, 0, torch.device("cuda", 0), "nccl")
    engine, spec = SimpleNamespace(tensors=lambda: ()), SimpleNamespace(warmup_steps=1)
    collector = Memory()
    collector.start(Observed(spec=spec, workload=None, engine=engine, world=world))
    collector.mark(Phase.DATA, 0)
    allocator.uses(700)
    collector.observe(0, None)
    list(collector.turn())
    assert {r.info.name: r.value for r in collector.stop()}["peak_allocated_bytes"] == 700


def test_memory_that_the_end_of_a_run_takes_is_not_its_resident_peak(monkeypatch):
    """The bandwidth check copies four last-level caches once the last turn is over."""
    peaks = iter([10, 20, 30])
    monkeypatch.setattr(memory, "peak_resident_bytes", lambda: next(peaks))
    assert train(Memory(), steps=3, turn_steps=1, warmup_steps=1)["rss_peak_bytes"] == 30


def test_resident_memory_is_reported_once_a_turn_and_its_peak_is_no_less():
    found = train(Memory())
    # turns end at 1 (warm-up, evaluation), and so on up to 6; each is reported once, the repeated last one not
    steps, values = zip(*found["rss_bytes"], strict=True)
    assert steps == tuple(sorted(set(steps)))
    assert steps[-1] == 6
    assert found["rss_peak_bytes"] >= max(values) > 10 << 20


class Leak(Memory):
    """Holds 20 MB more at each turn: what a leak looks like from outside."""

    def turn(self):
        yield from super().turn()
        self.__dict__.setdefault("held", []).append(bytearray(b"x" * (20 << 20)))


@pytest.mark.alone
def test_growth_since_the_warm_up_shows_a_leak():
    assert train(Leak(), steps=4, turn_steps=1)["rss_growth_bytes"] > 40 << 20


def test_growth_is_unknown_where_nothing_came_after_the_warm_up():
    assert train(Memory(), steps=1)["rss_growth_bytes"] is None


def test_views_and_tied_weights_are_counted_once():
    flat = torch.zeros(100)
    assert occupied([("parameters", flat[:60]), ("parameters", flat[40:]), ("parameters", flat)]) == {
        "parameters": 400, "gradients": 0, "master": 0, "state": 0, "buffers": 0, "communication": 0,
    }  # fmt: skip


def test_memory_that_two_categories_share_counts_for_the_first():
    flat = torch.zeros(100)
    held = occupied([("master", flat), ("parameters", flat[:30])])
    assert (held["parameters"], held["master"]) == (120, 280)


def test_a_sparse_gradient_counts_indices_and_values():
    indices, values = torch.tensor([[1, 5, 7]]), torch.ones(3, 4)
    sparse = torch.sparse_coo_tensor(indices, values, (10, 4), check_invariants=False)
    assert occupied([("gradients", sparse)])["gradients"] == 3 * 8 + 3 * 4 * 4


def test_a_dtensor_counts_its_local_shard():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

        mesh = init_device_mesh("cpu", (1,))
        sharded = distribute_tensor(torch.zeros(8, 4), mesh, [Shard(0)])
        assert occupied([("parameters", sharded)])["parameters"] == 8 * 4 * 4
    finally:
        torch.distributed.destroy_process_group()


def test_tensors_without_memory_count_nothing():
    freed = torch.zeros(8)
    freed.untyped_storage().resize_(0)
    tensors = [torch.empty(5, device="meta"), torch.empty(0), freed]
    assert occupied([("state", tensor) for tensor in tensors])["state"] == 0


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))))
def test_a_union_covers_exactly_the_addresses_of_its_spans(spans):
    spans = [(first, first + length) for first, length in spans]
    merged = union(spans)
    assert {a for first, end in merged for a in range(first, end)} == {a for f, e in spans for a in range(f, e)}
    assert all(end < first for (_, end), (first, _) in itertools.pairwise(merged))


def test_peak_resident_memory_comes_from_the_kernels_high_water_mark(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t   2048 kB\nVmRSS:\t 1 kB\n")
    assert peak_resident_bytes(status) == 2048 * 1024


@pytest.mark.parametrize("text", ["Name:\tpython\n", "VmHWM:\n", "VmHWM:\tmany kB\n", None])
def test_without_a_high_water_mark_getrusage_is_asked(tmp_path, text):
    status = tmp_path / "status"
    if text is not None:
        status.write_text(text)
    assert peak_resident_bytes(status) > 10 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_resident_memory_is_what_the_kernel_says():
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmRSS"))
    assert resident_bytes() == pytest.approx(int(line.split()[1]) * 1024, rel=0.05)
