"""The driver's side of the baton: worlds that stay resident, launches, turns."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from harness import launching
from harness.errors import OptbenchError
from launch import baton, local, memory_kills, processes

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Collection, Mapping, Sequence

    from harness.comparison.model import Arm

GRACE_S = 2.0
"""How long ranks may tell why, once one has failed: its peers see nothing but a connection that was closed."""

START_S = 60.0
"""How long interpreters may take to start and import torch, however short an arm's answers have to be."""

MESSAGE_S = 30.0
"""How long a message that has begun, or the first of a new connection, may take on a busy machine."""

END_S = 10.0
"""How long a launch's processes may take to go."""

DIED = "a rank died"
"""Of a process whose line ended without a word."""

CONSEQUENCES = ("closed by peer", DIED, "Connection re", "Broken pipe")
"""What ranks say whose peer is gone."""

POLL_S = 0.25
"""Between two looks at whether a world whose answer is awaited still lives."""

MONITOR_S = 1
"""Between two looks of torchrun at its ranks, ten a second unless told: each wakes a core beside a running arm."""

ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""Threads of a waiting arm must not spin beside the one that runs."""

MOST_PAGES = 2**16
"""Of the gap above what ranks load."""


class ArmError(OptbenchError):
    """An arm could not start, died or hung; names it, and what its log says last."""


class OutOfMemoryError(ArmError):
    """An arm found too little memory: of an accelerator, or the kernel killed it."""


NO_MEMORY = ("OutOfMemoryError", "out of memory", "MemoryError", "not enough memory", "Cannot allocate memory")
"""What torch, its allocators and Python say where memory is short."""


class Built(NamedTuple):
    """One arm at the start of a launch, as its own ranks tell.

    Attributes:
        build_s: how long its slowest rank took to build its engine, in seconds.
        compiled: its optimizer declares that it compiles.
        state_dtypes: its optimizer declares, of its states.
    """

    build_s: float
    compiled: bool
    state_dtypes: tuple[str, ...]


class Arms:
    """The worlds of all arms, one torchrun each; a context, in whose end nothing of them is left.

    Args:
        arms: specs resolved.
        timeout_s: for any one answer of a rank.
        begin_s: until a first rank of every arm has come; None: as long as any world may take.

    Attributes:
        environment: that the first arm has told of.
    """

    def __init__(self, arms: Sequence[Arm], timeout_s: float, begin_s: float | None = None) -> None:
        self.arms, self._timeout_s = arms, timeout_s
        self._begin_s = launching.BEGIN_S if begin_s is None else min(begin_s, launching.BEGIN_S)
        self._ports: dict[int, int] = {}
        self._marker = f"compare-{secrets.token_hex(8)}"
        self._stack = contextlib.ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ranks: dict[tuple[int, int], baton.Line] = {}
        self._children: dict[tuple[int, int], baton.Line] = {}
        self._rank_of: dict[baton.Line, int] = {}
        self._number = -1
        self.environment: dict[str, Any] = {}
        self._kills = memory_kills.count()

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="optbench-arms-")))
        self._listener = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            self._listener.bind(str(self._folder / "baton"))
        except OSError as error:
            self._stack.close()
            raise OptbenchError(f"no socket in {self._folder}: {error}; set TMPDIR to a shorter path") from error
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
        self._stack.close()

    def _end_processes(self) -> None:
        for process in self._processes:
            processes.end(self._marker, process)
        self._processes.clear()

    def _start_all(self) -> None:
        # Drawn for all arms together: what is drawn for each process alone would tell them apart.
        gap, hash_seed = secrets.randbelow(MOST_PAGES) + 1, secrets.randbelow(2**32)
        for index, arm in enumerate(self.arms):
            try:
                self._processes.append(self._start(index, arm, gap, hash_seed))
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

    def _start(self, index: int, arm: Arm, gap: int, hash_seed: int) -> subprocess.Popen[bytes]:
        spec = arm.spec
        target = [
            str(Path(baton.__file__)),
            f"--socket={self._folder / 'baton'}",
            f"--arm={index}",
            f"--gap={gap}",
        ]
        target.append(f"--spec={spec.model_dump_json(exclude_defaults=True)}")
        target += [f"--path={arm.path}"] if arm.path else []
        logs = self._folder / f"torchrun-{index}"
        target = [f"--monitor-interval={MONITOR_S}", *target]  # torchrun's own word, which stands before the file
        self._ports[index] = local.free_port()
        words = local.torchrun(spec, target, self._ports[index], log_dir=logs, python=arm.python)
        environment = {"PYTHONHASHSEED": str(hash_seed)} | dict(os.environ)
        settings = local.environment(spec, self._marker, environment) | ASLEEP | arm.env
        return processes.start(words, settings, self._log(index))

    def _log(self, index: int) -> Path:
        return self._folder / f"log-{index}"

    def prepared(self) -> list[dict[str, Any]]:
        """Wait until every rank of every arm can launch; return what rank 0 of each says of itself.

        Raises:
            ArmError: one cannot.
        """
        about: dict[int, dict[str, Any]] = {}
        wanted = sum(arm.spec.world_size or 1 for arm in self.arms)
        patience_s = max(self._timeout_s, START_S)
        silent = set(range(len(self.arms)))
        for line, message in self._answers(
            {}, "before it could launch", new=wanted, timeout_s=patience_s, silent=silent
        ):
            index = message["arm"]
            if message["protocol"] != baton.PROTOCOL:
                raise self._error(index, f"speaks protocol {message['protocol']}, not {baton.PROTOCOL}")
            self._ranks[index, int(message["rank"])] = line
            if message["rank"] == 0:
                about[index] = {k: v for k, v in message.items() if k not in {"kind", "arm", "rank"}}
        return [about[index] for index in range(len(self.arms))]

    def _answers(
        self,
        lines: Mapping[baton.Line, int],
        when: str,
        new: int = 0,
        timeout_s: float | None = None,
        silent: Collection[int] = (),
    ) -> list[tuple[baton.Line, dict[str, Any]]]:
        """Return the next message of each line and of as many new connections, in the order in which they come.

        Args:
            lines: of ranks whose answer is awaited, with their arms.
            when: the answer is awaited, for the message.
            new: connections awaited.
            timeout_s: of all of it; None: the comparison's.
            silent: arms whose worlds have just been started: of each a rank must come before long.

        Raises:
            ArmError: a rank failed, died, or did not answer in time. Of several, the one whose reason is not that
                its peers were gone: they are given a moment to tell.
        """
        waiting, found = dict(lines), []
        failures: list[tuple[int, str, int | None]] = []
        timeout_s = timeout_s or self._timeout_s
        started = time.monotonic()
        deadline, silent = started + timeout_s, set(silent)
        while waiting or new:
            ready = self._ready(waiting, listens=bool(new))
            if self._listener in ready:
                line, arm = self._arrived()
                waiting[line] = arm
                silent.discard(arm)
                new -= 1
            for line in [each for each in waiting if each.connection in ready or each.has_message()]:
                arm = waiting.pop(line)
                message = _received(line, when)
                if "reason" in message:
                    failures.append((arm, message["reason"], self._rank_of.get(line)))
                    deadline = min(deadline, time.monotonic() + GRACE_S)
                else:
                    found.append((line, message))
            if not (ready or failures):
                self._alive()
                if silent and time.monotonic() > started + self._begin_s:
                    raise self._not_begun(min(silent))
            if time.monotonic() > deadline:
                break
        if failures:
            raise self._error(*min(failures, key=_is_consequence))
        if waiting or new:
            raise self._hung(sorted(waiting.values()), when, timeout_s)
        return found

    def _ready(self, waiting: Mapping[baton.Line, int], *, listens: bool) -> Sequence[Any]:
        """Wait a moment for messages and connections; return where there are some."""
        sources: list[Any] = [line.connection for line in waiting]
        at_once = any(line.has_message() for line in waiting)
        found: Sequence[Any] = select.select(
            [*sources, self._listener] if listens else sources, [], [], 0 if at_once else POLL_S
        )[0]
        return found

    def _arrived(self) -> tuple[baton.Line, int]:
        """Return a new connection and the arm that it is of."""
        line = baton.Line(self._listener.accept()[0])
        self._stack.callback(line.close)
        message = _received(line, "as it connected")
        if "reason" in message:
            raise ArmError(f"{message['reason']}:\n{self._tails()}")
        self._rank_of[line] = int(message["rank"])
        return line, int(message["arm"])

    def _hung(self, arms: Sequence[int], when: str, timeout_s: float) -> ArmError:
        """Say which arm hangs; its ranks have told on standard error where they are."""
        pids = [found.pid for found in processes.of_run(self._marker)]
        processes.dump_stacks(_ranks_among(pids))
        if not arms:
            return ArmError(f"a rank did not come within {timeout_s:g} s:\n{self._tails()}")
        return self._error(arms[0], f"hung {when}: no answer within {timeout_s:g} s")

    def _not_begun(self, index: int) -> ArmError:
        environment = {**os.environ, **self.arms[index].env}
        where = f"127.0.0.1:{self._ports[index]}"
        return self._error(index, launching.not_begun(self._begin_s, where, environment, None))

    def _alive(self) -> None:
        for index, process in enumerate(self._processes):
            if process.poll() is not None:
                raise self._error(index, f"ended with code {process.poll()}")

    def launch(self, indices: Sequence[int]) -> dict[int, Built]:
        """Start a launch of some arms; return what each tells of itself once its engine is built.

        Raises:
            ArmError: one failed, or did not answer in time.
        """
        self._number += 1
        ports = {index: local.free_port() for index in indices}
        called = [(index, line) for (index, _), line in self._ranks.items() if index in ports]
        for index, line in called:
            self._send(index, line, "launch", number=self._number, port=ports[index])
        built: dict[int, Built] = {}
        for line, message in self._answers({}, "before its first step", new=len(called)):
            index, build_s = message["arm"], float(message["build_s"])
            self._children[index, message["rank"]] = line
            if index in built:
                build_s = max(build_s, built[index].build_s)
            built[index] = Built(build_s, bool(message["compiled"]), tuple(message["state_dtypes"]))
        return {index: built[index] for index in indices}

    def turn(self, index: int, lead: int, steps: int) -> dict[str, Any]:
        """Give one arm the baton; return its ranks' answer as one, see `as_one`.

        Raises:
            ArmError: it failed, or did not answer in time.
        """
        lines = self._of(index)
        for line in lines:
            self._send(index, line, "turn", lead=lead, steps=steps)
        return as_one([message for _, message in self._answers(dict.fromkeys(lines, index), "in its turn")])

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
            answers = dict(self._answers(dict.fromkeys(lines, index), "at its end"))
            peaks[index] = sum(int(each["peak_memory_bytes"]) for each in answers.values())
            facts[index] = answers[lines[0]]["facts"]
            self.environment = self.environment or answers[lines[0]]["environment"]
        for line in self._children.values():
            # What they held is free only when they are gone. A helper of theirs may keep the line open.
            line.gone(END_S)
            line.close()
            self._rank_of.pop(line, None)
        self._children.clear()
        return peaks, facts

    def _of(self, index: int) -> list[baton.Line]:
        return [line for (arm, _), line in sorted(self._children.items()) if arm == index]

    def _send(self, index: int, line: baton.Line, kind: str, **fields: Any) -> None:
        try:
            line.send(kind, **fields)
        except OSError as error:
            raise self._error(index, f"{DIED} before its turn", self._rank_of.get(line)) from error

    def _error(self, index: int, what: str, rank: int | None = None) -> ArmError:
        died = DIED in what
        ending = self._how_it_ended(index, rank) if died and rank is not None else ""
        text = f"arm {self.arms[index].name}: {what}{ending}\n{self._tail(index)}".rstrip()
        killed = died and memory_kills.count() != self._kills
        if killed:
            text = f"{text}\nthe kernel killed a process for memory meanwhile"
        return OutOfMemoryError(text) if killed or any(words in text for words in NO_MEMORY) else ArmError(text)

    def _how_it_ended(self, index: int, rank: int) -> str:
        """Return how a process of the rank ended, as the one that had forked it tells in a moment; or nothing."""
        line = self._ranks.get((index, rank))
        deadline = time.monotonic() + GRACE_S
        while line is not None and (left_s := deadline - time.monotonic()) > 0:
            if not line.has_message() and not select.select([line.connection], [], [], left_s)[0]:
                break
            message = _received(line, "")
            if "reason" in message:  # it has ended itself
                break
            if message["kind"] == "lost" and message["number"] == self._number:
                code = int(message["code"])
                return f": killed by {_signal(-code)}" if code < 0 else f": ended with code {code}"
        return ""

    def _tails(self) -> str:
        return "\n".join(self._tail(index) for index in range(len(self.arms)))

    def _tail(self, index: int, lines: int = 12) -> str:
        with contextlib.suppress(OSError):
            told = [each for each in self._log(index).read_text(errors="replace").splitlines() if each.strip()]
            return "\n".join(f"  {self.arms[index].name}: {each[:300]}" for each in told[-lines:])
        return ""


def _received(line: baton.Line, when: str) -> dict[str, Any]:
    """Return a message that has begun to come; with a ``reason`` where the rank failed or died."""
    try:
        message = line.receive(MESSAGE_S)
    except (EOFError, TimeoutError, ValueError):
        return {"reason": f"{DIED} {when}"}
    if message["kind"] == "refused":
        return {"reason": f"cannot run: {message['reason']}"}
    return message


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _is_consequence(failure: tuple[int, str, int | None]) -> bool:
    return any(words in failure[1] for words in CONSEQUENCES)


def as_one(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a world's ranks say of a turn as one answer.

    Returns:
        ``step_time_s``: of the rank whose steps together took longest, which is what the job took. The longest of
        each step, added up, would be more than that: where ranks hold each other up in turn, it counts a delay in
        the step of the rank that was late and in the next one of the rank that waited.
        ``phase_s``: the slowest rank's means. ``cpu_time_s``: a step, all ranks together. ``losses``: means over
        the ranks, of untimed steps too; None: the engine tells none.
    """
    phases = {name for each in answers for name in each["phase_s"]}
    losses = zip(*(each["losses"] for each in answers), strict=True)
    return {
        "step_time_s": max((each["step_time_s"] for each in answers), key=sum),
        "phase_s": {name: max(each["phase_s"].get(name, 0.0) for each in answers) for name in sorted(phases)},
        "cpu_time_s": sum(each["cpu_time_s"] for each in answers),
        "involuntary_switches": sum(each["involuntary_switches"] for each in answers),
        "losses": [None if None in each else sum(each) / len(each) for each in losses],
    }


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
