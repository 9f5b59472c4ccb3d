"""What the harness costs: ratios measured now, arms alternating. Run python tests/benchmarks/overhead.py."""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HAND_WRITTEN = Path(__file__).with_name("hand_written.py")


def step_arms(workload: str, size: str, turn: int):
    """Return functions: ``turn`` steps of a model in the measured loop, in a bare loop; a turn's end."""
    import torch

    from harness.interfaces import DataShard, Observed, World
    from harness.loop import steps
    from harness.plan import resolve, workload_traits
    from harness.probe import machine
    from harness.registry import COLLECTORS, OPTIMIZERS, WORKLOADS, strategy
    from harness.spec import RunSpec

    torch.set_num_threads(1)
    entry, single = OPTIMIZERS.get("adamw/foreach"), strategy("single")
    spec = RunSpec(workload=workload, size=size, optimizer="adamw/foreach", steps=10**9, warmup_steps=0)
    spec = resolve(spec, workload_traits(workload), entry, single, machine())
    subject = WORKLOADS.get(workload)(size=size)
    world = World(0, 1, 0, torch.device("cpu"), None)
    engine = single.start(subject, entry, spec, world)
    model, optimizer = engine._module, engine._optimizer
    shard = DataShard(0, 1, spec.global_batch, 1, 0)
    collectors = [COLLECTORS.get(name)() for name in spec.collectors]
    for collector in collectors:
        collector.start(Observed(spec, subject.traits, engine, world))
    stream = steps(engine, subject.batches(shard), spec, world.device, collectors)
    batches = subject.batches(shard)

    def harness() -> None:
        for _ in itertools.islice(stream, turn):
            pass

    def turn_end() -> None:
        for collector in collectors:
            list(collector.turn())

    def bare() -> None:
        for _ in range(turn):
            batch = next(batches)
            optimizer.zero_grad(set_to_none=True)
            loss = subject.loss(model, batch)
            loss.backward()
            optimizer.step()

    return harness, bare, turn_end


def measured_loop(workload: str = "cnn", size: str = "small", turns: int = 200, turn: int = 10) -> None:
    """Print the ratio of a step in the measured loop to the same step in a bare loop."""
    harness, bare, turn_end = step_arms(workload, size, turn)
    harness(), bare(), turn_end()
    ratios, took, ends = [], [], []
    for index in range(turns):
        spent = {}
        for arm in (harness, bare) if index % 2 else (bare, harness):
            start = time.perf_counter()
            arm()
            spent[arm] = time.perf_counter() - start
        ratios.append(spent[harness] / spent[bare])
        took.append(spent[bare] / turn)
        start = time.perf_counter()
        turn_end()
        ends.append(time.perf_counter() - start)
    middle = statistics.median((a + b) / 2 for a, b in itertools.combinations_with_replacement(ratios, 2))
    print(
        f"step in the measured loop / bare loop: {middle:.4f}  ({workload} {size}, bare step "
        f"{statistics.median(took) * 1e3:.1f} ms, {turns} alternating turns of {turn}, Hodges-Lehmann)"
    )
    print(f"reading counters: {statistics.median(ends) * 1e3:.2f} ms a turn (outside the timed steps)")


def whole_run(rounds: int = 5, steps: int = 30) -> None:
    """Print the ratio of ``optbench run`` to a hand-written torchrun script that trains the same."""
    ratios, hand_times = [], []
    with tempfile.TemporaryDirectory() as folder:
        ours = [
            sys.executable,
            "-m",
            "harness.cli",
            "run",
            "--workload",
            "gpt",
            "--size",
            "nano",
            "--optimizer",
            "adamw/foreach",
            "--strategy",
            "ddp",
            "--nproc",
            "2",
            "--steps",
            str(steps),
            "--set",
            f"evaluate_every={steps}",
            "--results",
            folder,
        ]
        hand = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(HAND_WRITTEN), str(steps)]
        for index in range(rounds + 1):
            spent = {}
            for name, command in (
                (("ours", ours), ("hand", hand)) if index % 2 else (("hand", hand), ("ours", ours))
            ):
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                spent[name] = time.perf_counter() - start
            if index:  # the first round fills the page cache
                ratios.append(spent["ours"] / spent["hand"])
                hand_times.append(spent["hand"])
    print(
        f"optbench run / hand-written torchrun script: {statistics.median(ratios):.3f}  "
        f"(two ranks, gpt nano, {steps} steps, hand-written {statistics.median(hand_times):.1f} s, "
        f"{rounds} rounds: {', '.join(f'{r:.2f}' for r in ratios)})"
    )


def start_up(rounds: int = 9) -> None:
    """Print how long the verbs that need no torch take."""
    for words in (["--help"], ["list", "workloads"]):
        took = []
        for _ in range(rounds):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "harness.cli", *words], check=True, capture_output=True)
            took.append(time.perf_counter() - start)
        print(f"optbench {' '.join(words)}: {statistics.median(took):.2f} s (median of {rounds})")


def main() -> None:
    """Print everything, or the parts named."""
    parts = {"loop": measured_loop, "run": whole_run, "start": start_up}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="|".join(parts), help="default: all")
    for part in parser.parse_args().parts or parts:
        parts[part]()


if __name__ == "__main__":
    main()
