"""What the harness costs: ratios measured now, arms alternating. Run python tests/benchmarks/overhead.py."""

from __future__ import annotations

import argparse
import itertools
import json
import random
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


def launch(workload: str, size: str, turns: int, turn: int) -> dict[str, float]:
    """Compare harness's loop and a second bare loop with a bare loop, in alternating turns of one process."""
    harness, bare, turn_end = step_arms(workload, size, turn)
    arms = {"harness": harness, "bare": bare, "bare again": bare}
    for arm in arms.values():
        arm()
    turn_end()
    spent: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for _ in range(turns):
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            arms[name]()
            spent[name].append((time.perf_counter() - start) / turn)
        turn_end()
    return {
        "harness": hodges_lehmann([h / b for h, b in zip(spent["harness"], spent["bare"], strict=True)]),
        "bare again": hodges_lehmann([h / b for h, b in zip(spent["bare again"], spent["bare"], strict=True)]),
        "bare_s": statistics.median(spent["bare"]),
        "more_s": hodges_lehmann([h - b for h, b in zip(spent["harness"], spent["bare"], strict=True)]),
    }


def hodges_lehmann(values: list[float]) -> float:
    """Return the median of the means of all pairs."""
    return statistics.median((a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2))


def launches(workload: str, size: str, turns: int, turn: int, count: int) -> list[dict[str, float]]:
    """Return what so many fresh processes measured: one process has a bias that more steps don't remove."""
    words = [sys.executable, __file__, "launch", workload, size, str(turns), str(turn)]
    return [
        json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for _ in range(count)
    ]


def measured_loop(count: int = 5) -> None:
    """Print what a step in the measured loop costs beside the same step in a bare loop."""
    found = launches("cnn", "small", 80, 10, count)
    for name, text in (("harness", "measured loop / bare loop"), ("bare again", "bare loop / bare loop")):
        ratios = [each[name] for each in found]
        listed = ", ".join(f"{ratio:.4f}" for ratio in ratios)
        print(f"step, {text}: {statistics.mean(ratios):.4f}  ({listed})")
    step = statistics.median(each["bare_s"] for each in found)
    print(f"    cnn small, step {step * 1e3:.1f} ms, {count} launches of 80 rounds, random order, Hodges-Lehmann")
    more = [each["more_s"] * 1e6 for each in launches("linear_regression", "small", 80, 50, count)]
    print(f"harness's own time in a step: {statistics.mean(more):.0f} us  ({', '.join(f'{m:.0f}' for m in more)})")


def whole_run() -> None:
    """Print the ratio of ``optbench run`` to a hand-written torchrun script that trains the same."""
    for strategy in ("ddp", "fsdp2"):
        run_of(strategy)


def run_of(strategy: str, rounds: int = 5, steps: int = 30) -> None:
    """Print it for one strategy."""
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
            strategy,
            "--nproc",
            "2",
            "--steps",
            str(steps),
            "--set",
            f"evaluate_every={steps}",
            "--results",
            folder,
        ]
        hand = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(HAND_WRITTEN)]
        hand += [str(steps), strategy]
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
        f"({strategy}, two ranks, gpt nano, {steps} steps, hand-written {statistics.median(hand_times):.1f} s, "
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
    if sys.argv[1:2] == ["launch"]:
        workload, size, turns, turn = sys.argv[2:]
        print(json.dumps(launch(workload, size, int(turns), int(turn))))
        return
    parts = {"loop": measured_loop, "run": whole_run, "start": start_up}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="|".join(parts), help="default: all")
    for part in parser.parse_args().parts or parts:
        parts[part]()


if __name__ == "__main__":
    main()
