"""What one rank measured, a line at a time: ``rank-N.jsonl``.

Each line is a sealed JSON object (`harness.sealed`): ``{"seq": 0, "kind": "begin", "time_unix_s": …, …}``. Kinds:

    begin        schema_version, rank, world_size, pid, hostname
    environment  the fields of `Environment`; rank 0
    facts        facts: what really ran; rank 0
    metric       info: the fields of `MetricInfo`; once, before the first number of that name
    samples      step (index of the first of consecutive steps) or steps (counts of steps done);
                 samples: name -> list
    values       values: name -> number or null
    error        outcome, reason, traceback, step
    note         text
    end          outcome
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import CorruptFileError, OptbenchError
from harness.record import SCHEMA_VERSION
from harness.sealed import number, read_bytes, seal, unseal
from harness.versions import FutureVersionError, check_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pydantic import JsonValue

    from harness.interfaces import Reading
    from harness.record import Environment, MetricInfo, Outcome

RESERVED = ("seq", "kind", "time_unix_s", "crc32")


class LineWriter:
    """Appends sealed lines to a file, each in the system's hands before `write` returns (no fsync).

    Args:
        path: for messages.
        descriptor: open for writing at the end of the file; owned from now on.
        seq: of the next line.
    """

    def __init__(self, path: Path, descriptor: int, seq: int = 0) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        self._seq = seq

    def write(self, kind: str, /, **fields: object) -> None:
        """Append one line.

        Raises:
            OSError: with the file's name (a full disk, say). What was written of the line is taken back, so that
                the file stays readable and another line may be tried.
            ValueError: for a reserved field name or a closed writer.
        """
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        if taken := [name for name in RESERVED if name in fields]:
            raise ValueError(f"a line has its own {', '.join(taken)}")
        line = seal({"seq": self._seq, "kind": kind, "time_unix_s": time.time(), **fields}) + b"\n"
        start = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self._take_back(self._descriptor, start)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._seq += 1

    @staticmethod
    def _take_back(descriptor: int, start: int) -> None:
        try:
            os.ftruncate(descriptor, start)
            os.lseek(descriptor, start, os.SEEK_SET)
        except OSError:
            return  # then the line is a torn tail, which readers accept

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class RankWriter(LineWriter):
    """Writes a rank's file.

    Args:
        path: ``rank-N.jsonl``; created, with missing folders above it.

    Raises:
        FileExistsError: the rank has a file already; two writers in one would corrupt it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        self._described: dict[str, tuple[MetricInfo, str]] = {}
        self._next_step: dict[str, int] = {}

    def begin(self, rank: int, world_size: int) -> None:
        """Write who writes; the first line."""
        self.write(
            "begin",
            schema_version=SCHEMA_VERSION,
            rank=rank,
            world_size=world_size,
            pid=os.getpid(),
            hostname=socket.gethostname(),
        )

    def environment(self, environment: Environment) -> None:
        """Write what runs where."""
        self.write("environment", **environment.model_dump(mode="json"))

    def facts(self, facts: Mapping[str, JsonValue]) -> None:
        """Write what really runs; later facts of the same name win."""
        self.write("facts", facts=dict(facts))

    def readings(self, readings: Iterable[Reading]) -> None:
        """Write what collectors report. A series without steps goes on where that metric's last one ended.

        Raises:
            ValueError: a series and its steps differ in length.
            OptbenchError: two metrics of one name.
        """
        values: dict[str, float | int | None] = {}
        consecutive: dict[int, dict[str, list[float | int | None]]] = {}
        counted: dict[tuple[int, ...], dict[str, list[float | int | None]]] = {}
        for reading in readings:
            name = reading.info.name
            self._describe(reading)
            if reading.series is None:
                values[name] = reading.value
            elif reading.steps is not None:
                if len(reading.steps) != len(reading.series):
                    raise ValueError(f"{name}: {len(reading.series)} samples for {len(reading.steps)} steps")
                counted.setdefault(tuple(reading.steps), {})[name] = list(reading.series)
            elif reading.series:
                start = self._next_step.get(name, 0)
                consecutive.setdefault(start, {})[name] = list(reading.series)
                self._next_step[name] = start + len(reading.series)
        for start, samples in consecutive.items():
            self.write("samples", step=start, samples=samples)
        for steps, samples in counted.items():
            if steps:
                self.write("samples", steps=steps, samples=samples)
        if values:
            self.write("values", values=values)

    def _describe(self, reading: Reading) -> None:
        info = reading.info
        sampled = "value" if reading.series is None else "every step" if reading.steps is None else "now and then"
        known = self._described.get(info.name)
        if known is None:
            self.write("metric", info=info.model_dump(mode="json"))
            self._described[info.name] = (info, sampled)
        elif known != (info, sampled):
            raise OptbenchError(
                f"two metrics are called {info.name!r}; rename the one that evaluate() or your collector reports"
            )

    def error(
        self, outcome: Outcome, reason: str, *, traceback: str | None = None, step: int | None = None
    ) -> None:
        """Write why this rank stops; ``step``: how many steps it had done."""
        self.write("error", outcome=outcome, reason=reason, traceback=traceback, step=step)

    def note(self, text: str) -> None:
        """Write what a reader should know before trusting the numbers."""
        self.write("note", text=text)

    def end(self, outcome: Outcome = "completed") -> None:
        """Write that this rank reached its end; the last line."""
        self.write("end", outcome=outcome)


