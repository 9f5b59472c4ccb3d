"""The baton: how a driver and the ranks of arms take turns on one machine. Protocol and the ranks' side.

One file of the standard library, run by path with the arm's interpreter, from the driver's checkout, so
that an arm whose optbench is older can be driven. What it needs of torch and of ``harness`` it imports late.

A rank that torchrun started imports torch, connects to the driver's socket and forks a child for each launch; the
child inherits neither threads nor a device. Messages are lines of JSON; who waits for one sleeps.

to a rank: ``launch {number, port}``: fork a child, which joins the others and builds the engine; ``end``.
from a rank: ``hello {arm, rank, protocol, …}``, or ``refused {reason}``; ``lost {number, code}``, a child.
to a child: ``turn {lead, steps}``: a barrier, untimed steps, timed steps; ``end``: tell the peak and exit.
from a child: ``built``, ``turned {step_time_s, …}``, ``ended {peak_memory_bytes, …}``; ``failed {reason}``.
Ranks and children alike say ``here {arm, rank}`` first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import importlib.util
import json
import math
import mmap
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

PROTOCOL = 1
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ADDR_NO_RANDOMIZE, ASKED = 0x0040000, 0xFFFFFFFF  # linux/personality.h
AGAIN = "OPTBENCH_BATON_AGAIN"
"""Set where a rank has started itself again."""

_kept: list[mmap.mmap] = []
"""Addresses that stay taken."""
SCATTERED_BYTES = 32 * 2**20
STEPS_WITHOUT_END = 10**9
INSTALLED = {"site-packages", "dist-packages"}


class Line:
    """One end of a connection that carries JSON, a line a message."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._waiting = b""

    def send(self, kind: str, **fields: Any) -> None:
        """Send a message.

        Raises:
            OSError: the other end is gone.
        """
        self.connection.sendall(json.dumps({"kind": kind, **fields}).encode() + b"\n")

    def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait for a message, asleep.

        Raises:
            EOFError: the other end is gone.
            TimeoutError: nothing came in time.
        """
        self.connection.settimeout(timeout_s)
        while b"\n" not in self._waiting:
            try:
                data = self.connection.recv(65536)
            except ConnectionError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            self._waiting += data
        line, _, self._waiting = self._waiting.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def has_message(self) -> bool:
        """Say whether a message has come that was not yet asked for."""
        return b"\n" in self._waiting

    def gone(self, timeout_s: float) -> bool:
        """Wait until the other end is gone; return whether it is."""
        self.connection.settimeout(timeout_s)
        try:
            while self.connection.recv(65536):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Close it."""
        self.connection.close()


def connected(path: str) -> Line:
    """Return a connection to the driver."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    return Line(connection)


def main() -> int:
    """Be one rank of an arm's world until the driver says ``end``."""
    words = argparse.ArgumentParser()
    words.add_argument("--socket", required=True)
    words.add_argument("--arm", type=int, required=True)
    words.add_argument("--spec", required=True)
    words.add_argument("--path")
    words.add_argument("--gap", type=int, default=1)
    options = words.parse_args()
    alike = _addresses_alike()
    # What is loaded from here on lies so much lower: as in all arms, but not as in the sitting before.
    _kept.append(mmap.mmap(-1, mmap.PAGESIZE * options.gap, prot=0))
    _die_with_parent()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if options.path:
        sys.path[:0] = import_roots(options.path)
        os.environ["OPTBENCH_PLACE"] = options.path  # as `harness.user_path.PLACE`, which a checkout may not have
    rank = int(os.environ["RANK"])
    driver = connected(options.socket)
    driver.send("here", arm=options.arm, rank=rank)
    gc.disable()  # what imports make stays: a quarter of their time would go into walking it again and again
    try:
        about = _prepared(json.loads(options.spec), options.path)
    except Exception as error:  # noqa: BLE001  # whatever an arm's code raises is what the driver must tell
        traceback.print_exc()
        driver.send("refused", arm=options.arm, rank=rank, reason=f"{type(error).__name__}: {error}")
        return 1
    gc.enable()
    driver.send("hello", arm=options.arm, rank=rank, protocol=PROTOCOL, addresses_alike=alike, **about)
    children: dict[int, int] = {}
    signal.signal(signal.SIGCHLD, lambda *_: _reap(driver, children))
    while True:
        try:
            message = driver.receive()
        except EOFError:
            return 0
        if message["kind"] == "end":
            return 0
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until it is known whose child it is
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            driver.close()
            os._exit(_child(options, rank, message))
        children[child] = message["number"]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _addresses_alike() -> bool:
    """Lay this process out as others of its code, starting it again for that; return whether the system lets us.

    Where libraries lie is drawn anew for each program that starts, and inherited by forks. Caches and branch
    predictors go by addresses: ranks of the same code were 0.4 % apart (standard deviation) as long as they lived.
    """
    if sys.platform != "linux":
        return False
    personality = ctypes.CDLL(None).personality
    now = personality(ctypes.c_ulong(ASKED))
    if now == -1:  # not even that may be asked
        return False
    if now & ADDR_NO_RANDOMIZE:
        os.environ.pop(AGAIN, None)
        return True
    if AGAIN not in os.environ and personality(ctypes.c_ulong(now | ADDR_NO_RANDOMIZE)) != -1:
        os.environ[AGAIN] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # this very program
    return False


