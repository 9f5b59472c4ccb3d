"""Stored runs side by side: who is paired with whom, what is compared, what is refused, what is no evidence."""

from __future__ import annotations

import html
import io
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from harness.compare import SITTINGS, compare_runs, read
from harness.errors import CorruptFileError, InvalidInputError
from harness.pairing import match
from harness.record import Environment, Metric, RunRecord
from harness.reports.markdown_stored import markdown
from harness.reports.stored import document, render
from harness.spec import RunSpec
from harness.store import Store
from harness.verbs import arms
from tests.unit.test_reports_comparison import TRICKY, structure

SPEC = {
    "workload": "gpt", "size": "nano", "optimizer": "adamw/foreach", "strategy": "ddp", "world_size": 2,
    "precision": "fp32", "device": "cpu", "global_batch": 16, "steps": 4, "seed": 0, "threads": 1,
}  # fmt: skip
MACHINE = Environment(
    hardware={"cpu": "EPYC", "cores_usable": 2, "accelerators": []},
    software={"torch": "2.13.0", "python": "3.12.1", "packages": {"numpy": "2.1"}},
    settings={"threads": 1, "variables": {"OMP_NUM_THREADS": "1"}},
    source={"optbench": {"commit": "a" * 40, "dirty": False}},
)


def metric(name, value, unit="B", **more) -> Metric:
    return Metric(**{"name": name, "unit": unit, "better": "lower", "value": value, **more})


def record(number=1, *, losses=(4.0, 3.5, 3.25, 3.0), step=0.07, metrics=(), facts=None, **more) -> RunRecord:
    found = [
        metric("step_time_s", step, "s"),
        metric("optimizer_state_bytes", 8_000_000, per_rank=(8_000_000, 8_000_000)),
        metric("rss_peak_bytes", 400_000_000),
        metric("train_loss", losses[-1], "1", series=losses),
        *metrics,
    ]
    base: dict[str, Any] = {
        "run_id": f"20261123T0600{number:02}-aaaabbbbccccdddd",
        "spec": {**SPEC, **more.pop("spec", {})},
        "outcome": "completed",
        "environment": MACHINE,
        "facts": {"step_operators": {"aten.add_.Tensor": 3}, **(facts or {})},
        "metrics": {each.name: each for each in found},
    }
    return RunRecord.model_validate({**base, **more})


def pair(a: RunRecord, b: RunRecord):
    (found,) = compare_runs([(a, b)]).pairs
    return found


def machine(**more) -> Environment:
    return MACHINE.model_copy(update=more)


def text_of(*couples, width=80) -> str:
    file = io.StringIO()
    Console(width=width, color_system=None, file=file).print(render(compare_runs(couples)))
    return file.getvalue()


def test_two_runs_of_the_same_code_are_equal_in_all_that_is_exact():
    found = pair(record(1), record(2, step=0.14))
    assert found.differences == ()
    assert found.changed == ()
    assert found.losses.equal_steps == found.losses.steps == 4


def test_times_are_shown_and_labelled_and_are_no_part_of_what_changed():
    found = pair(record(1), record(2, step=0.14))
    assert next(each.ratio for each in found.timed if each.name == "step_time_s") == 2.0
    assert found.changed == ()
    times = document(compare_runs([(record(1), record(2, step=0.14))]))["pairs"][0]["times"]
    assert (times["evidence"], times["label"]) == (False, SITTINGS)
    assert "different sittings, not evidence" in text_of((record(1), record(2, step=0.14)))


@pytest.mark.parametrize("field", ["global_batch", "threads", "seed", "steps", "world_size", "accumulation"])
def test_an_unlike_condition_is_listed_with_both_values(field):
    (difference,) = pair(record(1, spec={field: 4}), record(2, spec={field: 8})).unlike
    assert (difference.what, difference.a, difference.b) == (f"spec: {field}", 4, 8)


