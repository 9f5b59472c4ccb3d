"""The driver's side of the baton: worlds that stay resident, launches, turns."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.errors import OptbenchError
from launch import baton, local, memory_kills, processes

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from harness.comparison.model import Arm

POLL_S = 0.25
"""Between two looks at whether a world whose answer is awaited still lives."""

ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""Threads of a waiting arm must not spin beside the one that runs."""


class ArmError(OptbenchError):
    """An arm could not start, died or hung; names it, and what its log says last."""


class OutOfMemoryError(ArmError):
    """An arm found too little memory: of an accelerator, or the kernel killed it."""


NO_MEMORY = ("OutOfMemoryError", "out of memory", "MemoryError", "not enough memory", "Cannot allocate memory")
"""What torch, its allocators and Python say where memory is short."""


class Arms:
    """The worlds of all arms, one torchrun each; a context, in whose end nothing of them is left.

    Args:
        arms: specs resolved.
        timeout_s: for any one answer of a rank.
    """

    def __init__(self, arms: Sequence[Arm], timeout_s: float) -> None:
        self.arms, self._timeout_s = arms, timeout_s
        self._marker = f"compare-{secrets.token_hex(8)}"
        self._stack = contextlib.ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ranks: dict[tuple[int, int], baton.Line] = {}
        self._children: dict[tuple[int, int], baton.Line] = {}
        self._number = -1
        self._kills = memory_kills.count()

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="optbench-arms-")))
        self._listener = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        self._listener.bind(str(self._folder / "baton"))
        self._listener.listen(256)
        self._stack.callback(self._end_processes)
        self._stack.enter_context(processes.guarded(self._marker, self._folder))
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for line in [*self._children.values(), *self._ranks.values()]:
            line.close()
        self._stack.close()

    def _end_processes(self) -> None:
        for process in self._processes:
            processes.end(self._marker, process)
        self._processes.clear()

    def _start_all(self) -> None:
        for index, arm in enumerate(self.arms):
            try:
                self._processes.append(self._start(index, arm))
            except OSError as error:
                raise ArmError(f"arm {arm.name} cannot be started: {error}") from error

    def renew(self) -> list[dict[str, Any]]:
        """End every world and start it again with new interpreters, between two launches; see `prepared`.

        Raises:
            ArmError: one cannot start again.
        """
        for line in self._ranks.values():
            line.close()
        self._ranks.clear()
        self._end_processes()
        self._start_all()
        return self.prepared()

    def _start(self, index: int, arm: Arm) -> subprocess.Popen[bytes]:
        spec = arm.spec
        target = [str(Path(baton.__file__)), f"--socket={self._folder / 'baton'}", f"--arm={index}"]
        target.append(f"--spec={spec.model_dump_json(exclude_defaults=True)}")
        target += [f"--path={arm.path}"] if arm.path else []
        logs = self._folder / f"torchrun-{index}"
        words = local.torchrun(spec, target, local.free_port(), log_dir=logs, python=arm.python)
        settings = local.environment(spec, self._marker, os.environ) | ASLEEP | arm.env
        return processes.start(words, settings, self._log(index))

    def _log(self, index: int) -> Path:
        return self._folder / f"log-{index}"

    def prepared(self) -> list[dict[str, Any]]:
        """Wait until every rank of every arm can launch; return what rank 0 of each says of itself.

        Raises:
            ArmError: one cannot.
        """
        about: dict[int, dict[str, Any]] = {}
        wanted = {(index, rank) for index, arm in enumerate(self.arms) for rank in range(arm.spec.world_size or 1)}
        while self._ranks.keys() < wanted:
            line, message = self._accepted(self._timeout_s)
            index = message["arm"]
            if message["kind"] == "refused":
                raise self._error(index, f"cannot run: {message['reason']}")
            if message["protocol"] != baton.PROTOCOL:
                raise self._error(index, f"speaks protocol {message['protocol']}, not {baton.PROTOCOL}")
            self._ranks[index, int(message["rank"])] = line
            if message["rank"] == 0:
                about[index] = {k: v for k, v in message.items() if k not in {"kind", "arm", "rank"}}
        return [about[index] for index in range(len(self.arms))]

    def _accepted(self, timeout_s: float) -> tuple[baton.Line, dict[str, Any]]:
        deadline = time.monotonic() + timeout_s
        while True:
            if select.select([self._listener], [], [], POLL_S)[0]:
                line = baton.Line(self._listener.accept()[0])
                try:
                    return line, line.receive(max(1.0, deadline - time.monotonic()))
                except (EOFError, TimeoutError) as error:
                    what = "died" if isinstance(error, EOFError) else f"hung for {timeout_s:g} s"
                    line.close()
                    raise ArmError(f"a rank {what} before its first step:\n{self._tails()}") from None
            self._alive()
            if time.monotonic() > deadline:
                raise ArmError(f"a rank did not come within {timeout_s:g} s:\n{self._tails()}")

    def _alive(self) -> None:
        for index, process in enumerate(self._processes):
            if process.poll() is not None:
                raise self._error(index, f"ended with code {process.poll()}")

    def launch(self, indices: Sequence[int]) -> dict[int, float]:
        """Start a launch of some arms; return how long each took to build its engine, in seconds.

        Raises:
            ArmError: one failed, or did not answer in time.
        """
        self._number += 1
        ports = {index: local.free_port() for index in indices}
        called = [(index, line) for (index, _), line in self._ranks.items() if index in ports]
        for index, line in called:
            self._send(index, line, "launch", number=self._number, port=ports[index])
        took = dict.fromkeys(indices, 0.0)
        for _ in called:
            line, message = self._accepted(self._timeout_s)
            if message["kind"] == "failed":
                raise self._error(message["arm"], message["reason"])
            self._children[message["arm"], message["rank"]] = line
            took[message["arm"]] = max(took[message["arm"]], float(message["build_s"]))
        return took

    def turn(self, index: int, lead: int, steps: int) -> dict[str, Any]:
        """Give one arm the baton; return its ranks' answer as one.

        Returns:
            ``step_time_s``: the slowest rank's, step by step. ``phase_s``: the slowest rank's means.
            ``cpu_time_s``: a step, all ranks together. ``losses``: means over the ranks.

        Raises:
            ArmError: it failed, or did not answer in time.
        """
        lines = self._of(index)
        for line in lines:
            self._send(index, line, "turn", lead=lead, steps=steps)
        answers = [self._answer(index, line) for line in lines]
        phases = {name for each in answers for name in each["phase_s"]}
        losses = zip(*(each["losses"] for each in answers), strict=True)
        return {
            "step_time_s": [max(times) for times in zip(*(each["step_time_s"] for each in answers), strict=True)],
            "phase_s": {name: max(each["phase_s"].get(name, 0.0) for each in answers) for name in sorted(phases)},
            "cpu_time_s": sum(each["cpu_time_s"] for each in answers),
            "involuntary_switches": sum(each["involuntary_switches"] for each in answers),
            "losses": [None if None in each else sum(each) / len(each) for each in losses],
        }

    def end_launch(self) -> tuple[dict[int, int], dict[int, dict[str, Any]]]:
        """End the launch's processes; return each arm's peak memory over its ranks, and rank 0's facts.

        Raises:
            ArmError: one failed, or did not answer in time.
        """
        peaks, facts = {}, {}
        for index in sorted({index for index, _ in self._children}):
            lines = self._of(index)
            for line in lines:
                self._send(index, line, "end")
            answers = [self._answer(index, line) for line in lines]
            peaks[index] = sum(int(each["peak_memory_bytes"]) for each in answers)
            facts[index] = answers[0]["facts"]
        for line in self._children.values():
            line.close()
        self._children.clear()
        return peaks, facts

    def _of(self, index: int) -> list[baton.Line]:
        return [line for (arm, _), line in sorted(self._children.items()) if arm == index]

    def _send(self, index: int, line: baton.Line, kind: str, **fields: Any) -> None:
        try:
            line.send(kind, **fields)
        except OSError as error:
            raise self._error(index, "a rank has died") from error

    def _answer(self, index: int, line: baton.Line) -> dict[str, Any]:
        try:
            message = line.receive(self._timeout_s)
        except EOFError:
            raise self._error(index, "a rank died in its turn") from None
        except TimeoutError:
            pids = [found.pid for found in processes.of_run(self._marker)]
            processes.dump_stacks(_ranks_among(pids))
            raise self._error(index, f"hung: no answer within {self._timeout_s:g} s") from None
        if message["kind"] == "failed":
            raise self._error(index, message["reason"])
        return message

    def _error(self, index: int, what: str) -> ArmError:
        text = f"arm {self.arms[index].name} {what}\n{self._tail(index)}".rstrip()
        killed = "died" in what and memory_kills.count() != self._kills
        if killed:
            text = f"{text}\nthe kernel killed a process for memory meanwhile"
        return OutOfMemoryError(text) if killed or any(words in text for words in NO_MEMORY) else ArmError(text)

    def _tails(self) -> str:
        return "\n".join(self._tail(index) for index in range(len(self.arms)))

    def _tail(self, index: int, lines: int = 12) -> str:
        with contextlib.suppress(OSError):
            told = [each for each in self._log(index).read_text(errors="replace").splitlines() if each.strip()]
            return "\n".join(f"  {self.arms[index].name}: {each[:300]}" for each in told[-lines:])
        return ""


def _ranks_among(pids: Sequence[int]) -> list[int]:
    """Return the pids of ranks: SIGUSR1 would kill torchrun."""
    import psutil

    ranks = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            words = psutil.Process(pid).cmdline()
            if "torch.distributed.run" not in words and str(Path(baton.__file__)) in words:
                ranks.append(pid)
    return ranks
