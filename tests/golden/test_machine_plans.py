"""What would run on machines with GPUs: refusals are data, so no GPU is needed to know them."""

from __future__ import annotations

import pytest

from harness.registry import OPTIMIZERS
from harness.verbs.matrix import base_and_axes, grid, table
from tests.golden.test_reports import matches, text_of
from tests.unit import synthetic_machines

ALGORITHMS = ("adamw", "lamb", "lbfgs", "muon", "rmsprop", "adamw-schedule-free")
"""With every family among their implementations, and every reason that a machine can give."""


@pytest.mark.parametrize("name", synthetic_machines.NAMES)
def test_the_plan_for_a_machine_with_gpus(name):
    machine = synthetic_machines.read(name)
    names = [each for each in OPTIMIZERS.names() if each.partition("/")[0] in ALGORITHMS]
    base, axes = base_and_axes({"optimizer": names, "workload": ["gpt"]}, ())
    matches(f"matrix-{name}.txt", text_of(table(grid(base, axes, machine, machine.memory_bytes))))
