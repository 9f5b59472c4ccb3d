"""How long a list of 10,000 runs takes: from the files alone, and from the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.index import INDEX
from harness.record import Environment, Metric, RunRecord
from harness.sealed import seal
from harness.spec import RunSpec
from harness.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

RUNS = 10_000


def record(steps: int = 100, metrics: int = 30) -> RunRecord:
    """A record the size of a real one: about 15 KB."""
    spec = RunSpec(workload="gpt", size="nano", optimizer="adamw/fused", world_size=2, steps=steps)
    curve = tuple(5.5 - 0.012345678 * step for step in range(steps))
    fields: dict[str, Any] = {"unit": "s", "better": "lower", "per_rank": (0.0123456, 0.0123457)}
    quantiles = {"p10": 0.0111111, "p50": 0.0122222, "p90": 0.0133333, "p99": 0.0144444}
    names = ["step_time_s", *(f"metric_{number}_s" for number in range(metrics))]
    found = {name: Metric(name=name, value=0.0123456, quantiles=quantiles, **fields) for name in names}
    loss = Metric(name="train_loss", value=curve[-1], series=curve, keep_series=True, **fields)
    packages = {f"package-{number}": "1.2.3" for number in range(60)}
    return RunRecord(
        run_id="",
        spec=spec.model_dump(mode="json"),
        outcome="completed",
        environment=Environment(software={"packages": packages}, command=("optbench", "run")),
        metrics={**found, "train_loss": loss},
        started_unix_s=1.8e9,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root: Path = tmp_path_factory.mktemp("results")
    document = record().model_dump()
    for number in range(RUNS):
        folder = root / f"20261101T000000-{number:016d}"
        folder.mkdir()
        (folder / "manifest.json").write_bytes(seal({**document, "run_id": folder.name}) + b"\n")
    return Store(root)


def test_listing_from_the_files_alone(benchmark: BenchmarkFixture, store: Store) -> None:
    def forget() -> None:
        (store.root / INDEX).unlink(missing_ok=True)

    rows = benchmark.pedantic(store.runs, setup=forget, rounds=3)
    assert len(rows) == RUNS
    assert all(row.step_time_s == 0.0123456 and row.problem is None for row in rows)


def test_listing_from_the_cache(benchmark: BenchmarkFixture, store: Store) -> None:
    expected = store.runs()
    assert benchmark.pedantic(store.runs, rounds=5) == expected