@pytest.mark.parametrize(
    ("environment", "what", "a", "b"),
    [
        (machine(hardware={**MACHINE.hardware, "cpu": "Xeon"}), "machine: cpu", "EPYC", "Xeon"),
        (machine(hardware={**MACHINE.hardware, "cores_usable": 64}), "machine: cores_usable", 2, 64),
        (machine(software={**MACHINE.software, "torch": "2.12"}), "version: torch", "2.13.0", "2.12"),
        (machine(software={**MACHINE.software, "driver": "570"}), "version: driver", None, "570"),
        (machine(software={**MACHINE.software, "packages": {"numpy": "3"}}), "version: numpy", "2.1", "3"),
        (machine(settings={**MACHINE.settings, "threads": 2}), "setting: threads", 1, 2),
        (machine(settings={"threads": 1, "variables": {}}), "variable: OMP_NUM_THREADS", "1", None),
        (
            machine(source={"optbench": {"commit": "b" * 40, "dirty": False}}),
            "code of optbench: commit",
            "a" * 40,
            "b" * 40,
        ),
    ],
)
def test_unlike_machines_and_versions_are_listed_with_both_values(environment, what, a, b):
    (difference,) = pair(record(1), record(2, environment=environment)).unlike
    assert (difference.what, difference.a, difference.b) == (what, a, b)


def test_another_gpu_is_an_unlike_machine_and_another_index_is_not():
    def with_gpu(name, index):
        return machine(hardware={**MACHINE.hardware, "accelerators": [{"name": name, "index": index}]})

    same = pair(record(1, environment=with_gpu("H100", 0)), record(2, environment=with_gpu("H100", 1)))
    assert same.unlike == ()
    other = pair(record(1, environment=with_gpu("H100", 0)), record(2, environment=with_gpu("A100", 0)))
    assert [each.what for each in other.unlike] == ["machine: accelerators"]


@pytest.mark.parametrize("field", ["workload", "size", "data"])
def test_runs_that_train_different_things_are_refused(field):
    found = pair(record(1), record(2, spec={field: "another"}))
    assert "they train different things" in found.refused
    assert (found.exact, found.losses, found.timed) == ((), None, ())
    assert compare_runs([(record(1), record(2, spec={field: "another"}))]).refused


@pytest.mark.parametrize("outcome", ["wrong", "failed", "timed_out", "incomplete", "diverged"])
def test_a_run_without_a_right_answer_shows_no_speed(outcome):
    bad = record(2, outcome=outcome, reason="step 3: parameters did not move")
    found = pair(record(1), bad)
    assert found.timed == found.exact == ()
    text = text_of((record(1), bad))
    assert "not compared" in text
    assert "parameters did not move" in text
    assert "70.0 ms" not in text


def test_a_byte_of_state_and_an_operator_that_moved_are_named():
    other = record(2, metrics=[metric("optimizer_state_bytes", 8_000_001)], facts={
        "step_operators": {"aten.add_.Tensor": 4, "aten.mul_.Tensor": 1}})  # fmt: skip
    changed = {each.name: (each.a, each.b) for each in pair(record(1), other).changed}
    assert changed == {
        "optimizer_state_bytes": (8_000_000, 8_000_001),
        "operator aten.add_.Tensor": (3, 4),
        "operator aten.mul_.Tensor": (0, 1),
    }


def test_the_same_largest_rank_with_other_shares_is_a_change():
    other = record(2, metrics=[metric("optimizer_state_bytes", 8_000_000, per_rank=(8_000_000, 7_000_000))])
    assert [each.name for each in pair(record(1), other).changed] == ["optimizer_state_bytes by rank"]


def test_a_lower_bound_is_not_compared_and_shown_as_such():
    other = record(2, metrics=[metric("optimizer_state_bytes", 8_000_000, at_least=True)])
    found = pair(record(1), other)
    assert [(each.name, each.same, each.a_at_least, each.b_at_least) for each in found.bounded] == [
        ("optimizer_state_bytes", None, False, True)
    ]
    line = "optimizer_state_bytes: 8,000,000 in A, at least 8,000,000 in B: not compared"
    assert line in text_of((record(1), other))
    assert line in html.unescape(markdown(compare_runs([(record(1), other)])))