def _reap(driver: Line, children: dict[int, int]) -> None:
    """Tell the driver of children that have ended otherwise than well; what a dead one cannot tell itself."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            code, number = os.waitstatus_to_exitcode(ended[1]), children.pop(ended[0], None)
            if code:
                driver.send("lost", number=number, code=code)
    except OSError:  # no child is left, or no driver
        pass


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prepared(fields: dict[str, Any], path: str | None = None) -> dict[str, Any]:
    """Import all that the arm needs, so that a fork need not; return what stands in the record.

    Raises:
        ImportError: nothing of it came from the arm's own checkout.
    """
    import torch

    from harness import registry, user_path, worker

    user_path.extend()
    spec = _spec(fields)
    if spec.device == "cpu":
        # torch's optimizers import it when they are built: 1.5 s and more of every launch. Not beside a GPU: what
        # it asks of the device might initialise it, and a fork could no longer use it.
        import torch._dynamo

        _keep_to_own_cores()
    registry.WORKLOADS.get(spec.workload)
    registry.OPTIMIZERS.get(spec.optimizer)
    _strategy(spec.strategy)
    if path is not None:
        _refuse_code_from_elsewhere(Path(path).resolve(), (spec.workload, spec.optimizer, spec.strategy))
    return {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "harness": str(Path(worker.__file__).parent),
        "commit": _commit(Path(worker.__file__).parents[1]),
        "path": path,
        "path_commit": None if path is None else _commit(Path(path)),
        "cores": _cores_of(spec),
    }


def _refuse_code_from_elsewhere(root: Path, names: Sequence[str] = ()) -> None:
    """Raise where no module comes from the arm's checkout: other code would be compared with itself.

    What is named out of tree (``module:Class``) is found, not imported: that might initialise
    a device before forks.
    """
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    for module in (name.rpartition(":")[0] for name in names if ":" in name):
        if module.endswith(".py"):
            files[module] = module
            continue
        with contextlib.suppress(ImportError, ValueError):  # what cannot be found fails when it is built
            found = importlib.util.find_spec(module)
            files[module] = found.origin if found is not None else None
    own, strays = 0, []
    for name, file in files.items():
        if file is None or name == "__main__":
            continue
        if Path(file).resolve().is_relative_to(root) and not INSTALLED.intersection(Path(file).parts):
            own += 1
        elif _found_in(root, name):
            strays.append(f"{name} came from {file}")
    if strays or not own:
        told = "; ".join(strays[:3]) or "no module of it was imported"
        message = f"path {root}: {told}: name the folder that holds the packages to be imported"
        raise ImportError(message)


def import_roots(path: str) -> list[str]:
    """Return the folders in which a checkout's packages are looked for: its own, and ``src`` in the src layout.

    As `harness.user_path.roots`, which an arm's checkout may not have.
    """
    inner = Path(path) / "src"
    return [path, str(inner)] if inner.is_dir() and not (inner / "__init__.py").exists() else [path]


def _found_in(root: Path, name: str) -> bool:
    """Say whether a module of that name lies in a checkout."""
    places = [Path(each).joinpath(*name.split(".")) for each in import_roots(str(root))]
    return any(each.with_suffix(".py").is_file() or (each / "__init__.py").is_file() for each in places)


def share_of(cores: Sequence[int], rank: int, ranks: int) -> set[int]:
    """Return the cores that a rank keeps to: an equal run of them, or one, shared, where ranks outnumber them."""
    if len(cores) < ranks:
        return {cores[rank % len(cores)]}
    return set(cores[rank * len(cores) // ranks : (rank + 1) * len(cores) // ranks])


def _keep_to_own_cores() -> None:
    """Keep this rank, and the threads and children that it will have, off the cores of its peers.

    Left to the scheduler, where ranks and gloo's threads land differs from launch to launch: launches of the same
    code on two cores were 2.5 to 3.3 % apart, and 0.4 to 0.8 % with every rank on cores of its own.
    """
    rank, ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if ranks > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share_of(_cores(), rank, ranks))


def cores_timed_on(cores: Sequence[int], threads: int, ranks: int) -> Sequence[int]:
    """Return which of its cores a rank's steps are timed on: a rank alone keeps to as many as it has threads.

    Cores are not equally fast: hybrid ones by design, a virtual machine's where a neighbour has the other half of
    the hardware core. Left to the scheduler, an arm stays a whole launch where it happens to be: launches of one
    thread on two such cores were 2.0 % apart, and 0.4 % on one of them. Where there are peers, the threads that
    talk to them need cores, too.
    """
    return cores[:threads] if ranks == 1 else cores


def _cores_of(spec: Any) -> Sequence[int]:
    threads, ranks = getattr(spec, "threads", None) or 1, int(os.environ["LOCAL_WORLD_SIZE"])
    return cores_timed_on(_cores(), threads, ranks) if spec.device == "cpu" else _cores()


def keep_to_cores(chosen: Sequence[int], *, ranks: int = 1) -> None:
    """Keep this process there: its threads, and for a rank alone the first core to the thread that steps.

    Left to the scheduler, that thread stays a whole launch on whichever core it happens to be: launches of the
    same code with two threads on two cores were 2.4 to 6.8 % apart, and 0.6 to 2.0 % so. What it begins
    afterwards, threads and processes, shares its core until the next call.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    first, others = (chosen[:1], chosen[1:]) if ranks == 1 and len(chosen) > 1 else (chosen, chosen)
    for thread in _threads():
        try:
            os.sched_setaffinity(thread, first if thread in {0, os.getpid()} else others)
        except OSError:  # it has ended
            continue


