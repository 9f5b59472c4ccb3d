"""A gate from its file to its verdict, with stand-ins for what starts ranks."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from harness.comparison.designing import TooShortError
from harness.comparison.model import Comparison, Design, Launch, Turn, WarmUp
from harness.counts.model import Counts, Measured
from harness.errors import InvalidInputError, OptbenchError
from harness.gating.file import load
from harness.gating.model import Gate
from harness.plan import Cell, Plan, name_checks
from harness.record import Metric, RunRecord
from harness.reports.gate import markdown, render
from harness.store import Store
from harness.verbs import baselines, gating, verifying
from harness.verification.certificate import Certificate
from launch import counting, elsewhere
from launch.sitting import UnlikeArmsError

LINE = '[[cell]]\nname = "line"\nworkload = "linear_regression"\noptimizer = "sgd/fused"\ndevice = "cpu"\n'
LIVE = '[gate]\nbudget = 60\nmargin = "5 %"\n[baseline]\npath = "base"\n'
CONVERGENCE = "[convergence]\nseeds = [0, 1, 2, 3, 4, 5, 6]\n"
COUNTS = '[baseline]\ncounts = "counts.json"\n'


def turn(arm, number, time):
    return Turn(arm=arm, round=number, position=arm, started_s=0.0, step_time_s=(time,) * 3)


def comparison(arms, ratio, *, self_check=True, again=1.0, outcome="completed"):
    """Every arm's turns; launches differ by a thousandth, as real ones do."""
    design = Design(looks=(4,), margin=0.05, rounds=5, turn_steps=3, budget_s=60, seed=0, self_check=self_check)
    if self_check:
        arms = [*arms, arms[0].model_copy(update={"name": "again"})]
    launches = []
    for number in range(4):
        times = [1.0, ratio * (1 + number / 1000), again * (1 + number / 1000 - 0.0015)][: len(arms)]
        launches.append(
            Launch(
                number=number,
                kind="forked",
                warm_ups=tuple(WarmUp(step_time_s=(1.0,), steady_from=0, build_s=1.0) for _ in arms),
                turns=tuple(turn(arm, each, time) for each in range(5) for arm, time in enumerate(times)),
                peak_memory_bytes=(1000,) * len(arms),
                took_s=1.0,
            )
        )
    return Comparison(
        arms=tuple(arms),
        design=design,
        launches=tuple(launches),
        outcome=outcome,
        reason=None if outcome == "completed" else "an arm died",
        started_unix_s=0.0,
        spent_s=1.0,
    )


@pytest.fixture
def session(tmp_path):
    def make(text, compare=None, unsupported=None):
        path = tmp_path / "gate.toml"
        path.write_text(text)
        (tmp_path / "base").mkdir(exist_ok=True)
        asked = load(path, name_checks())
        cells = tuple(
            Cell(
                index=n, spec=each.spec.model_copy(update={"world_size": 1, "threads": 1}), unsupported=unsupported
            )
            for n, each in enumerate(asked.cells)
        )
        store = Store(tmp_path / "results")
        store.check_writable()
        said = []
        return gating.Session(asked, Plan(cells=cells), None, store, said.append, compare, verify=False)

    return make


def rendered(found):
    console = Console(width=200, file=io.StringIO())
    console.print(render(found))
    return console.file.getvalue()


def verdicts(session):
    found = gating.gate(session)
    return found.verdict, {(row.axis, row.what): row.verdict for row in found.rows}


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "passed"), (0.8, "passed"), (1.1, "regressed")])
def test_live_ratios_decide(session, ratio, verdict):
    def compare(arms, **options):
        assert [arm.name for arm in arms] == ["baseline", "now"]
        assert arms[0].path.endswith("base")
        assert arms[1].path is None
        assert options["margin"] == 0.05
        return comparison(arms, ratio, self_check=options["self_check"])

    found, rows = verdicts(session(LIVE + LINE, compare))
    assert found == verdict
    assert rows["speed", "step_time_s"] == verdict
    assert rows["memory", "peak_memory_bytes"] == "passed"


