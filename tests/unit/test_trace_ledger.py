"""The ledger's rules, over storages made up for the purpose."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.interfaces import Phase
from harness.tracing.ledger import CATEGORIES, Mark, Timetable, attribute, balance
from harness.tracing.storages import Extent, Storage

STEP = 100
MARKS = [
    Mark(step * STEP + offset, phase, step)
    for step in range(3)
    for offset, phase in (
        (0, Phase.DATA),
        (10, Phase.FORWARD),
        (40, Phase.BACKWARD),
        (70, Phase.OPTIMIZER),
        (90, Phase.END),
    )
]
TIMETABLE = Timetable(MARKS)


def storage(size=1000, born=None, died=None, claims=(), used=(), device="cpu") -> Storage:
    found = Storage(Extent(device, 0, size), born, died)
    found.claims |= {(who, first, end) for who, first, end in claims}
    found.used_ns += used
    return found


def held(**fields) -> dict[str, int]:
    return attribute(storage(**fields), TIMETABLE)


def test_what_lives_within_a_step_is_told_by_its_phases():
    assert held(born=110, died=150) == {"activations": 1000}
    assert held(born=110, died=130) == {"workspace": 1000}
    assert held(born=150, died=175) == {"workspace": 1000}
    assert held(born=175, died=180) == {"temporaries": 1000}
    assert held(born=105, died=180) == {"data": 1000}


def test_what_outlives_its_step_without_a_claim_is_unattributed():
    assert held(born=110, died=None) == {"unattributed": 1000}
    assert held(born=175, died=205) == {"unattributed": 1000}
    assert held(born=None) == {"unattributed": 1000}
    assert held(born=195, died=199) == {"unattributed": 1000}  # between two steps


def test_the_engines_word_comes_before_lifetimes_and_collectives():
    assert held(born=110, died=150, claims=[("gradients", 0, 1000)], used=[160]) == {"gradients": 1000}
    both = held(claims=[("state", 0, 1000), ("parameters", 0, 400)])
    assert both == {"parameters": 400, "state": 600}


def test_the_rest_of_a_partly_claimed_storage_is_judged_by_itself_unless_it_is_rounding():
    assert held(size=1024, claims=[("state", 0, 1000)]) == {"state": 1024}
    assert held(size=2000, claims=[("state", 0, 1000)]) == {"state": 1000, "unattributed": 1000}
    assert held(size=2000, claims=[("gradients", 0, 1000)], used=[150, 250]) == {
        "gradients": 1000,
        "communication": 1000,
    }


def test_buffers_of_collectives_are_used_again_or_released():
    assert held(used=[50, 150, 250]) == {"communication": 1000}
    assert held(born=150, died=155, used=[152]) == {"communication": 1000}
    assert held(born=150, died=260, used=[152]) == {"communication": 1000}  # double buffering
    assert held(born=150, used=[152]) == {"unattributed": 1000}  # went through once and was kept
    assert held(used=[50]) == {"unattributed": 1000}


def test_the_peak_is_the_largest_sum_and_the_categories_there_add_up_to_it():
    ledger = balance(
        [
            storage(1000, claims=[("parameters", 0, 1000)]),
            storage(600, born=110, died=145),
            storage(500, born=142, died=160),
            storage(700, born=175, died=180),
            storage(300, born=185),
            storage(9999, device="cuda:0"),
        ],
        MARKS,
        1,
        lambda device: device == "cpu",
    )
    assert ledger.peak_bytes == 2100
    assert {k: v for k, v in ledger.at_peak.items() if v} == {
        "parameters": 1000,
        "activations": 600,
        "workspace": 500,
    }
    assert ledger.largest["temporaries"] == 700
    assert ledger.unattributed_growth_bytes == 300


def test_memory_released_and_allocated_at_one_instant_is_not_held_twice():
    pieces = [storage(1000, born=110, died=120), storage(1000, born=120, died=130)]
    assert balance(pieces, MARKS, 1, lambda _: True).peak_bytes == 1000


def test_categories_that_need_marks_which_the_engine_does_not_make_are_unknown():
    marks = [
        Mark(step * STEP + offset, phase, step)
        for step in range(3)
        for offset, phase in ((0, Phase.DATA), (10, Phase.WORK), (90, Phase.END))
    ]
    ledger = balance([storage(born=120, died=150)], marks, 1, lambda _: True)
    assert (ledger.largest["activations"], ledger.largest["temporaries"]) == (None, None)
    assert ledger.largest["workspace"] == 1000


times = st.integers(0, 299)
lives = st.builds(
    lambda size, born, lasts, claim, used: storage(
        size,
        born,
        None if lasts is None or born is None else born + lasts,
        [(claim, 0, size // 2)] if claim else [],
        used,
    ),
    st.integers(1, 5000),
    st.none() | times,
    st.none() | st.integers(0, 120),
    st.none() | st.sampled_from(["parameters", "gradients", "state", "communication", "data"]),
    st.lists(times, max_size=2),
)


@given(st.lists(lives, max_size=30))
def test_categories_at_the_peak_add_up_and_the_peak_is_that_of_the_storages(pieces):
    ledger = balance(pieces, MARKS, 1, lambda _: True)
    assert sum(ledger.at_peak.values()) == ledger.peak_bytes
    assert all(size >= 0 for size in ledger.at_peak.values())
    begin, end = TIMETABLE.begin(1), TIMETABLE.end(1)
    sums = [sum(piece.size for piece in pieces if piece.live(time)) for time in range(begin, end + 1)]
    assert ledger.peak_bytes == max(sums)
    assert all((ledger.largest[each] or 0) >= ledger.at_peak[each] for each in CATEGORIES)
    assert all(sum(attribute(piece, TIMETABLE).values()) == piece.size for piece in pieces)
