from __future__ import annotations

import io
import json

from rich.console import Console

from harness.plan import plan
from harness.spec import RunSpec
from harness.verbs.display import SweepDisplay
from tests.golden.test_reports import RECORDS
from tests.unit.test_plan import machine


def test_in_a_pipe_each_run_is_one_plain_line_and_no_bar_is_drawn():
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    (cell,) = plan([RunSpec(workload="cnn", optimizer="adamw/foreach")], machine()).cells
    with SweepDisplay(console) as display:
        display.begin(cell, 1, 1)
        for done in (10, 20):
            display.steps(done)
        display.end(RECORDS[0])
        display.end(RECORDS[3])
        display.end(RECORDS[4])
        display.tell("Compiling something")
    assert console.file.getvalue().splitlines() == [
        "gpt-nano adamw/forloop ddp: 69.1 ms a step  [20261123T060001-aaaabbbbccccdddd]",
        "gpt-nano adamw/apex ddp: unsupported",
        "gpt-nano my_package.optimizers:SignMomentum ddp: diverged: the training loss is nan on rank 1 in step 3",
        "Compiling something",
    ]


def test_a_line_of_progress_tells_whatever_varies_between_the_runs():
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    specs = [
        RunSpec(workload="cnn", optimizer="adamw/foreach", seed=seed, precision=precision)
        for seed, precision in ((0, "fp32"), (0, "bf16"), (1, "fp32"))
    ]
    cells = plan(specs, machine()).cells
    with SweepDisplay(console, [cell.spec for cell in cells]) as display:
        for number, cell in enumerate(cells, 1):
            display.begin(cell, number, len(cells))
            assert f"precision={cell.spec.precision} seed={cell.spec.seed}" in display._label
            record = RECORDS[4].model_copy(update={"spec": json.loads(cell.spec.model_dump_json())})
            display.end(record)
    lines = console.file.getvalue().splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "cnn-small adamw/foreach single precision=fp32 seed=0",
        "cnn-small adamw/foreach single precision=bf16 seed=0",
        "cnn-small adamw/foreach single precision=fp32 seed=1",
    ]


def test_a_long_name_pushes_neither_the_count_nor_the_time_out_of_80_columns():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    specs = [
        RunSpec(workload="cnn", optimizer="adamw/foreach", strategy="zero-redundancy", lr=lr, seed=seed, steps=40)
        for lr in (0.1, 0.01)
        for seed in (10, 11)
    ]
    cells = plan(specs, machine()).cells
    display = SweepDisplay(console, [cell.spec for cell in cells])
    display.begin(cells[3], 4, 4)
    display.steps(20)
    console.print(display._progress.get_renderable())
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "20/40" in lines[0]
    assert "lr=0.01" in " ".join(lines)
    assert "seed=11" in " ".join(lines)


def test_on_a_terminal_the_bar_names_the_run_its_steps_and_the_time_left(monkeypatch):
    now = iter(float(second) for second in range(100))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    display = SweepDisplay(console)
    (cell,) = plan([RunSpec(workload="cnn", optimizer="adamw/foreach", steps=40)], machine()).cells
    display.begin(cell, 1, 2)
    display.steps(10)
    display.steps(20)
    console.print(display._progress.get_renderable())
    shown = " ".join(console.file.getvalue().split())
    assert "1/2 cnn-small adamw/foreach single" in shown
    assert "20/40" in shown
    assert "left" in shown
