"""Counts and drift under real torchrun with two ranks: every planted change named, none invented."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.counts.comparing import compare_counts
from harness.counts.drift import enough, findings
from harness.counts.model import Job
from harness.errors import OptbenchError
from harness.spec import RunSpec
from launch.counting import measure, measured

OUTSIDE = Path(__file__).parent / "outside"
REPEATS, DAILY_REPEATS = 20, 6
DRIFT_STEPS = 72

PLAIN = ("planted:Plain", "ddp", "linear_regression")
COMPILED = ("planted:Compiled", "ddp", "linear_regression")


def optimizer(name: str) -> tuple[str, str, str]:
    return f"planted:{name}", "ddp", "linear_regression"


def strategy(name: str) -> tuple[str, str, str]:
    return "planted:Plain", f"planted:{name}", "linear_regression"


def workload(name: str) -> tuple[str, str, str]:
    return "planted:Plain", "ddp", f"planted:{name}"


CHANGES = [
    (optimizer("OneMoreOperator"), ["aten::mul_.Tensor 2 -> 4 a step"]),
    (optimizer("AnotherOperator"), ["aten::sub_.Tensor 0 -> 2 a step", "aten::add_.Tensor 4 -> 2 a step"]),
    (optimizer("AnotherOverload"), ["aten::add_.Tensor 4 -> 6 a step"]),
    (optimizer("EverySecondStep"), ["aten::neg 0 -> 0.5 a step", "aten::abs 0 -> 0.5 a step"]),
    (optimizer("Synchronises"), ["aten::item 0 -> 2 a step"]),
    (optimizer("DoubleState"), ["held: state float64 0 -> 16 B", "held: state float32 8 -> 0 B"]),
    (optimizer("MoreState"), ["held: state float32 8 -> 16 B"]),
    (optimizer("LargerTemporary"), ["bytes allocated by aten::empty.memory_format", "peak of a step"]),
    (optimizer("SmallTemporary"), ["allocations by aten::empty.memory_format 0 -> 2 a step"]),
    (optimizer("OneMoreImport"), ["modules imported from chunked_by_nobody_else 0 -> 1"]),
    (optimizer("OnOneRankOnly"), ["aten::mul_.Tensor 2 -> 4 a step on rank 1"]),
    (strategy("DoubledAllReduce"), ["collective all_reduce float32 1 -> 2 a step"]),
    (strategy("WiderAllReduce"), ["payload of all_reduce float64 0 -> 16 B"]),
    (strategy("Broadcasts"), ["collective broadcast float32 0 -> 1 a step"]),
    (strategy("Gathers"), ["collective all_gather float32 0 -> 1 a step"]),
    (workload("MoreWork"), ["aten::mul.Tensor 0 -> 1 a step"]),
    (workload("InDoubles"), ["aten::_to_copy"]),
    (workload("LargerActivations"), ["aten::cat 0 -> 1 a step", "bytes allocated by aten::cat"]),
    (optimizer("BreaksItsGraph"), ["graph break", "graphs compiled"]),
    (optimizer("Recompiles"), ["recompiles of update 0 -> 2"]),
    (optimizer("OneMoreGraph"), ["graphs compiled graphs 4 -> 5"]),
    (optimizer("NotCompiled"), ["graphs compiled graphs 4 -> 0"]),
]  # fmt: skip

COMPILING = {"BreaksItsGraph", "Recompiles", "OneMoreGraph", "NotCompiled"}

GROWING = [
    ("KeepsATensor", "tensors", "float32 [3, 5]"),
    ("KeepsATensorNowAndThen", "tensors", "float32 [7]"),
    ("KeepsAnObject", "objects", "planted.Note"),
    ("KeepsNumbers", "blocks", ""),
    ("KeepsMemory", "resident memory", ""),
    ("SlowsDown", "step time", ""),
]


def spec(names: tuple[str, str, str]) -> RunSpec:
    return RunSpec(
        optimizer=names[0],
        strategy=names[1],
        workload=names[2],
        lr=0.01,
        world_size=2,
        device="cpu",
        threads=1,
        global_batch=64,
        timeout_s=60.0,
    )


def repeated(times: int) -> list[Job]:
    """Return so many jobs of two kinds, after one of each that only brings in the modules that all share."""
    return [Job(spec=spec(names)) for _ in range(1 + times // 2) for names in (PLAIN, COMPILED)]


def counted(jobs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTBENCH_USER_PATH", str(OUTSIDE))
        return measured(jobs)


def assert_the_same(repeats):
    for first in (0, 1):
        for again in repeats[first::2]:
            assert compare_counts(repeats[first].counts, again.counts) == []


@pytest.fixture(scope="module")
def world():
    """What all jobs of this file counted, in one world."""
    jobs = repeated(DAILY_REPEATS)
    jobs += [Job(spec=spec(names)) for names, _ in CHANGES]
    jobs += [Job(spec=spec(optimizer(name)), drift_steps=DRIFT_STEPS) for name, *_ in [*GROWING, ["WarmsUp"]]]
    rest = iter(counted(jobs)[2:])
    repeats = [next(rest) for _ in range(DAILY_REPEATS)]
    changed = {str(names): next(rest) for names, _ in CHANGES}
    return repeats, changed, {name: next(rest) for name, *_ in [*GROWING, ["WarmsUp"]]}


def test_nothing_is_invented_over_repeats(world):
    assert_the_same(world[0])


@pytest.mark.exhaustive
def test_nothing_is_invented_over_twenty_repeats():
    assert_the_same(counted(repeated(REPEATS))[2:])


@pytest.mark.parametrize(
    ("names", "told"), CHANGES, ids=lambda each: each[0].partition(":")[2] if isinstance(each, tuple) else None
)
def test_a_planted_change_is_named_with_its_count(world, names, told):
    repeats, changed, _ = world
    compiled = names[0].partition(":")[2] in COMPILING
    changes = compare_counts(repeats[1 if compiled else 0].counts, changed[str(names)].counts)
    shown = [str(each) for each in changes]
    for words in told:
        assert any(words in line for line in shown), shown


@pytest.mark.parametrize(("name", "kind", "what"), GROWING)
def test_what_grows_from_step_to_step_is_named(world, name, kind, what):
    drift = world[2][name].drift
    assert enough(drift)
    found = [(each.kind, each.name) for each in findings(drift)]
    assert (kind, what) in found, found


def test_ranks_that_fail_are_told_with_what_they_raised(monkeypatch):
    monkeypatch.setenv("OPTBENCH_USER_PATH", str(OUTSIDE))
    with pytest.raises(OptbenchError, match=r"counting linear_regression planted:Raises .*planted in step 3"):
        measure(spec(optimizer("Raises")))


def test_a_warm_up_allocation_and_a_bounded_store_are_no_drift(world):
    """What the step keeps; a machine that slows down meanwhile is not the step's doing."""
    drift = world[2]["WarmsUp"].drift
    assert enough(drift)
    assert [each for each in findings(drift) if each.kind != "step time"] == []