def _threads() -> list[int]:
    tasks = Path("/proc/self/task")
    return [int(each.name) for each in tasks.iterdir()] if tasks.is_dir() else [0]


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _commit(root: Path) -> str | None:
    """Return the commit of the arm's checkout, marked where files were changed; None: it is none."""
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    found = [line for line in done.stdout.splitlines() if re.fullmatch(r"[0-9a-f]{7,64}(-dirty)?", line)]
    return found[-1] if found else None  # a wrapper of git may print lines of its own


def _strategy(name: str) -> Any:
    from harness import registry

    found = getattr(registry, "strategy", None)
    return found(name) if found is not None else registry.STRATEGIES.get(name)


def _spec(fields: dict[str, Any]) -> Any:
    """Return the arm's own RunSpec; the driver sends no defaults, which an older one may not know."""
    from harness.spec import RunSpec

    endless = {"steps": STEPS_WITHOUT_END, "warmup_steps": 0, "schedule": "constant"}
    return RunSpec.model_validate_json(json.dumps(fields | endless))


def scatter() -> list[object]:
    """Return memory of random sizes, to be kept: a forked launch must not inherit the layout of the one before."""
    chance = random.Random(os.urandom(16))  # noqa: S311  # a layout, no secret
    kept: list[object] = [mmap.mmap(-1, mmap.PAGESIZE * chance.randint(1, 4096)) for _ in range(4)]
    spent = 0
    while spent < SCATTERED_BYTES:
        size = int(math.exp(chance.uniform(math.log(64), math.log(2**21))))
        block = bytearray(size)
        if chance.random() < 0.5:  # holes in between
            kept.append(block)
        spent += size
    return kept