def test_what_did_not_pass_names_the_command_that_shows_its_launches(session):
    made = session(LIVE + LINE, lambda arms, **_: comparison(arms, 1.05))
    found = gating.gate(made)
    (kept,) = made.store.root.glob("comparison-*")
    (row,) = [row for row in found.rows if row.axis == "speed"]
    assert row.verdict == "inconclusive"
    assert row.remedy.endswith(f" show {kept.name} --results {made.store.root}")


def test_a_self_check_that_alarms_makes_the_gate_invalid(session):
    found, rows = verdicts(session(LIVE + LINE, lambda arms, **_: comparison(arms, 1.0, again=1.2)))
    assert found == "invalid"
    assert rows["speed", "step_time_s"] == "passed"


def test_a_comparison_that_failed_or_could_not_start_is_invalid(session):
    def refuses(arms, **_):
        raise OptbenchError("no package there")

    for compare in (refuses, lambda arms, **_: comparison(arms, 1.0, outcome="failed")):
        assert verdicts(session(LIVE + LINE, compare)) == ("invalid", {("speed", "live comparison"): "invalid"})


def test_a_budget_that_is_too_small_names_the_files_key_and_one_that_would_do(session):
    def compare(arms, **_):
        raise TooShortError("60 s end before the first look at the data", 143, "4 launches of 20 rounds")

    (row,) = gating.gate(session(LIVE + LINE, compare)).rows
    assert row.verdict == "invalid"
    assert row.detail == "[gate] budget: 60 s end before the first look at the data"
    assert row.remedy == '4 launches of 20 rounds need [gate] budget = "143 s" here'


def test_no_row_or_note_names_an_option_that_the_gate_has_not(session):
    def unlike(arms, **_):
        raise UnlikeArmsError("arms baseline and now train differently: in step 2")

    def few(arms, **_):
        found = comparison(arms, 1.0)
        update = {"launches": found.launches[:2], "last_look": 2, "reason": "there were 2 within 60 s"}
        return found.model_copy(update=update)

    (row,) = gating.gate(session(LIVE + LINE, unlike)).rows
    assert row.detail == "arms baseline and now train differently: in step 2"
    ended = gating.gate(session(LIVE + LINE, few))
    assert ended.verdict == "inconclusive"
    assert "line: there were 2 within 60 s" in ended.notes


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "passed"), (1.25, "regressed")])
def test_three_launches_at_the_end_of_the_budget_decide(session, ratio, verdict):
    def compare(arms, **_):
        found = comparison(arms, ratio)
        return found.model_copy(update={"launches": found.launches[:3], "last_look": 3})

    assert verdicts(session(LIVE + LINE, compare))[0] == verdict


def test_a_pass_without_a_reference_says_so_and_a_cell_can_name_one(session, monkeypatch):
    asked = []

    def certified(jobs, *_, **__):
        asked.extend(job.like for job in jobs)
        made = Certificate(
            optimizer="mine:Mine", strategy="single", precision="fp32", reference=asked[-1], outcome="passed"
        )
        return [("certificate-1", made)]

    monkeypatch.setattr(verifying, "certified", certified)
    for text in (LINE, LINE + 'like = "adamw"\n'):
        held = session("[gate]\ndrift_steps = 60\n" + text)
        gating._correctness(held)
        (row,) = held.rows
        found = Gate(name="g", rows=(row,), spent_s=1.0)
        for shown in (markdown(found), rendered(found)):
            assert ("no fault found" in shown) == ("like" not in text)
        assert row.verdict == "passed"
    assert asked == [None, "adamw"]


def test_a_cell_is_like_a_known_algorithm(session):
    with pytest.raises(
        InvalidInputError, match=r"cell\[0\].like: 'adamv' is no algorithm with a reference\n +did you mean"
    ):
        session(LIVE + LINE + 'like = "adamv"\n')


