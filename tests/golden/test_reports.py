"""What people see, compared with stored text; `UPDATE_GOLDEN=1 pytest tests/golden` writes it anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from harness.plan import plan
from harness.record import Metric, RunRecord
from harness.reports import quantities
from harness.reports.table import render
from harness.spec import RunSpec
from harness.verbs.planning import command_lines, table
from harness.verbs.showing import run as show_run
from tests.unit.test_plan import machine

HERE = Path(__file__).parent


def text_of(*renderables, width: int = 80) -> str:
    console = Console(width=width, no_color=True, force_terminal=False, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123  # closed below
    try:
        for renderable in renderables:
            console.print(renderable, crop=False)
        return console.export_text()
    finally:
        console.file.close()


def width_of(text: str) -> int:
    """Columns of the widest line, but for commands, which are never broken: they are to be copied."""
    return max(len(line) for line in text.splitlines() if " optbench " not in line)


def matches(name: str, text: str) -> None:
    path = HERE / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def metric(name: str, value, unit: str = "s", **more) -> Metric:
    return Metric(name=name, unit=unit, better="lower", value=value, **more)


def record(
    optimizer: str, number: int, outcome="completed", reason=None, step=0.0691, loss=3.217, **spec
) -> RunRecord:
    base = {
        "workload": "gpt", "size": "nano", "optimizer": optimizer, "strategy": "ddp", "world_size": 2,
        "device": "cpu", "precision": "fp32", "global_batch": 16, "steps": 40, "seed": 0,
    }  # fmt: skip
    metrics = [
        metric(
            "step_time_s", step, quantiles={"p10": step * 0.9, "p50": step, "p90": step * 1.1, "p99": step * 2}
        ),
        metric("optimizer_time_s", step / 20),
        metric("optimizer_state_bytes", 8_260_608, "B"),
        metric("peak_allocated_bytes", None, "B"),
        metric("rss_peak_bytes", 434_000_000, "B"),
        metric("train_loss", loss, "1", series=(4.0, loss), over_steps="last"),
        metric("validation_loss", loss - 0.3, "1", series=(loss - 0.3,), series_steps=(40,), over_steps="last"),
    ]
    done = outcome == "completed"
    facts = {"optimizer": {"class": optimizer.partition("/")[0], "arguments": {"lr": 0.001}}, "ran_as": "foreach"}
    facts["step_operators"] = {"aten.add_.Tensor": 3 if optimizer != "adamw/fused" else 4}
    return RunRecord(
        run_id=f"20261123T06000{number}-aaaabbbbccccdddd",
        spec={**base, **spec},
        outcome=outcome,
        reason=reason,
        facts=facts if done else {},
        metrics={m.name: m for m in metrics} if done else {},
    )


RECORDS = [
    record("adamw/forloop", 1),
    record("adamw/foreach", 2, step=0.0712),
    record("adamw/fused", 3, step=0.0654),
    record("adamw/apex", 4, "unsupported", "Apex is not installed; build it from source: git clone …"),
    record("my_package.optimizers:SignMomentum", 5, "diverged", "the training loss is nan on rank 1 in step 3"),
    record("adamw/deepspeed", 6, "timed_out", "not done after timeout_s = 60; the ranks' stacks are in results/…"),
    record("adamw/fused", 7, step=0.0032, loss=1.5, workload="cnn", size="small"),
    record("adamw/fused", 8, step=0.0031, loss=1.4, workload="cnn", size="small", seed=1),
]


def test_a_state_that_is_a_lower_bound_never_stands_as_a_plain_number():
    found = record("mine:Wrapper", 1)
    state = found.metrics["optimizer_state_bytes"].model_copy(update={"at_least": True})
    hidden = metric("unclaimed_state_bytes", 4 << 20, "B")
    found = found.model_copy(update={"metrics": {**found.metrics, state.name: state, hidden.name: hidden}})
    text = text_of(render([found]))
    assert ">= 7.9 MiB" in text
    assert "its state is at least 7.9 MiB: 4.0 MiB more outlive a step" in " ".join(text.split())


def test_the_table_fits_80_columns_and_a_pipe():
    text = text_of(render(RECORDS))
    assert max(len(line) for line in text.splitlines()) <= 80
    matches("table.txt", text)


def test_a_runs_page_fits_80_columns():
    text = text_of(show_run(RECORDS[0]))
    assert max(len(line) for line in text.splitlines()) <= 80
    matches("show.txt", text)


def traced() -> RunRecord:
    """A run with a ledger, 18 % of whose peak nobody claims."""
    mib = 1 << 20
    held = {"parameters": 4, "gradients": 4, "state": 8, "communication": 4, "activations": 20, "temporaries": 4}
    expected = {"parameters": 4, "gradients": 4, "state": 8, "master": 0}
    found = {
        "ledger_peak_bytes": 49 * mib,
        **{f"ledger_{name}_bytes": size * mib for name, size in held.items()},
        **{f"ledger_{name}_at_peak_bytes": size * mib for name, size in held.items() if name != "temporaries"},
        **{f"ledger_{name}_expected_bytes": size * mib for name, size in expected.items()},
        "ledger_unattributed_bytes": 10 * mib,
        "ledger_unattributed_at_peak_bytes": 9 * mib,
        "ledger_unattributed_growth_bytes": mib,
        "ledger_rss_above_imports_bytes": 200 * mib,
        "communication_payload_bytes": 12 * mib,
        "communication_wire_bytes": 8 * mib,
        "communication_all_reduce_per_step": 1,
        "communication_all_reduce_payload_bytes": 4 * mib,
        "communication_all_reduce_expected_bytes": 4 * mib,
        "communication_all_reduce_float32_payload_bytes": 4 * mib,
        "communication_all_gather_per_step": 11.5,
        "communication_all_gather_payload_bytes": 8 * mib,
        "communication_all_gather_bfloat16_payload_bytes": 2 * mib,
        "communication_all_gather_float32_payload_bytes": 6 * mib,
        "communication_broadcast_payload_bytes": 0,
        "communication_time_s": 0.004,
        "communication_hidden_time_s": 0.003,
    }
    base = record("adamw/foreach", 9)
    metrics = {name: metric(name, size, "B", per_rank=(size, size)) for name, size in found.items()}
    return base.model_copy(update={"metrics": {**base.metrics, **metrics}})


def test_a_traced_runs_page_tells_memory_and_communication_beside_what_was_expected():
    text = text_of(show_run(traced()))
    assert max(len(line) for line in text.splitlines()) <= 80
    matches("show-traced.txt", text)


def test_the_table_flags_memory_that_nobody_claims():
    assert "18% of the peak is unattributed" in " ".join(text_of(render([traced()])).split())


def test_a_plan_for_a_machine_with_eight_gpus_names_commands_and_reasons():
    specs = [
        RunSpec(workload="gpt", size="small", optimizer=name, strategy="ddp", world_size=8, lr=0.001)
        for name in ("adamw/foreach", "adamw/apex")
    ]
    found = plan(specs, machine(accelerators=8))
    matches("plan.txt", text_of(table(found)) + "\n".join(command_lines(found, {})) + "\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.5, "1.50 s"), (0.0697, "69.7 ms"), (247e-6, "247 us"), (3e-8, "30.0 ns"), (0.0, "0 s"), (None, "-")],
)
def test_durations_have_three_digits_and_a_prefix(value, text):
    assert quantities.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (8_260_608, "7.9 MiB"), (434_000_000, "414 MiB"), (None, "-")],
)
def test_sizes_have_binary_prefixes(value, text):
    assert quantities.size(value) == text
