"""What must open on a laptop without torch, must not import it."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import {module}
sys.exit("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    "module",
    [
        "harness.spec",
        "harness.record",
        "harness.plan",
        "harness.store",
        "harness.summary",
        "harness.reports.table",
        "harness.reports.comparison",
        "harness.reports.document",
        "harness.reports.markdown",
        "harness.reports.stored",
        "harness.reports.svg",
        "harness.compare",
        "harness.cli",
        "harness.optimizers.torch_native, harness.optimizers.torch_compiled, harness.optimizers.apex",
        "harness.optimizers.deepspeed, harness.optimizers.custom",
        "harness.strategies.torch",
        "harness.kernels",
        "harness.doctor",
        "launch.sweep",
        "workloads",
    ],
)
def test_torch_is_not_imported_by(module):
    assert subprocess.run([sys.executable, "-P", "-c", PROGRAM.format(module=module)], check=False).returncode == 0


@pytest.mark.parametrize("words", [["--help"], ["list", "workloads"], ["list", "strategies"], ["run", "--help"]])
def test_verbs_that_need_no_torch_do_not_import_it(words):
    program = f"""
import sys
sys.argv = ["optbench", *{words!r}]
from harness.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