def test_a_cell_that_cannot_run_here_does_not_pass(session):
    found, rows = verdicts(session(LIVE + LINE, unsupported="no such kernel"))
    assert found == "invalid"
    assert list(rows) == [("correctness", "cannot run here")]


def trained(steps):
    def train(specs, python, path):
        met = [steps(spec.seed, path is not None) for spec in specs]
        return [
            RunRecord(
                run_id=str(seed),
                spec={},
                outcome="completed" if each != "failed" else "failed",
                metrics={"steps_to_target": Metric(name="s", unit="1", better="lower", value=each)}
                if each != "failed"
                else {},
            )
            for seed, each in enumerate(met)
        ]

    return train


@pytest.mark.parametrize(
    ("steps", "verdict"),
    [
        (lambda seed, base: 100 + seed, "passed"),
        (lambda seed, base: 100 + seed if base else 120 + seed, "regressed"),
        (lambda seed, base: 100 if base or seed else None, "inconclusive"),
        (lambda seed, base: 100 if base or seed else "failed", "invalid"),
    ],
)
def test_faster_a_step_but_slower_to_the_target_does_not_pass(session, monkeypatch, steps, verdict):
    monkeypatch.setattr(elsewhere, "train", trained(steps))
    found, rows = verdicts(session(LIVE + CONVERGENCE + LINE, lambda arms, **_: comparison(arms, 0.7)))
    assert rows["speed", "step_time_s"] == "passed"
    assert rows["convergence", "steps to the target"] == verdict
    assert found == verdict


def counts(**numbers):
    ranks = {"every": {"operators": numbers}}
    return Measured(counts=Counts(torch="2", device="cpu", world_size=1, ranks=ranks))


@pytest.fixture
def counted(monkeypatch):
    """Hands out counts, one after the other; the last for ever."""

    def give(*each):
        given = list(each)
        monkeypatch.setattr(counting, "measure", lambda *_: given.pop(0) if len(given) > 1 else given[0])

    return give


def test_counts_that_move_once_and_then_not_again_are_invalid_not_a_regression(session, counted):
    counted(counts(add=1))
    assert baselines.update(session(COUNTS + LINE)) == (["line: new"], [])
    assert verdicts(session(COUNTS + LINE))[0] == "passed"
    counted(counts(add=2))
    assert verdicts(session(COUNTS + LINE)) == ("regressed", {("counts", "add 1 -> 2 a step"): "regressed"})
    counted(counts(add=2), counts(add=1))
    assert verdicts(session(COUNTS + LINE))[0] == "invalid"
    counted(counts(add=0))
    assert verdicts(session(COUNTS + LINE))[0] == "passed"


def test_a_baseline_is_not_written_from_counts_that_differ_or_fail(session, counted, tmp_path):
    counted(counts(add=1), counts(add=2))
    with pytest.raises(OptbenchError, match=r"counted twice, not the same: add 1 -> 2.*nothing was written"):
        baselines.update(session(COUNTS + LINE))
    with pytest.raises(OptbenchError, match="cannot run here: no kernel"):
        baselines.update(session(COUNTS + LINE, unsupported="no kernel"))
    with pytest.raises(OptbenchError, match=r"\[baseline\] counts"):
        baselines.update(session(LIVE + LINE))
    assert not (tmp_path / "counts.json").exists()


def test_a_renamed_cell_and_a_lost_one_do_not_pass(session, counted):
    counted(counts(add=1))
    baselines.update(session(COUNTS + LINE))
    found = gating.gate(session(COUNTS + LINE.replace('"line"', '"renamed"')))
    assert found.verdict == "invalid"
    assert {row.cell for row in found.rows} == {"line", "renamed"}


def test_an_interrupted_comparison_ends_the_gate(session):
    asked = session(
        LIVE + LINE + LINE.replace('"line"', '"more"'),
        lambda arms, **_: comparison(arms, 1.0, outcome="interrupted"),
    )
    with pytest.raises(KeyboardInterrupt):
        gating.gate(asked)
    assert asked.rows == []


