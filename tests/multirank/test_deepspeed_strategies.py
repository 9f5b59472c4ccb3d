"""DeepSpeed's engines on two real ranks: the losses of one, whatever stage, optimizer and precision."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cache, kernels

pytestmark = pytest.mark.timeout(1500)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

BOUND = 1e-5
"""Largest relative difference of a loss from ``single``'s in fp32.

Over 20 steps of gpt nano: 2e-7; DeepSpeed's Muon 4e-6.
"""
NORM_BOUND = 1e-4
"""Of a gradient norm (over 20 steps of gpt nano: 9e-7)."""
BF16_BOUND = 2e-2
"""bfloat16 keeps 8 bits; masters start from weights rounded to it (with gpt nano: 4e-4)."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What deepspeed_engines.py found, all of it in one world."""
    kernels.ensure(["fused_adam", "cpu_adam", "cpu_lion", "cpu_adagrad"], print, "cpu")
    out = tmp_path_factory.mktemp("engines")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
    done = subprocess.run(
        [sys.executable, *words, str(HERE / "deepspeed_engines.py"), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in out.glob("*.json")}


def difference(values, expected):
    assert len(values) == len(expected)
    return max(abs(a - b) / abs(b) for a, b in zip(values, expected, strict=True))


def test_losses_and_gradient_norms_are_those_of_one_rank(answers):
    wrong, expected = [], {}
    for label, name, losses, norms in answers["grid"]:
        if name == "single":
            expected[label] = losses, norms
        whole, whole_norms = expected[label]
        if difference(losses, whole) > BOUND:
            wrong.append(f"{label} {name}: losses differ by {difference(losses, whole)}")
        if set(whole_norms) == {None}:
            assert norms == whole_norms
        elif difference(norms, whole_norms) > NORM_BOUND:
            wrong.append(f"{label} {name}: norms differ by {difference(norms, whole_norms)}")
    assert not wrong, "\n".join(wrong)


def test_sixteen_bit_precisions_stay_within_their_bound_and_have_the_dtypes_they_name(answers):
    wrong, expected = [], {}
    for label, name, losses, norms, told in answers["precisions"]:
        if name == "single":
            expected[label] = losses
        elif difference(losses, expected[label]) > BF16_BOUND or (norms[0] is not None and min(norms) <= 0):
            wrong.append(f"{label} {name}: losses differ by {difference(losses, expected[label])}")
        if label == "fp32 accumulation" or name == "single":
            continue
        precision = label.partition(" ")[0]
        assert told["parameters"] == (["float32"] if precision == "bf16" else ["bfloat16"]), label
        assert told.get("master", ["bfloat16" if precision == "bf16-pure" else "float32"]) == [
            "bfloat16" if precision == "bf16-pure" else "float32"
        ], f"{label} {name}"
        assert told["autocast"] == ("bfloat16" if precision == "bf16" else None)
    assert not wrong, "\n".join(wrong)
    wrappers = [told for label, name, *_, told in answers["precisions"] if label == "fp32 accumulation"]
    assert wrappers[1].endswith(".BF16_Optimizer")
    assert wrappers[2].endswith(".DeepSpeedZeroOptimizer")


def test_a_restored_engine_repeats_the_losses(answers):
    for name, (first, again, other) in answers["restored"].items():
        assert first == again == other, name


def test_ranks_hold_their_shares_and_together_the_state_of_one(answers):
    elements = answers["held"]["zero0"]["facts"]["parameters"]
    for name, found in answers["held"].items():
        stage, ranks = int(name[4]), found["ranks"]
        state = sum(rank["state"] for rank in ranks)
        copies = 2 if stage == 0 else 1
        assert 2 * elements * copies <= state <= 2.02 * elements * copies, name
        for rank in ranks:
            assert rank["state"] == state / 2
            # A shard and, below the persistence threshold, the whole of it too.
            assert rank["parameters"] == pytest.approx(elements * (1.5 if stage == 3 else 1), rel=0.01)
            assert rank.get("master", 0) == pytest.approx(elements / 2 if stage else 0, rel=0.01)


def test_evaluation_sees_gathered_parameters_in_eval_mode(answers):
    values = [found["values"]["validation_loss"] for found in answers["held"].values()]
    assert max(values) - min(values) < 1e-5 * values[0]
    assert not any(found["training"] for found in answers["held"].values())


def test_facts_name_the_config_the_wrapper_and_the_real_optimizer(answers):
    for name, found in answers["held"].items():
        facts = found["facts"]
        assert facts["deepspeed_config"]["gradient_clipping"] == 0.0
        assert facts["deepspeed_config"]["zero_optimization"]["stage"] == int(name[4])
        assert facts["optimizer"]["class"] == "torch.optim.adamw.AdamW"
        assert facts["optimizer"]["arguments"]["foreach"] is True
        decays = [group["weight_decay"] for group in facts["optimizer"]["groups"]]
        assert decays == [0.01, 0.0]
        assert all(group["elements"] > 0 for group in facts["optimizer"]["groups"])
        assert facts["deepspeed_accelerator"] == "cpu"
        assert (facts["optimizer_wrapper_class"] is None) == (name == "zero0")


def test_undeclared_optimizers_run_where_flat_partitions_change_nothing_and_are_refused_elsewhere(answers):
    found = answers["undeclared"]
    for name in ("zero0", "zero1", "zero3"):
        assert difference(found[f"Elementwise {name}"], found["Elementwise single"]) < BOUND
    for kind in ("Lamb", "Shaped", "Early"):
        assert difference(found[f"{kind} zero0"], found[f"{kind} single"]) < BOUND, kind
    for name in ("zero1", "zero3"):
        assert "no element-wise algorithm" in found[f"Lamb {name}"]
        assert "token_embedding.weight" in found[f"Lamb {name}"]
        assert "cannot step on flat partitions" in found[f"Shaped {name}"]
        assert "makes its state when constructed" in found[f"Early {name}"]
        assert all("--strategy" in found[f"{kind} {name}"] for kind in ("Lamb", "Shaped", "Early"))


def test_the_comparison_goes_red_without_gradient_clipping_in_the_config(answers):
    red = answers["red"]
    for stage in range(4):
        losses = red[f"zero{stage} without gradient_clipping"]
        assert difference(losses, red["single"]) > 50 * BOUND
        assert difference(losses, red["zero0 without gradient_clipping"]) < BOUND  # stages agree in the error


def test_the_comparison_goes_red_for_lamb_forced_through_zero1(answers):
    red = answers["red"]
    assert difference(red["lamb zero0"], red["lamb single"]) < BOUND
    assert difference(red["lamb zero1"], red["lamb single"]) > 100 * BOUND


def test_a_kernel_build_that_fails_costs_only_the_cells_that_need_it(optbench, tmp_path):
    compiler = tmp_path / "broken-c++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec c++ --version\necho the compiler is broken >&2\nexit 1\n',
        encoding="utf-8",
    )
    compiler.chmod(0o755)
    known = cache.cache_dir() / "machine"
    if known.exists():  # what can run here need not be found out again
        shutil.copytree(known, tmp_path / "cache" / "machine")
    ran = optbench.run(
        *("--workload", "linear_regression", "--strategy", "zero2", "--nproc", "1", "--steps", "3"),
        *("--optimizer", "adamw/deepspeed", "--optimizer", "adamw/foreach", "--json"),
        env={"CXX": str(compiler), "OPTBENCH_CACHE": str(tmp_path / "cache")},
    )
    broken, sound = ran.json["runs"]
    assert sound["outcome"] == "completed", ran.err
    assert broken["outcome"] != "completed"
    (log,) = (tmp_path / "cache").glob("kernels/*/fused_adam.log")
    assert str(log) in broken["reason"]
    assert "the compiler is broken" in log.read_text(encoding="utf-8")


@pytest.mark.exhaustive
def test_the_first_run_on_a_machine_builds_deepspeeds_kernels_before_it_proves_them(optbench, tmp_path):
    ran = optbench.run(
        *("--workload", "linear_regression", "--strategy", "single", "--steps", "3", "--verify", "--json"),
        *("--optimizer", "adamw/deepspeed", "--optimizer", "adamw/foreach"),
        env={"OPTBENCH_CACHE": str(tmp_path / "cache")},
        timeout=1400,
    )
    assert ran.code == 0, ran.err
    for row in ran.json["runs"]:
        proof = optbench.show(row["run_id"])["verification"]
        assert (row["outcome"], proof["outcome"]) == ("completed", "passed"), proof
    said = [
        "adamw/foreach: proved right",
        "Compiling fused_adam",
        "Compiled fused_adam",
        "adamw/deepspeed: proved",
    ]
    places = [ran.err.index(each) for each in said]
    assert places == sorted(places), ran.err