def test_a_count_that_one_run_did_not_tell_is_neither_equal_nor_changed():
    found = pair(record(1, metrics=[metric("graphs", 2, "1")]), record(2))
    assert next(each.same for each in found.exact if each.name == "graphs") is None
    assert found.changed == ()


@pytest.mark.parametrize(
    "name", ["rss_peak_bytes", "ledger_rss_above_imports_bytes", "ledger_state_expected_bytes", "step_time_s"]
)
def test_what_is_measured_or_derived_is_not_compared_exactly(name):
    found = pair(record(1, metrics=[metric(name, 1)]), record(2, metrics=[metric(name, 2)]))
    assert name not in {each.name for each in found.exact}


def test_losses_that_rounding_explains_are_told_from_those_that_it_does_not():
    near = pair(record(1), record(2, losses=(4.0, 3.5, 3.250001, 3.0))).losses
    assert (near.equal_steps, near.parted_at) == (2, None)
    far = pair(record(1), record(2, losses=(4.0, 3.5, 3.4, 3.0))).losses
    assert (far.equal_steps, far.parted_at) == (2, 3)
    assert far.largest == pytest.approx(0.15 / 3.4)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"seed": 1}, "seed differs"),
        ({"optimizer": "lion/foreach"}, "algorithm differs"),
        ({"global_batch": 8, "lr": 0.1}, "global_batch, lr differ"),
    ],
)
def test_losses_of_other_trainings_are_not_compared(spec, reason):
    found = pair(record(1), record(2, spec=spec))
    assert found.losses is None
    assert found.losses_unlike == reason


def test_implementations_of_one_algorithm_have_one_loss_curve():
    assert pair(record(1), record(2, spec={"optimizer": "adamw/fused"})).losses.parted_at is None


def test_what_runs_are_compared_in_is_no_unlike_condition():
    found = pair(record(1), record(2, spec={"optimizer": "adamw/fused"}))
    assert found.unlike == ()
    assert [each.what for each in found.differences] == ["spec: optimizer"]


def test_folders_pair_equal_runs_first_then_the_most_alike():
    left = [record(1), record(2, spec={"optimizer": "adamw/fused"}), record(3, spec={"workload": "cnn"})]
    right = [
        record(4, spec={"optimizer": "adamw/compiled"}),
        record(5),
        record(6, spec={"optimizer": "lion/fused"}),
    ]
    ids = [(a and a.run_id[13:15], b and b.run_id[13:15]) for a, b in match(left, right)]
    assert ids == [("01", "05"), ("02", "04"), ("03", None), (None, "06")]


@pytest.mark.parametrize("field", ["strategy", "precision", "world_size", "workload", "size"])
def test_folders_never_pair_runs_of_another_workload_strategy_precision_or_world_size(field):
    assert match([record(1)], [record(2, spec={field: 8})]) == [
        (record(1), None),
        (None, record(2, spec={field: 8})),
    ]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2))),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2))),
)
def test_every_run_of_two_folders_is_named_once(left, right):
    runs = [
        [record(n, spec={"workload": w, "seed": s}) for n, (w, s) in enumerate(side)] for side in (left, right)
    ]
    couples = match(*runs)
    for side in (0, 1):
        named = [couple[side].run_id for couple in couples if couple[side] is not None]
        assert sorted(named) == sorted(each.run_id for each in runs[side])
    assert (None, None) not in couples


def test_runs_without_a_partner_are_listed():
    text = text_of((record(1), None), (None, record(2, outcome="incomplete", reason="rank-0.jsonl: torn")))
    assert text.count("no partner") == 2
    assert "rank-0.jsonl: torn" in text