def test_code_that_is_not_there_is_never_compared_with_itself(session, tmp_path):
    asked = session(LIVE + CONVERGENCE + LINE, lambda arms, **_: comparison(arms, 1.0))
    (tmp_path / "base").rmdir()
    found = gating.gate(asked)
    assert found.verdict == "invalid"
    (row,) = found.rows  # before anything that takes its time
    assert "there is no folder" in row.detail
    assert row.remedy


def test_a_comparison_goes_on_until_what_it_claims_holds_beside_the_other_cells(session):
    """A little beyond the margin in four launches: a regression of one cell, not yet of one among fifty."""
    asked = []

    def compare(arms, *, ready, **_):
        found = comparison(arms, 1.055)
        asked.append(ready(found))
        return found

    cell = LINE.replace('"line"', '"line {}"')
    gating.gate(session(LIVE + cell.format(1), compare))
    gating.gate(session(LIVE + "".join(cell.format(number) for number in range(50)), compare))
    assert (asked[0], set(asked[1:])) == (True, {False})


def test_a_metric_goes_the_way_that_the_workload_says(session, monkeypatch):
    seen = []

    def train(specs, python, path):
        seen.append({spec.evaluate_every for spec in specs})
        series = Metric(name="v", unit="1", better="lower", value=9.0, series=(9.0, 9.0), series_steps=(2, 4))
        return [
            RunRecord(run_id=str(spec.seed), spec={}, outcome="completed", metrics={"validation_loss": series})
            for spec in specs
        ]

    monkeypatch.setattr(elsewhere, "train", train)
    named = CONVERGENCE + 'metric = "validation_loss"\ntarget = 1.0\n'
    gpt = LINE.replace("linear_regression", "gpt")
    _, rows = verdicts(session(LIVE + named + gpt, lambda arms, **_: comparison(arms, 1.0)))
    assert rows["convergence", "steps to the target"] == "inconclusive"  # 9 is not below 1
    assert seen == [{2}, {2}]  # 100 steps, margin 5 %
    with pytest.raises(InvalidInputError, match=r"(?s)validation_los .*validation_loss \(lower\)"):
        gating.gate(session(LIVE + named.replace("_loss", "_los") + gpt, None))


@pytest.mark.parametrize(
    "held", [b'{"kind": "optbench counts", "version": 99, "cells": {}}', b'{"name": 1}', b"[gate]\nmargin = 1\n"]
)
def test_what_is_no_baseline_or_a_newer_one_is_not_overwritten(session, counted, tmp_path, held):
    counted(counts(add=1))
    (tmp_path / "counts.json").write_bytes(held)
    with pytest.raises(OptbenchError, match="nothing was written"):
        baselines.update(session(COUNTS + LINE))
    assert (tmp_path / "counts.json").read_bytes() == held


def test_a_damaged_baseline_is_written_anew(session, counted, tmp_path):
    counted(counts(add=1))
    for held in (b"", b'{"kind": "optbench counts", "vers'):
        (tmp_path / "counts.json").write_bytes(held)
        assert baselines.update(session(COUNTS + LINE)) == (["line: new"], [])


def test_fewer_collectives_are_asked_about_and_what_is_left_out_is_told(session, counted):
    def exchanged(number, adds):
        ranks = {"every": {"collectives": {"all_reduce float32": number}, "operators": {"add": adds}}}
        return Measured(counts=Counts(torch="2", device="cpu", world_size=1, ranks=ranks))

    ignoring = COUNTS + 'ignore = ["operators"]\n' + LINE
    counted(exchanged(2, 1))
    baselines.update(session(ignoring))
    counted(exchanged(2, 5))
    found = gating.gate(session(ignoring))
    assert found.verdict == "passed"
    assert "line: left out on request: add 1 -> 5 a step" in found.notes
    counted(exchanged(1, 1))
    assert verdicts(session(ignoring))[0] == "inconclusive"
