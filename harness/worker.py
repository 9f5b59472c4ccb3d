"""The torchrun entry point: one rank of one run.

``optbench run`` starts it as ``-m harness.worker --prepared results/<run_id>``. By hand, with a plan that
``optbench plan --write DIR`` wrote: ``torchrun --nproc-per-node 2 -m harness.worker DIR/plan-0.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import math
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import world as ranks
from harness.errors import (
    NO_SPACE_EXIT_CODE,
    DivergedError,
    InvalidInputError,
    OptbenchError,
    UnsupportedError,
    WrongAnswerError,
)
from harness.garbage import collection_paused
from harness.interfaces import DataShard, Observed, Remarks, World
from harness.invocation import command
from harness.leaving import leave_world
from harness.loop import steps, turns
from harness.rankfile import RankWriter, read_rank_file
from harness.registry import COLLECTORS, OPTIMIZERS, WORKLOADS, strategy
from harness.seeding import seed_generators
from harness.spec import RunSpec
from harness.targets import is_target, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from harness.checks.run import RunChecks
    from harness.interfaces import Batch, Collector, Engine, Workload
    from harness.loop import Turn
    from harness.record import Outcome


QUIET = {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}
"""Of ranks whose output is a person's terminal: without it the profiler reports each stage of its own. torch reads
both when it is imported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank; return its exit code: 0 done, 1 the run ended otherwise, 2 the words given are wrong."""
    parser = argparse.ArgumentParser(prog="harness.worker", description="One rank of one run.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("plan", nargs="?", type=Path, help="a file that optbench plan --write wrote")
    source.add_argument("--prepared", type=Path, help="a run's folder, prepared by the launcher")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the store, with a plan file")
    options = parser.parse_args(arguments)
    ranks.begin()
    if options.prepared is not None:
        _log_to(options.prepared / "log" / f"rank-{ranks.number('RANK', 0)}.log")
    if options.prepared is None:
        return _by_hand(options.plan, options.results)
    spec = RunSpec.model_validate_json((options.prepared / "spec.json").read_bytes())
    return _Rank(spec, options.prepared).run()


def _by_hand(plan: Path, results: Path) -> int:
    """Make the run's folder on rank 0, train, and let rank 0 write the manifest once all ranks ended."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from harness.plan import read_plan_file
    from harness.store import Store

    try:
        spec = read_plan_file(plan)
    except InvalidInputError as error:
        print(error, file=sys.stderr)
        return 2
    world_size, rank = ranks.number("WORLD_SIZE", 1), ranks.number("RANK", 0)
    if spec.world_size != world_size:
        print(
            f"{plan}: the plan is for {spec.world_size} ranks, torchrun started {world_size}; "
            f"use torchrun --nproc-per-node {spec.world_size}",
            file=sys.stderr,
        )
        return 2
    store = Store(results)
    run_id = store.new_run(spec).name if rank == 0 else ""
    if world_size > 1:
        # Through torchrun's key-value store, which needs no process group beside the run's own.
        shared, _, _ = next(rendezvous("env://"))
        names = PrefixStore("optbench", shared)
        if rank == 0:
            names.set("run", run_id)
        run_id = names.get("run").decode()
    run = store.join_run(run_id, spec)  # a node may have a disk of its own
    code = _Rank(spec, run).run()
    if rank == 0:
        _wait_for_ranks(run, world_size)
        record = store.finish(run.name)
        print(f"{run}: {record.outcome}" + (f": {record.reason}" if record.reason else ""))
        if record.outcome == "incomplete":
            print(f"Copy what other nodes have of {run.name} into {run}; then:")
            print(f"  {command('show', run.name, results=results)}")
    return code


def _wait_for_ranks(run: Path, world_size: int, limit_s: float = 30.0) -> None:
    """Wait until every rank's file has its end line; past the limit the manifest says which have none."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, OptbenchError):
            if all(read_rank_file(run / f"rank-{rank}.jsonl").ended for rank in range(world_size)):
                return
        time.sleep(0.1)


def _log_to(path: Path) -> None:
    """Send standard output and standard error, those of libraries in C too, to the rank's log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