def _child(options: argparse.Namespace, rank: int, message: dict[str, Any]) -> int:
    """Be this rank in one launch; return the exit code."""
    _die_with_parent()
    driver = connected(options.socket)
    where = {"arm": options.arm, "rank": rank, "number": message["number"]}
    driver.send("here", **where)
    kept = scatter()
    try:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(message["port"])}
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        _take_turns(driver, where, json.loads(options.spec))
    except EOFError:
        return 1
    except BaseException as error:  # noqa: BLE001  # SystemExit too is an arm's failure
        traceback.print_exc()
        sys.stderr.flush()
        driver.send("failed", **where, reason=" ".join(f"{type(error).__name__}: {error}".split())[:500])
        return 1
    finally:
        sys.stdout.flush()
        del kept
    return 0


class _Marks:
    """A collector that notes when phases begin; the arm's own clock stamps them."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.phases: list[str] = []

    def mark(self, phase: Any, step: int) -> None:
        del step
        self.clock.note()
        self.phases.append(phase.value)

    def steps(self) -> tuple[list[float], dict[str, float]]:
        """Return each step's time and the mean of each phase, in seconds, and forget them."""
        gaps = self.clock.distances()
        times: list[float] = []
        sums: dict[str, float] = {}
        for number, phase in enumerate(self.phases[:-1]):
            if phase == "end":
                continue
            if phase == "data":
                times.append(0.0)
            times[-1] += gaps[number]
            sums[phase] = sums.get(phase, 0.0) + gaps[number]
        self.phases = []
        return times, {name: total / max(1, len(times)) for name, total in sums.items()}