@settings(deadline=None)
@given(st.text(), st.text(), st.floats())
def test_any_name_and_number_of_a_stranger_can_be_shown(name, value, number):
    environment = machine(software={"packages": {name: value, "x\x1b[31m": "\x1b]0;"}})
    a = record(1, spec={"optimizer": name}, step=number)
    b = record(2, spec={"optimizer": value}, environment=environment, losses=(number,) * 4, step=number)
    assert "\x1b" not in text_of((a, b))
    json.dumps(document(compare_runs([(a, b)])), allow_nan=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_output_that_lacks_a_names_characters_gets_question_marks(encoding):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    couple = (record(1, spec={"optimizer": "größe/优化器"}), record(2))
    Console(width=80, file=file, color_system=None).print(render(compare_runs([couple])))
    file.flush()
    assert "/???" in raw.getvalue().decode(encoding)


def test_in_markdown_what_moved_comes_before_the_fold_and_times_within_it():
    moved = record(2, step=0.14, facts={"step_operators": {"aten.add_.Tensor": 4}}, spec={"seed": 0, "threads": 2})
    text = markdown(compare_runs([(record(1), moved), (record(3), None)]))
    assert text.startswith("### 🔴 1 of 2 exact counts differ")
    assert "| 3 | 4 | +1 |" in text.partition("<details>")[0]
    assert "2.000x" in text.partition(SITTINGS)[2]
    assert "Without a partner" in text


@settings(deadline=None)
@given(TRICKY, TRICKY)
def test_no_name_breaks_the_markdown(name, value):
    def one(name, value):
        environment = machine(software={**MACHINE.software, "torch": f"{value}x"})
        first = record(1, spec={"optimizer": f"{name}x", "strategy": f"{value}x"})
        # a name like "b/" would be the same algorithm as "b", whose losses are told in a paragraph more
        second = record(2, spec={"optimizer": "another algorithm"}, environment=environment)
        return markdown(compare_runs([(first, second)]))

    assert structure(one(name, value)) == structure(one("a", "b"))


def test_losses_that_are_nan_on_both_sides_are_equal():
    losses = (4.0, math.nan, 3.0, 2.0)
    assert pair(record(1, losses=losses), record(2, losses=losses)).losses.equal_steps == 4


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def stored(store: Store, **more) -> str:
    folder = store.new_run(RunSpec(workload="gpt", optimizer="adamw/foreach", **more))
    store.finish(folder.name, "failed", "a test's")
    return folder.name


def test_runs_named_one_by_one_are_compared_with_the_first(store):
    ids = [stored(store, seed=seed) for seed in range(3)]
    assert [(a.run_id, b.run_id) for a, b in read(ids, store)] == [(ids[0], ids[1]), (ids[0], ids[2])]


def test_folders_of_results_of_sweeps_and_of_single_runs_are_understood(store, tmp_path):
    other = Store(tmp_path / "other")
    a, b = stored(store), stored(other)
    assert [(x.run_id, y.run_id) for x, y in read([str(store.root), str(other.root)], store)] == [(a, b)]
    assert [(x.run_id, y.run_id) for x, y in read([a, str(other.root / b)], store)] == [(a, b)]


def test_a_damaged_run_of_a_folder_is_named_and_the_others_are_compared(store, tmp_path):
    other = Store(tmp_path / "other")
    stored(store)
    stored(other)
    (store.root / stored(store) / "manifest.json").unlink()
    broken = store.root / store.run_ids()[-1]
    for file in [*broken.glob("rank-*"), broken / "spec.json"]:
        file.write_text("{")
    couples = read([str(store.root), str(other.root)], store)
    assert len(couples) == 2
    assert couples[1][0].run_id == broken.name
    assert couples[1][0].reason


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "names nothing to compare"),
        (["latest"], "is one run: two are compared"),
        (["comparison-20261126T054215-fgvhu7r3i4mugnl3"], "is a comparison, not a run"),
        (["latest", "nonsense"], "no run has this id"),
        (["latest", "EMPTY"], "holds no run"),
        (["latest", "FOLDER"], "mixed"),
        (["FOLDER", "FOLDER", "FOLDER"], "more than two folders"),
    ],
)
def test_words_that_mean_no_pair_are_refused_with_the_remedy(store, tmp_path, words, message):
    stored(store)
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "FOLDER": str(store.root)}
    with pytest.raises(InvalidInputError, match=message) as error:
        read([places.get(word, word) for word in words], store)
    assert error.value.problems[0].remedy