@dataclass(frozen=True)
class Line:
    """One line of a file, its checksum and number verified.

    Attributes:
        seq: its number, from 0.
        kind: see the module.
        time_unix_s: when it was written, by that machine's clock.
        fields: the rest. Numbers of ``samples`` and ``values`` are numbers again.
    """

    seq: int
    kind: str
    time_unix_s: float
    fields: dict[str, Any]


@dataclass(frozen=True)
class RankFile:
    """What could be read of a file.

    Attributes:
        lines: in order.
        torn: the last line is not whole, as a killed writer leaves it; it is not among ``lines``.
        ended: there is an ``end`` line.
        problems: lines that cannot be trusted, each with file, line and cause; left out of ``lines``.
    """

    lines: tuple[Line, ...]
    torn: bool
    ended: bool
    problems: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> list[Line]:
        """Return the lines of one kind."""
        return [line for line in self.lines if line.kind == kind]


def read_rank_file(path: Path, *, lenient: bool = False) -> RankFile:
    """Read a rank's file, or any file of such lines. A torn last line is accepted.

    Args:
        path: the file.
        lenient: leave corrupt lines out and say so in ``problems`` instead of raising.

    Raises:
        CorruptFileError: naming file and line: a wrong checksum, bad JSON, a line that is missing.
        FutureVersionError: a newer optbench wrote it; with ``lenient`` too, since what its lines mean is unknown.
        OSError: the file cannot be read.
    """
    whole, torn = split_lines(read_bytes(path))
    lines: list[Line] = []
    problems: list[str] = []
    expected = 0
    for index, data in enumerate(whole, start=1):
        try:
            line = _line(data)
            if line.seq != expected and not (problems and line.seq > expected):
                raise ValueError(f"expected seq {expected}, found {line.seq}")  # noqa: TRY301  # joins the others
            if line.kind == "begin":
                check_version(line.fields, f"{path}:{index}")
        except FutureVersionError:
            raise
        except (ValueError, CorruptFileError) as error:
            problem = f"{path}:{index}: corrupt line: {error}"
            if not lenient:
                raise CorruptFileError(problem) from error
            problems.append(problem)
            continue
        lines.append(line)
        expected = line.seq + 1
    ended = any(line.kind == "end" for line in lines)
    return RankFile(tuple(lines), torn, ended, tuple(problems))


def split_lines(data: bytes) -> tuple[list[bytes], bool]:
    """Return the whole lines and whether something follows them.

    A killed writer leaves a line without its newline; a power cut can leave zeros where data was promised.
    """
    whole, newline, tail = data.rstrip(b"\0").rpartition(b"\n")
    if not newline:
        return [], bool(data)
    return whole.split(b"\n"), bool(tail) or data.endswith(b"\0")


def _line(data: bytes) -> Line:
    fields = unseal(data)
    seq, kind, written = (fields.pop(key, None) for key in RESERVED[:3])
    if not isinstance(seq, int) or not isinstance(kind, str) or not isinstance(written, float | int):
        raise ValueError("seq, kind or time_unix_s is missing")  # noqa: TRY004  # about text, not types
    if kind == "samples":
        fields = _samples(fields)
    elif kind == "values":
        values = fields.get("values")
        if not isinstance(values, dict):
            raise ValueError("values is no object")
        fields["values"] = {name: number(value) for name, value in values.items()}
    return Line(seq, kind, float(written), fields)


def _samples(fields: dict[str, Any]) -> dict[str, Any]:
    samples, step, steps = fields.get("samples"), fields.get("step"), fields.get("steps")
    if not isinstance(samples, dict) or not all(isinstance(series, list) for series in samples.values()):
        raise ValueError("samples is no object of lists")
    if steps is not None:
        if not isinstance(steps, list) or not all(type(count) is int for count in steps):
            raise ValueError("steps is no list of integers")
        if any(len(series) != len(steps) for series in samples.values()):
            raise ValueError("samples and steps differ in length")
    elif type(step) is not int:
        raise ValueError("neither step nor steps says when the samples were taken")
    return {**fields, "samples": {name: [number(value) for value in series] for name, series in samples.items()}}


def append_lines(path: Path) -> tuple[LineWriter, RankFile]:
    """Open a file of lines, new or old, to append to; what a killed writer left torn is cut off.

    The caller sees to it that there is one writer.

    Raises:
        CorruptFileError: an earlier line is corrupt.
        OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        found = read_rank_file(path)
        whole, _ = split_lines(read_bytes(path))
        os.ftruncate(descriptor, sum(len(line) + 1 for line in whole))
        os.lseek(descriptor, 0, os.SEEK_END)
    except BaseException:
        os.close(descriptor)
        raise
    return LineWriter(path, descriptor, len(whole)), found
