"""Trains many cells in few torchrun worlds."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.registry import strategy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.spec import RunSpec

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclasses.dataclass(frozen=True)
class Ran:
    """What became of a cell, by rank; a rank that ended without a word is left out."""

    spec: RunSpec
    patch: str | None
    ranks: tuple[dict[str, Any], ...]
    log: str

    @property
    def outcome(self) -> str:
        """The worst of the ranks'."""
        outcomes = {rank["outcome"] for rank in self.ranks}
        return next((word for word in ("failed", "unsupported", "completed") if word in outcomes), "failed")

    @property
    def reason(self) -> str | None:
        found = [rank["reason"] for rank in self.ranks if rank.get("reason")]
        return found[0] if found else (self.log[-2000:] if self.outcome == "failed" else None)

    @property
    def took_s(self) -> float:
        return max(rank.get("took_s", 0.0) for rank in self.ranks)

    @property
    def losses(self) -> list[float]:
        assert self.outcome == "completed", f"{self}: {self.reason}"
        return self.ranks[0]["losses"]

    def __str__(self) -> str:
        spec = self.spec
        words = [spec.optimizer, spec.strategy, spec.precision, f"{spec.world_size} ranks"]
        words += [f"accumulation {spec.accumulation}"] if spec.accumulation > 1 else []
        words += [f"clipped at {spec.clip_norm}"] if spec.clip_norm else []
        words += [json.dumps(spec.strategy_options)] if spec.strategy_options else []
        return " ".join([*words, *([self.patch] if self.patch else [])])


def run(specs: Sequence[RunSpec], patches: Sequence[str | None] | None = None, limit_s: float = 900) -> list[Ran]:
    """Train every cell; those of one world size share torchrun worlds, a new one after each that failed.

    A cell of one rank that knows no world is trained by every rank of the first one there is: a world of its own
    would take longer to start.
    """
    found: dict[int, Ran] = {}
    patches = [None] * len(specs) if patches is None else patches
    sizes = {spec.world_size or 1 for spec in specs if not strategy(spec.strategy).one_rank} or {1}
    placed = [min(sizes) if strategy(each.strategy).one_rank else each.world_size or 1 for each in specs]
    for size in sorted(sizes):
        waiting = [index for index, place in enumerate(placed) if place == size]
        while waiting:
            done = _world([(specs[index], patches[index]) for index in waiting], size, limit_s)
            assert done, "a world trains at least one cell"
            found |= dict(zip(waiting, done, strict=False))
            waiting = waiting[len(done) :]
    return [found[index] for index in range(len(specs))]


def _world(wanted: Sequence[tuple[RunSpec, str | None]], size: int, limit_s: float) -> list[Ran]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        cells = [{**spec.model_dump(mode="json"), "patch": patch} for spec, patch in wanted]
        (out / "cells.json").write_text(json.dumps(cells), encoding="utf-8")
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        environment = {**os.environ, "PYTHONWARNINGS": "", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{HERE}"
        with (out / "log").open("w", encoding="utf-8") as log:
            subprocess.run(
                [sys.executable, *words, str(HERE / "world.py"), str(out / "cells.json"), folder],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=limit_s,
                check=False,
            )
        told = (out / "log").read_text(encoding="utf-8", errors="replace")
        by_rank = [_lines(out / f"rank-{rank}.jsonl") for rank in range(size)]
    ended = max(len(lines) for lines in by_rank)
    clean = min(len(lines) for lines in by_rank) == len(wanted)
    # The cell in which a world ended counts as tried, whether or not a rank still could say why.
    tried = len(wanted) if clean else max(1, ended)
    return [
        Ran(
            spec=wanted[index][0],
            patch=wanted[index][1],
            ranks=tuple(lines[index] if index < len(lines) else _silent(told) for lines in by_rank),
            log=told,
        )
        for index in range(tried)
    ]


def _silent(log: str) -> dict[str, Any]:
    return {"outcome": "failed", "reason": None if not log else f"the rank ended without a word: {log[-1500:]}"}


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]
