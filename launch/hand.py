"""Starts one run by hand, as ``optbench run`` would, on this node of one or several: see ``launch/torchrun.sh``.

Standard library and optbench's own light modules alone. torchrun and its ranks write to this process's terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import launching, user_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

USAGE = """usage: bash launch/torchrun.sh PLAN.json [--results DIR]   (optbench plan SWEEP --write DIR makes one)
TORCHRUN_ARGS holds further words for torchrun, for two nodes say:
  TORCHRUN_ARGS="--nnodes=2 --node-rank=0 --master-addr=HOST --master-port=29501"   (--node-rank=1 on the other)
TORCHRUN_WAIT_S: seconds to wait for the other nodes, 300 unless told."""

JOIN_S = 300.0
"""How long to wait for other nodes, which people start one after the other."""

REMIND_S = 30.0
"""Between two lines that say what is waited for."""

POLL_S = 0.25


class WrongWordsError(ValueError):
    """The words given make no world."""


def main(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the plan; return torchrun's exit code, 2 for wrong words, 1 where no rank began."""
    if not words or not Path(words[0]).is_file():
        return _say(USAGE, 2)
    try:
        spec = json.loads(Path(words[0]).read_text(encoding="utf-8"))["spec"]
        ranks, threads, on_cpu = int(spec["world_size"]), str(spec["threads"]), spec["device"] == "cpu"
    except (OSError, ValueError, KeyError, TypeError):
        return _say(f"{words[0]}: is not a plan; optbench plan SWEEP --write DIR makes one", 2)
    try:
        further = shlex.split(environment.get("TORCHRUN_ARGS", ""))
        line, where, nodes = torchrun(ranks, further)
        wait_s = _seconds(environment.get("TORCHRUN_WAIT_S")) or (JOIN_S if nodes > 1 else launching.BEGIN_S)
    except ValueError as error:
        return _say(f"TORCHRUN_ARGS: {error}", 2)
    settings = launching.clean(environment) | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PYTHONSAFEPATH": "1",
        user_path.VARIABLE: environment.get(user_path.VARIABLE) or str(Path.cwd()),
    }
    if on_cpu:
        settings |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory(prefix="optbench-hand-") as folder:
        settings[launching.BEGUN] = folder
        command = [sys.executable, "-m", "torch.distributed.run", *line, "-m", "harness.worker", *words]
        with subprocess.Popen(command, env=settings) as world:
            return _watched(world, Path(folder), wait_s, nodes, where, environment)


def torchrun(ranks: int, further: Sequence[str]) -> tuple[list[str], str, int]:
    """Return torchrun's words for this node, where its rendezvous is, and the number of nodes.

    Args:
        ranks: of the plan, over all nodes.
        further: words that the user gives torchrun.

    Raises:
        WrongWordsError: they make no world of so many ranks.
    """
    given = _options(further)
    try:
        nodes = int(given.get("nnodes", "1"))
    except ValueError:
        raise WrongWordsError(f"--nnodes={given['nnodes']}: write one number of nodes, --nnodes=2") from None
    if nodes < 1 or ranks % nodes:
        raise WrongWordsError(f"--nnodes={nodes}: the plan's {ranks} ranks cannot be shared equally")
    words = [] if "nproc-per-node" in given else [f"--nproc-per-node={ranks // nodes}"]
    if nodes == 1:
        alone = {"master-port", "rdzv-endpoint", "rdzv-backend"}.isdisjoint(given)
        where = given.get("rdzv-endpoint") or f"{given.get('master-addr', '127.0.0.1')}:{given.get('master-port')}"
        words = ["--nnodes=1", *words, *(["--standalone"] if alone else []), *further]
        return words, "a port of torchrun's own choice (--standalone)" if alone else where, 1
    endpoint = given.get("rdzv-endpoint")
    if endpoint is None:
        missing = [f"--{name}" for name in ("node-rank", "master-addr", "master-port") if name not in given]
        if missing:
            raise WrongWordsError(
                f"{nodes} nodes need {', '.join(missing)} too: the same address and port on every node, "
                "and ranks of nodes from 0"
            )
        endpoint = f"{given['master-addr']}:{given['master-port']}"
    return [*words, *further], endpoint, nodes


def _options(words: Sequence[str]) -> dict[str, str]:
    """Return options by name with hyphens, from ``--name=value`` and ``--name value``."""
    found = {}
    for position, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = words[position + 1 : position + 2]
            found[name.replace("_", "-")] = value if equals else "".join(following)
    return found


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise WrongWordsError(f"TORCHRUN_WAIT_S={text}: write a number of seconds") from None


def _watched(
    world: subprocess.Popen[Any],
    folder: Path,
    wait_s: float,
    nodes: int,
    where: str,
    environment: Mapping[str, str],
) -> int:
    """Return torchrun's exit code; end it where no rank begins in time."""
    started, next_s, others = time.monotonic(), REMIND_S, ""
    if nodes > 1:
        others = f"; {nodes} nodes must start this, each with its own --node-rank, and reach {where}"
        _say(f"waiting for all {nodes} nodes at {where}, {wait_s:g} s at most", 0)
    try:
        while not launching.begun(folder):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return _code(world.wait(POLL_S))
            waited_s = time.monotonic() - started
            if waited_s > wait_s:
                _end(world)
                return _say(f"{launching.not_begun(waited_s, where, environment, None)}{others}", 1)
            if nodes > 1 and waited_s > next_s:
                next_s += REMIND_S
                _say(f"still waiting after {waited_s:.0f} s{others}", 0)
        return _code(world.wait())
    except KeyboardInterrupt:
        _end(world)
        return 130


def _end(world: subprocess.Popen[Any]) -> None:
    """End torchrun, which ends its ranks; those that it leaves die with it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        world.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            world.wait(5)
            return


def _code(code: int) -> int:
    return 128 - code if code < 0 else code


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