def _started(spec: Any) -> tuple[Any, Any, Any]:
    """Join the world and build the engine; return both, and the workload."""
    import torch

    from harness.registry import OPTIMIZERS, WORKLOADS

    world = _joined(spec)
    with contextlib.suppress(ImportError):  # an older optbench of an arm's own
        from harness.verification import entering

        entering.require(OPTIMIZERS.get(spec.optimizer), spec)
    torch.manual_seed(spec.seed)
    random.seed(spec.seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(spec.seed % 2**32)
    workload = _constructed(WORKLOADS.get(spec.workload), spec)
    engine = _strategy(spec.strategy).start(workload, OPTIMIZERS.get(spec.optimizer), spec, world)
    gc.collect()
    gc.freeze()  # as in a run: later collections need not walk what exists by now
    return world, engine, workload


def _declared(spec: Any) -> dict[str, Any]:
    """Return what the arm's own optimizer declares: the driver may have other code of that name, or none."""
    from harness.registry import OPTIMIZERS

    traits = OPTIMIZERS.get(spec.optimizer).traits
    return {
        "compiled": bool(getattr(traits, "compiled", False)),  # traits of an older checkout may lack it
        "state_dtypes": [str(each) for each in getattr(traits, "state_dtypes", ())],
    }


def _take_turns(driver: Line, where: dict[str, int], fields: dict[str, Any]) -> None:
    import torch
    from torch import distributed

    from harness.collectors.timing import EventClock, HostClock
    from harness.interfaces import DataShard
    from harness.loop import steps

    began, resident = time.monotonic(), _status_bytes("VmRSS")
    spec = _spec(fields)
    world, engine, workload = _started(spec)
    shard = DataShard(world.rank, world.size, spec.global_batch or 1, spec.accumulation, spec.seed)
    host = world.device.type == "cpu"
    marks = _Marks(HostClock() if host else EventClock(world.device.type))
    stream = steps(engine, workload.batches(shard), spec, world.device, [marks])  # type: ignore[list-item]  # it only marks

    def synchronise() -> None:
        if not host:
            torch.accelerator.synchronize(world.device)

    parameters, done = _parameter_sums(engine), 0
    driver.send("built", **where, build_s=time.monotonic() - began, **_declared(spec))
    cores = _cores_of(spec)
    while (message := driver.receive())["kind"] == "turn":
        if host and done:  # not in the first turn: a compiler may use them all; later, threads may be new
            keep_to_cores(cores, ranks=world.size)
        if world.backend is not None:
            distributed.barrier()
        led = [next(stream) for _ in range(message["lead"])]
        synchronise()
        marks.steps()
        before, helpers = resource.getrusage(resource.RUSAGE_SELF), _helpers_s(os.getpid())
        timed = [next(stream) for _ in range(message["steps"])]
        synchronise()
        after, spent = resource.getrusage(resource.RUSAGE_SELF), max(0.0, _helpers_s(os.getpid()) - helpers)
        times, phases = marks.steps()
        if not done:
            getattr(engine, "verify_claims", lambda: None)()  # an older checkout's engine makes none
        done += len(led) + len(timed)
        driver.send(
            "turned",
            step_time_s=times,
            phase_s=phases,
            cpu_time_s=(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime + spent) / len(timed),
            involuntary_switches=after.ru_nivcsw - before.ru_nivcsw,
            losses=[None if each.loss is None else float(each.loss) for each in led + timed],
        )
    peak = _status_bytes("VmHWM") - resident if host else torch.accelerator.max_memory_allocated(world.device)
    if done and parameters and parameters == _parameter_sums(engine):
        raise RuntimeError(f"no parameter moved in {done} steps")
    facts = json.loads(json.dumps(dict(engine.facts()), default=str))
    about = _environment(world) if where["arm"] == where["rank"] == where["number"] == 0 else {}
    driver.send("ended", peak_memory_bytes=peak, facts=facts, environment=about)
    engine.close()
    if world.backend not in {None, "gloo"}:  # that one's end can deadlock (harness/leaving.py), and ours is near
        distributed.destroy_process_group()


def _environment(world: Any) -> dict[str, Any]:
    """Return what the first arm's launch ran on; nothing where its checkout does not tell."""
    try:
        from harness import environment

        found: dict[str, Any] = environment.capture(world).model_dump(mode="json")
    except Exception:  # noqa: BLE001  # a fact that cannot be had must not cost the comparison
        traceback.print_exc()
        return {}
    return found


def _parameter_sums(engine: Any) -> list[float]:
    """Return the sum of each parameter, or of this rank's part of it."""
    sums = []
    for category, tensor in engine.tensors():
        if getattr(category, "value", category) == "parameters":
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            sums.append(float(local.detach().float().sum()))
    return sums


def _joined(spec: Any) -> Any:
    """Join the world as a run of the arm's own checkout does, by the names of now or of earlier."""
    try:
        found = importlib.import_module("harness.world")
    except ModuleNotFoundError:
        return _joined_earlier(spec)
    return found.enter(spec)


def _joined_earlier(spec: Any) -> Any:
    """Join the world with the functions that a worker had before there was a module for it."""
    import torch

    from harness import worker

    found: Any = worker
    torch.set_num_threads(spec.threads or 1)
    world = found._join(spec)  # noqa: SLF001  # an older checkout has no other
    if hasattr(found, "_arithmetic"):
        found._arithmetic(spec)  # noqa: SLF001  # likewise
    else:  # before tf32 could be chosen
        found._exact_arithmetic()  # noqa: SLF001  # likewise
    return world


def _helpers_s(pid: int) -> float:
    """Return the CPU time, in seconds, of processes that an arm has started, such as a loader's workers."""
    total = 0.0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return 0.0
    for child in map(int, children):
        try:
            fields = Path(f"/proc/{child}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
        except OSError:
            continue
        total += sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK") + _helpers_s(child)
    return total


def _constructed(cls: Any, spec: Any) -> Any:
    from harness import contract

    return contract.construct(cls, spec)


def _status_bytes(name: str) -> int:
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