def test_a_folder_may_be_called_a_comparison(store, tmp_path, monkeypatch):
    stored(store)
    stored(Store(tmp_path / "comparison-of-tuesday"))
    monkeypatch.chdir(tmp_path)
    assert len(read(["results", "comparison-of-tuesday"], store)) == 1


def test_a_damaged_run_that_was_named_itself_is_an_error(store):
    a = stored(store)
    b = stored(store)
    (store.root / b / "manifest.json").unlink()
    (store.root / b / "spec.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"spec\.json"):
        read([a, b], store)


def test_folders_without_a_pair_say_how_many_what_differs_most_and_which_come_nearest():
    left = [record(number, spec={"seed": number}) for number in range(1, 13)]
    right = [record(number, spec={"strategy": "fsdp2", "precision": "bf16"}) for number in range(21, 33)]
    right.append(record(33, spec={"strategy": "fsdp2"}))
    couples = match(left, right)
    found = compare_runs(couples)
    assert (found.pairs, len(found.alone)) == ((), 25)
    told = found.unmatched
    assert (told.left, told.right, told.differ) == (12, 13, {"strategy": 12})
    assert (told.b.run_id, told.fields) == (right[-1].run_id, {"strategy": ("ddp", "fsdp2")})
    lines = text_of(*couples).splitlines()
    assert lines[0] == "without a partner: 12 runs of A, 13 runs of B"
    assert "in which differ: strategy ddp / fsdp2" in " ".join(text_of(*couples).split())
    assert len(lines) < 20
    assert lines[-1] == "20 more without a partner: --json lists all"
    assert len(document(found)["alone"]) == 25
    assert document(found)["unmatched"]["differ"] == {"strategy": 12}
    assert markdown(found).count("\n- ") < 15


def test_another_algorithm_is_told_as_what_keeps_runs_apart():
    couples = match([record(1)], [record(2, spec={"optimizer": "sgd/foreach"})])
    assert compare_runs(couples).unmatched.fields == {"algorithm": ("adamw", "sgd")}


def test_folders_of_which_one_has_nothing_left_over_have_no_such_summary():
    assert compare_runs(match([record(1)], [record(2), record(3, spec={"strategy": "fsdp2"})])).unmatched is None


def test_runs_that_cannot_be_read_are_counted_and_come_near_nothing():
    gone = RunRecord(run_id="20261123T060001-aaaabbbbccccdddd", spec={}, outcome="missing", reason="gone")
    told = compare_runs(match([gone], [record(2)])).unmatched
    assert (told.left, told.right, told.a) == (1, 1, None)


def test_the_live_comparison_of_two_runs_is_told_in_words_that_ask_for_the_same_training():
    more = {
        "lr": 0.01,
        "optimizer_options": {"betas": [0.9, 0.95], "eps": 1e-8},
        "schedule": "warmup-cosine",
        "threads": None,
    }
    one, other = record(1, spec=more), record(2, spec={**more, "optimizer": "adamw/fused"})
    words = list(pair(one, other).live)
    assert words[:5] == ["compare", "--arm", "adamw/foreach", "--arm", "adamw/fused"]
    given = {"workload": "gpt", "size": "nano", "strategy": "ddp", "world_size": 2, "device": "cpu", "lr": 0.01}
    asked = arms.from_words(
        ["adamw/foreach", "adamw/fused"], given, [words[n + 1] for n, w in enumerate(words) if w == "--set"]
    )
    options = dict(zip(words[5::2], words[6::2], strict=True))
    assert {options[key] for key in ("--workload", "--size", "--strategy", "--nproc", "--device", "--lr")} == set(
        map(str, given.values())
    )
    for arm in asked:
        assert arm.spec.optimizer_options == more["optimizer_options"]
        assert (arm.spec.schedule, arm.spec.global_batch) == ("warmup-cosine", 16)


@pytest.mark.parametrize(
    ("more", "live"),
    [
        ({"global_batch": 32}, ()),
        ({"device": "accelerator"}, ()),
        ({"lr": 0.5}, None),
        ({"precision": "bf16"}, None),
    ],
)
def test_runs_that_one_command_line_cannot_compare_live_are_given_none(more, live):
    assert pair(record(1), record(2, spec=more)).live == live