class _Rank:
    """One rank's life, from its first line to its last."""

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        self._spec = spec
        self._rank = ranks.number("RANK", 0)
        self._writer = RankWriter(folder / f"rank-{self._rank}.jsonl")
        self._step = 0
        self._train_time_s = 0.0

    def run(self) -> int:
        """Train and write everything down; a failure is written down too."""
        self._writer.begin(self._rank, ranks.number("WORLD_SIZE", 1))
        try:
            self._train()
        except BaseException as error:  # noqa: BLE001  # whatever it was, sys.exit() too, it becomes a row
            traceback.print_exc()
            outcome, reason = _cause(error)
            self._writer.error(outcome, reason, traceback=traceback.format_exc(), step=self._step)
            self._end(outcome)
            return 1
        self._end("completed")
        return 0

    def _end(self, outcome: Outcome) -> None:
        self._writer.end(outcome)
        self._writer.close()

    def _train(self) -> None:
        with collection_paused():
            import torch._dynamo  # noqa: F401  # torch.optim's constructors import it

            from harness import contract
            from harness.checks.run import RunChecks
        from harness.verification import entering

        spec = self._spec
        world = ranks.enter(spec)
        entering.require(OPTIMIZERS.get(spec.optimizer), spec)
        seed_generators(spec.seed)
        workload = contract.construct(WORKLOADS.get(spec.workload), spec)
        imported_rss_bytes = _resident_bytes()
        engine = strategy(spec.strategy).start(workload, OPTIMIZERS.get(spec.optimizer), spec, world)
        if self._rank == 0:
            from harness.environment import capture

            self._writer.environment(capture())
        collectors: list[Collector] = [COLLECTORS.get(name)() for name in spec.collectors]
        observed = Observed(
            spec=spec,
            workload=workload.traits,
            engine=engine,
            world=world,
            process_started_unix_s=_started(),
            flops_per_step=_flops(workload, spec),
        )
        for collector in collectors:
            collector.start(observed)
        if self._rank == 0:
            for text in engine.remarks() if isinstance(engine, Remarks) else ():
                self._writer.note(text)
        if world.size == 1 and world.backend is not None and self._rank == 0:
            self._writer.note(f"{spec.strategy} on one rank has nobody to exchange with: the same as single")
        shard = DataShard(world.rank, world.size, spec.global_batch or 1, spec.accumulation, spec.seed)
        checks = RunChecks(engine, workload, spec, world, OPTIMIZERS.get(spec.optimizer).traits)
        batches = checks.watch(contract.checked(workload.batches(shard), shard))
        try:
            self._steps(engine, workload, batches, world, collectors, checks)
        finally:
            if self._rank == 0:
                self._writer.facts({"checks": checks.facts()})
        for collector in collectors:
            self._writer.readings(collector.stop())
        if self._rank == 0:
            from harness.optimizers.construct import json_safe

            found: dict[str, Any] = getattr(workload, "facts", dict)()
            traits = OPTIMIZERS.get(spec.optimizer).traits.model_dump(mode="json")
            ran = engine.facts()
            self._compare_sizes(workload, ran.get("parameters"))
            more = {"workload": json_safe(found), "optimizer_traits": traits, "sources": _sources(spec)}
            self._writer.facts({**ran, **more})
        self._trace(engine, workload, batches, world, collectors, imported_rss_bytes)
        engine.close()
        if world.backend is not None:
            leave_world()

    def _compare_sizes(self, workload: Workload, found: object) -> None:
        """Note a number of parameters that the workload declares wrongly: estimates were made with it."""
        told = workload.traits.size(self._spec.size).parameters
        if isinstance(found, int) and found != told and not self._spec.workload_options:
            self._writer.note(
                f"{short(self._spec.workload)} declares {told:,} parameters and its model has {found:,}; "
                "correct the sizes in its traits"
            )

    def _steps(
        self,
        engine: Engine,
        workload: Workload,
        batches: Iterator[Batch],
        world: World,
        collectors: Sequence[Collector],
        checks: RunChecks,
    ) -> None:
        from harness import contract

        spec = self._spec
        gc.collect()
        gc.freeze()  # what exists by now stays: later collections need not walk it
        stream = steps(engine, batches, spec, world.device, collectors)
        checks.begin()
        for turn in turns(stream, spec, _synchroniser(world.device)):
            checks.turn_over(turn)
            self._step = turn.end
            self._train_time_s += turn.wall_s
            readings = [reading for collector in collectors for reading in collector.turn()]
            self._writer.readings(readings)
            _agree_that_finite(turn, world)
            checks.timed(turn, readings)
            checks.conclude(turn)
            if spec.warmup_steps in {0, turn.end}:
                engine.verify_claims()
            last = turn.end == spec.steps
            if not workload.traits.optimizer_only and (last or turn.end % spec.evaluation_interval == 0):
                with engine.evaluating() as model:
                    values = contract.evaluation(workload.evaluate(model))
                for collector in collectors:
                    collector.evaluated(turn.end, self._train_time_s, values)
            checks.resume()
        for collector in collectors:
            self._writer.readings(collector.turn())  # the last evaluation

    def _trace(
        self,
        engine: Engine,
        workload: Workload,
        batches: Iterator[Batch],
        world: World,
        collectors: Sequence[Collector],
        imported_rss_bytes: int,
    ) -> None:
        """Trace a few further steps for the collectors that ask for it; what fails here spoils no good run."""
        from harness.tracing.reading import ReadsTrace, Traced

        readers = [collector for collector in collectors if isinstance(collector, ReadsTrace)]
        if not readers:
            return
        from harness.checks.fingerprint import forget
        from harness.tracing.expected import expected
        from harness.tracing.recording import record

        spec, trace, prediction = self._spec, None, None
        try:
            forget()  # memory of the checks' own
            kept = [workload, batches, _globals(workload, OPTIMIZERS.get(spec.optimizer).target)]
            trace = record(engine, batches, spec.accumulation, world, kept, _resident_bytes)
        except Exception as error:  # noqa: BLE001  # the engine's, the workload's or the profiler's: told
            traceback.print_exc()
            self._writer.note(f"the traced steps failed on rank {self._rank}: {_cause(error)[1]}")
        try:
            traits = OPTIMIZERS.get(spec.optimizer).traits
            prediction = expected(strategy(spec.strategy), workload, traits, spec, world)
        except Exception as error:  # noqa: BLE001  # likewise: theory that fails is no theory
            traceback.print_exc()
            self._writer.note(f"{spec.strategy} predicts nothing: {_cause(error)[1]}")
        traced = Traced(trace, prediction, world, imported_rss_bytes)
        for reader in readers:
            self._writer.readings(reader.traced(traced))


