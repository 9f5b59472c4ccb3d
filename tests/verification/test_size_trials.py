"""Trials about size, count and layout: planted faults are caught and named, and what is right passes."""

from __future__ import annotations

import pytest
from faulty_sizes import FAULTS, SOUND
from test_plain_trials import Planted, spec_of

from harness.references.table import reference
from harness.verification import size_trials, sizes
from harness.verification.plain import held, trials


def tried(optimizer, names=None, granularity="element"):
    """Return what became of the named trials, or of all, of an implementation of AdamW."""
    spec, known = spec_of("adamw/planted"), reference("adamw")
    options = {**known.variants, **optimizer.hyperparameters(spec)}
    lr = options.pop("lr")
    judge = size_trials._Referenced(
        optimizer, spec, lambda scenario, _: held(optimizer, spec, known, options, lr)
    ).outcome
    chosen = [each for each in sizes.element_wise() if names is None or each.scenario.name in names]
    return [judge(each)[0] for each in chosen]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_size_count_or_layout_is_caught_and_named(fault):
    cls, name, words = FAULTS[fault]
    (found,) = tried(Planted(cls), {name})
    assert found.verdict == "wrong"
    assert words in found.cause


LONG = {"torch's foreach", "torch's for-loop"}
"""Tried daily as adamw/foreach and adamw/forloop of the registry."""


@pytest.mark.parametrize(
    "rewrite", [pytest.param(each, marks=pytest.mark.exhaustive) if each in LONG else each for each in SOUND]
)
def test_what_goes_about_sizes_in_its_own_way_passes(rewrite):
    assert {each.verdict for each in tried(Planted(SOUND[rewrite]))} == {"passed"}


def test_the_certificate_lists_the_lengths_and_counts_that_were_tried():
    checks, cause = trials(Planted(SOUND["torch's foreach"]), spec_of("adamw/planted"), reference("adamw"))
    details = {check.name: check.detail for check in checks if check.verdict == "passed"}
    assert cause is None
    for lengths in ("1,023-1,025", "4,095-4,097", "65,535-65,537", "131,075"):
        assert lengths in details["sizes"]
    assert "lists of tensors: 1, 111, 321, 513, 1,000" in details["counts"]
    assert "groups of one tensor: 1,000" in details["groups"]
    assert {"transposed", "channels-last"} <= set(details["layouts"].replace(",", "").split())
    assert "expanded" in details["gradients that lie otherwise"]
