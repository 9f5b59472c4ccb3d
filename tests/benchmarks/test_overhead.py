"""The costs of overhead.py as pytest-benchmark sees them: pytest tests/benchmarks --benchmark-enable."""

import subprocess
import sys

import pytest

from tests.benchmarks.overhead import step_arms


@pytest.fixture(scope="module")
def arms():
    return dict(zip(("harness", "bare", "turn_end"), step_arms("cnn", "large", 10), strict=True))


@pytest.mark.benchmark(group="ten steps")
@pytest.mark.parametrize("arm", ["harness", "bare"])
def test_ten_steps(benchmark, arms, arm):
    benchmark(arms[arm])
    arms["turn_end"]()


@pytest.mark.benchmark(group="start")
@pytest.mark.parametrize("words", [("--help",), ("list", "workloads")])
def test_verbs_without_torch(benchmark, words):
    benchmark.pedantic(
        lambda: subprocess.run([sys.executable, "-m", "harness.cli", *words], check=True, capture_output=True),
        rounds=5,
    )