def _globals(workload: Workload, optimizer: str) -> dict[str, Any]:
    """Return the globals of a workload's module; none where the optimizer's class may keep its state in them."""
    module = type(workload).__module__
    return {} if module == optimizer.partition(":")[0] else vars(sys.modules[module])


def _sources(spec: RunSpec) -> dict[str, Any]:
    """Return path -> hash of the user's own sources, where something out of tree ran."""
    from harness.verification.identity import user_sources

    names = (spec.workload, spec.optimizer, spec.strategy, *spec.collectors)
    return dict(user_sources(sys.modules.values())) if any(map(is_target, names)) else {}


def _resident_bytes() -> int:
    from harness.collectors.memory import resident_bytes

    return resident_bytes()


def _synchroniser(device: torch.device) -> Any:
    import torch

    return (lambda: None) if device.type == "cpu" else lambda: torch.accelerator.synchronize(device)


def _started() -> float | None:
    started = os.environ.get("OPTBENCH_STARTED_UNIX_S")
    return float(started) if started else None


def _flops(workload: Workload, spec: RunSpec) -> int | None:
    """Count the model's FLOPs a step with torch's counter, on the meta device; None where it cannot run there."""
    if workload.traits.optimizer_only:
        return None
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    samples = min(spec.global_batch or 1, 2)
    try:
        batch = next(iter(workload.batches(DataShard(0, 1, samples, 1, spec.seed))))
        with torch.device("meta"):
            model = workload.build()
        with FlopCounterMode(display=False) as counter:
            loss = workload.loss(model, {key: tensor.to("meta") for key, tensor in batch.items()})
            loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types for it
    except Exception:  # noqa: BLE001  # a model that reads its values cannot run on meta: unknown, not a failure
        return None
    return int(counter.get_total_flops()) * (spec.global_batch or 1) // samples


def _agree_that_finite(turn: Turn, world: World) -> None:
    """Raise DivergedError on every rank when any rank's loss is no longer finite."""
    import torch

    losses = [result.loss for result in turn.results]
    known = [loss for loss in losses if loss is not None]
    if not known:
        return
    values = torch.stack([loss.reshape(()) for loss in known]).float()
    bad = (~torch.isfinite(values)).to(torch.int32)
    if world.backend is not None:
        torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
    where = bad.cpu().nonzero()
    if len(where):
        index = int(where[0])
        found = [float(values[index])] * world.size
        if world.backend is not None:
            torch.distributed.all_gather_object(found, found[world.rank])
        worst = [f"{value} on rank {rank}" for rank, value in enumerate(found) if not math.isfinite(value)]
        raise DivergedError(f"the training loss is {worst[0]} in step {turn.first + index + 1} of the run")


MAX_REASON = 1000
"""Characters of a reason; the rest stands in the rank's log."""


def shown(text: str) -> str:
    """Return a message in one line of printable characters, shortened: a table shows it."""
    line = "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}… (shortened)"


def _place(error: BaseException) -> str:
    """Say where an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" (in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _cause(error: BaseException) -> tuple[Outcome, str]:
    """Return outcome and reason for what ended the rank."""
    reason = f"{type(error).__name__}: {shown(str(error))}".strip().removesuffix(":") + _place(error)
    reason = "; ".join([reason, *getattr(error, "__notes__", ())])
    if isinstance(error, (UnsupportedError, DivergedError)):
        return "unsupported" if isinstance(error, UnsupportedError) else "diverged", str(error)
    if isinstance(error, OptbenchError):  # raised on purpose: its message needs no name of a class
        return "wrong" if isinstance(error, WrongAnswerError) else "failed", shown(str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out_of_memory", reason
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch's CPU allocator
        return "out_of_memory", reason
    return "failed", reason


def _leave(code: int) -> None:
    """End a rank that failed, or whose code left threads running, at once: a normal exit would wait for them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # the code under test may have replaced it
            stream.flush()
    if code or any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        os._exit(code)


if __name__ == "__main__":
    try:
        _leave(main())
    except OSError as error:
        traceback.print_exc()
        _leave(NO_SPACE_EXIT_CODE if error.errno in {errno.ENOSPC, errno.EDQUOT} else 1)
