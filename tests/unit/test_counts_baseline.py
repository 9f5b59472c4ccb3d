"""Baselines of counts: what moved is named, and what cannot be compared never passes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.counts import baseline
from harness.counts.comparing import compare_counts
from harness.counts.model import MEANING, Counts, RankResult, together
from harness.errors import CorruptFileError
from harness.gating import counted
from harness.spec import RunSpec

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
NUMBERS = st.integers(0, 10**12) | st.floats(0, 1e9, allow_nan=False).map(lambda each: round(each, 1))
RANK = st.dictionaries(st.sampled_from(list(MEANING)), st.dictionaries(NAMES, NUMBERS, max_size=4), max_size=4)


def counts(*ranks, torch="2.13.0", device="cpu") -> Counts:
    return together([RankResult(torch=torch, device=device, counts=each) for each in ranks]).counts


def spec(**fields) -> RunSpec:
    return RunSpec(workload="gpt", optimizer="adamw/fused", world_size=1, device="cpu", threads=1, **fields)


def ops(**numbers):
    return {"operators": {f"aten::{name}": number for name, number in numbers.items()}}


@given(st.lists(RANK, min_size=1, max_size=3))
def test_what_was_written_is_read_back(tmp_path_factory, ranks):
    path = tmp_path_factory.mktemp("baseline") / "counts.json"
    entry = baseline.entry(spec(), counts(*ranks))
    baseline.write(path, {"a cell": entry})
    assert baseline.read(path) == {"a cell": entry}


@given(st.lists(RANK, min_size=1, max_size=3))
def test_equal_counts_have_no_change_and_another_number_is_one(ranks):
    assert compare_counts(counts(*ranks), counts(*ranks)) == []
    more = [{**each, "operators": {**each.get("operators", {}), "new::op": 3}} for each in ranks]
    before = [{**each, "operators": each.get("operators", {})} for each in ranks]
    (change,) = compare_counts(counts(*before), counts(*more))
    assert str(change) == "new::op 0 -> 3 a step"
    assert change.worse


def test_a_change_on_one_rank_names_the_rank():
    (change,) = compare_counts(counts(ops(mul=1), ops(mul=1)), counts(ops(mul=1), ops(mul=2)))
    assert str(change) == "aten::mul 1 -> 2 a step on rank 1"


def test_the_file_holds_one_count_a_line(tmp_path):
    path = tmp_path / "counts.json"
    baseline.write(path, {"a": baseline.entry(spec(), counts(ops(mul=1, add=2)))})
    lines = [line.strip() for line in path.read_text().splitlines()]
    assert '"aten::add": 2,' in lines or '"aten::add": 2' in lines


def written(tmp_path):
    path = tmp_path / "counts.json"
    baseline.write(path, {"a": baseline.entry(spec(), counts(ops(mul=12)))})
    return path


def test_every_flipped_digit_and_torn_end_is_seen(tmp_path):
    path = written(tmp_path)
    whole = path.read_text()
    path.write_text(whole.replace('"aten::mul": 12', '"aten::mul": 13'))
    with pytest.raises(CorruptFileError, match=r"counts\.json: cells\.a: its checksum .* --update-baseline"):
        baseline.read(path)
    for length in range(0, len(whole) - 2, 7):
        path.write_text(whole[:length])
        with pytest.raises(CorruptFileError, match=r"counts\.json"):
            baseline.read(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 99}, "has version 99.*install a newer optbench"),
        ({"version": None}, "has version None"),
        ({"kind": "run"}, "is no baseline of counts"),
        ({"cells": []}, "holds no cells"),
        ({"cells": {"a": {}}}, "cells.a: its checksum"),
    ],
)
def test_a_file_of_another_kind_or_a_newer_schema_is_refused_with_a_remedy(tmp_path, change, told):
    path = written(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CorruptFileError, match=told):
        baseline.read(path)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(CorruptFileError, match="no such baseline; optbench gate FILE --update-baseline"):
        baseline.read(tmp_path / "counts.json")


@given(st.binary(max_size=60))
def test_no_bytes_are_taken_for_a_baseline(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "counts.json"
    path.write_bytes(data)
    with pytest.raises(CorruptFileError):
        baseline.read(path)


def verdicts(tmp_path, then, now, again=None, ignore=()):
    rows, notes = counted.judged(tmp_path / "counts.json", "a", then, now, again, ignore)
    return [row.verdict for row in rows], rows, notes


@pytest.mark.parametrize(
    ("field", "now"),
    [
        ("torch", baseline.entry(spec(), counts(ops(mul=12), torch="2.14.0"))),
        ("device", baseline.entry(spec(), counts(ops(mul=12), device="NVIDIA H200"))),
        ("world_size", baseline.entry(spec(), counts(ops(mul=12), ops(mul=12)))),
        ("spec.precision", baseline.entry(spec(precision="bf16"), counts(ops(mul=12)))),
        ("spec.clip_norm", baseline.entry(spec(clip_norm=1.0), counts(ops(mul=12)))),
    ],
)
def test_an_unlike_baseline_is_invalid_and_says_what_differs(tmp_path, field, now):
    found, rows, _ = verdicts(tmp_path, baseline.entry(spec(), counts(ops(mul=12))), now)
    assert found == ["invalid"]
    assert rows[0].what.endswith(field)
    assert rows[0].remedy


def test_steps_and_timeouts_are_no_difference():
    assert baseline.identity(spec(steps=10, timeout_s=5.0)) == baseline.identity(spec(steps=20))
    cosine = [baseline.identity(spec(steps=steps, schedule="warmup-cosine")) for steps in (10, 20)]
    assert cosine[0] != cosine[1]


def test_more_is_a_regression_less_a_note_and_the_unsteady_invalid(tmp_path):
    then = baseline.entry(spec(), counts(ops(mul=12, add=3, div=1)))
    now = counts(ops(mul=13, add=2, div=2))
    _, rows, notes = verdicts(tmp_path, then, baseline.entry(spec(), now), again=counts(ops(mul=13, add=2, div=5)))
    assert sorted((row.verdict, row.what) for row in rows) == [
        ("invalid", "aten::div 1 -> 2 a step"),
        ("regressed", "aten::mul 12 -> 13 a step"),
    ]
    assert any("aten::add 3 -> 2 a step" in note for note in notes)
    only_mul = verdicts(tmp_path, then, baseline.entry(spec(), now), ignore=["operators aten::[ad]*"])
    assert only_mul[0] == ["regressed"]
    assert verdicts(tmp_path, then, baseline.entry(spec(), now), ignore=["operators"])[0] == ["passed"]


def test_cells_that_are_new_renamed_or_gone_never_pass(tmp_path):
    entry = baseline.entry(spec(), counts(ops(mul=1)))
    assert verdicts(tmp_path, None, entry)[0] == ["invalid"]
    (row,) = counted.absent(tmp_path / "counts.json", {"old": entry, "a": entry}, {"a", "new"})
    assert (row.cell, row.verdict) == ("old", "invalid")
