"""Steps of every registered optimizer that runs here: pytest tests/benchmarks/test_steps.py --benchmark-enable."""

import pytest

from harness.registry import OPTIMIZERS
from optbench.plugin import Bench

NAMES = [name for name in OPTIMIZERS.names() if ":" not in name]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, where its compiler is imported
@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("name", NAMES)
def test_a_step(request, benchmark, name):
    Bench(request, name, {"workload": "linear_regression", "threads": 1}).step()
