"""What is tried about size, count and layout: few steps over many tensors, declared as data.

Kernels step vectors of 4 to 64 elements and what is left over, blocks of hundreds, chunks of thousands; launches
over many tensors hold 30 to 512 of them. A fault shows beside such a number, and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.verification.layouts import strides
from harness.verification.scenarios import Scenario
from harness.verification.stream import Group, Member, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.interfaces import OptimizerTraits, Role
    from harness.verification.layouts import Layout

STEPS, SAVED_AT = 3, 2

EDGES = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 32_768, 65_536)
"""Widths of vectors, blocks and chunks: a length below, at and above each is tried."""

LENGTHS = tuple(
    sorted(
        {1, 2, 100, 1200, 257 * 256, 2 * 65_536 + 3, *(edge + beside for edge in EDGES for beside in (-1, 0, 1))}
    )
)
"""Elements of the vectors that are tried."""

TALL_AND_WIDE = ((1, 17), (17, 1), (31, 33), (64, 64), (129, 65), (3, 1025), (255, 257))
"""Matrices, the largest last."""

COUNTS = (1, 111, 321, 513, 1000)
"""Tensors in a list: launches over many tensors hold 30 to 110, blocks of 320, 512."""

THOUSAND = 1000
"""Groups of one tensor each."""

COMPILED = (17, 129, 1025, 4097, 65_537, 257 * 256)
"""Lengths that a compiled step is tried on, beside its other tensors: every further one is compiled, too."""

_SHORT = (3, 1, 5, 2, 7, 4)
"""Lengths, over and again, of tensors of which there are many."""


@dataclass(frozen=True)
class Tried:
    """One trial about size, count or layout.

    Attributes:
        scenario: to play.
        words: what it tries, for the certificate: kind -> which.
    """

    scenario: Scenario
    words: Mapping[str, str]

    @property
    def elements(self) -> int:
        """All elements of all tensors."""
        return sum(math.prod(each.shape) for each in self.scenario.stage.members)


def element_wise() -> list[Tried]:
    """Return the trials of what steps every element by itself."""
    return [_lengths(LENGTHS, TALL_AND_WIDE[:-1]), _counts(COUNTS), _groups(THOUSAND), *layouts()]


def by_cost(*, matrices: bool) -> list[list[Tried]]:
    """Return the trials of what depends on whole tensors, each list from cheap to dear.

    Args:
        matrices: lists of many matrices are tried too.
    """
    until = (65, 257, 1025, 4097, LENGTHS[-1])
    bounds = list(zip((0, *until[:-1]), until, strict=True))
    lengths = [
        _lengths(
            [each for each in LENGTHS if low < each <= high],
            [each for each in TALL_AND_WIDE if low < math.prod(each) <= high],
        )
        for low, high in bounds
    ]
    lengths = [each for each in lengths if each.elements]
    counts = [_counts((count,)) for count in COUNTS]
    many = [_counts((count,), (3, 2)) for count in (111, 321)] if matrices else []
    return [lengths, counts, many, [_groups(100), _groups(THOUSAND)], layouts()]


def compiled(traits: OptimizerTraits) -> tuple[Member, ...]:
    """Return the tensors that the main trial of a compiled step gets beside its own; of any other: none."""
    if not traits.compiled:
        return ()
    lengths = [Member(f"{length:,} elements", (length,), 1, layout="framed") for length in COMPILED]
    lying: list[tuple[tuple[int, ...], Layout]] = [
        ((33,), "offset"),
        ((9, 7), "transposed"),
        ((2, 3, 5, 3), "channels-last"),
    ]
    return (*lengths, *(Member(f"{layout} {_by(shape)}", shape, layout=layout) for shape, layout in lying))


COMPILED_WORDS = (
    f"vectors of {', '.join(f'{each:,}' for each in COMPILED)}; one unaligned, a matrix transposed, a tensor "
    "channels-last; not tried, since a step is compiled for every list of tensors: more lengths, counts and groups"
)
"""What is tried of a compiled step, for the certificate."""


def _lengths(lengths: Sequence[int], matrices: Sequence[tuple[int, int]]) -> Tried:
    members = [
        *(Member(f"{length:,} elements", (length,), 0, layout="framed") for length in lengths),
        *(Member(_by(shape), shape, 1, layout="framed") for shape in matrices),
    ]
    words = {"vectors of": _ranges(lengths)} if lengths else {}
    if matrices:
        words["matrices of"] = ", ".join(map(_by, matrices))
    stage = Stage((Group("vector"), Group("matrix", lr_scale=0.5)), _placed(members))
    return Tried(Scenario("sizes", stage, STEPS, SAVED_AT, scheduled=False, unusual=True), words)


def _counts(counts: Sequence[int], shape: tuple[int, ...] | None = None) -> Tried:
    role: Role = "vector" if shape is None else "matrix"
    members = [
        Member(f"{count:,}.{number}", shape or (_SHORT[number % len(_SHORT)],), group)
        for group, count in enumerate(counts)
        for number in range(1, count + 1)
    ]
    groups = tuple(Group(role, lr_scale=1 / (1 + group)) for group in range(len(counts)))
    words = {f"lists of {'tensors' if shape is None else 'matrices'}:": ", ".join(f"{each:,}" for each in counts)}
    stage = Stage(groups, _placed(members))
    return Tried(Scenario("counts", stage, STEPS, SAVED_AT, scheduled=False), words)


def _groups(count: int) -> Tried:
    """Every group has a rate of its own, lest those treated alike be made one."""
    members = [Member(f"group {n + 1}", (_SHORT[n % len(_SHORT)],), n) for n in range(count)]
    groups = tuple(Group("vector", lr_scale=1 + n / (2 * count)) for n in range(count))
    scenario = Scenario("groups", Stage(groups, _placed(members)), 2, scheduled=False)
    return Tried(scenario, {"groups of one tensor:": f"{count:,}"})


_DENSE: tuple[tuple[Layout, tuple[tuple[int, ...], ...]], ...] = (
    ("framed", ((33,), (9, 7), (2, 3, 5, 3))),
    ("offset", ((1,), (5,), (33,), (1025,), (9, 7), (129, 65))),
    ("transposed", ((9, 7), (33, 17), (129, 65), (3, 5, 4))),
    ("channels-last", ((2, 3, 5, 3), (4, 17, 3, 3))),
)
"""How parameters lie, and their shapes; gradients lie alike, as autograd leaves them."""

_UNLIKE: tuple[tuple[Layout, Layout, tuple[tuple[int, ...], ...]], ...] = (
    ("framed", "transposed", ((9, 7), (33, 17))),
    ("transposed", "framed", ((9, 7), (33, 17))),
    ("framed", "channels-last", ((2, 3, 5, 3),)),
    ("channels-last", "framed", ((2, 3, 5, 3),)),
    ("framed", "offset", ((33,), (9, 7))),
    ("framed", "gaps", ((33,), (9, 7))),
    ("gaps", "framed", ((33,), (9, 7))),
    ("gaps", "gaps", ((33,),)),
    ("framed", "expanded", ((33,), (9, 7), (4, 17, 3, 3))),
    ("transposed", "expanded", ((9, 7),)),
)
"""How parameters lie, how their gradients do, and shapes."""


def layouts() -> list[Tried]:
    """Return the trials of how tensors lie in memory."""
    dense = [(lying, lying, shape) for lying, shapes in _DENSE for shape in shapes]
    unlike = [(parameter, gradient, shape) for parameter, gradient, shapes in _UNLIKE for shape in shapes]
    return [
        Tried(
            _lying("layouts", dense),
            {"parameters and gradients": "views at an odd offset, transposed, channels-last"},
        ),
        Tried(
            _lying("gradients that lie otherwise", unlike),
            {"gradients": "transposed, channels-last, at an odd offset, with gaps, expanded, unlike parameters"},
        ),
    ]


def _lying(name: str, kinds: Iterable[tuple[Layout, Layout, tuple[int, ...]]]) -> Scenario:
    members = [
        Member(
            f"{_laid(parameter, gradient)} {_by(shape)}",
            shape,
            0 if len(shape) > 1 else 1,
            layout=parameter,
            gradient_layout=gradient,
        )
        for parameter, gradient, shape in kinds
    ]
    stage = Stage((Group("matrix"), Group("vector")), _placed(sorted(members, key=lambda each: each.group)))
    return Scenario(name, stage, STEPS, SAVED_AT, scheduled=False, unusual=True)


def _laid(parameter: Layout, gradient: Layout) -> str:
    words = {"framed": "contiguous", "offset": "unaligned", "gaps": "with gaps"}
    first, second = words.get(parameter, parameter), words.get(gradient, gradient)
    return first if parameter == gradient else f"{first}, gradient {second},"


def suited(tried: Tried, traits: OptimizerTraits) -> Tried:
    """Return the trial with what an implementation cannot do without: a matrix, a sparse gradient."""
    stage = tried.scenario.stage
    groups, members = list(stage.groups), list(stage.members)
    matrices = any(groups[each.group].role == "matrix" and len(each.shape) == 2 for each in members)
    if traits.granularity == "matrix" and not matrices:
        members.append(Member("matrix", (4, 6), len(groups)))
        groups.append(Group("matrix"))
    if traits.sparse_gradients == "only" and not any(each.sparse for each in members):
        members.append(Member("rows", (4097, 3), len(groups), sparse=True))
        groups.append(Group("sparse"))
    if traits.granularity == "model":
        groups = [replace(each, lr_scale=1.0) for each in groups]
    return replace(tried, scenario=replace(tried.scenario, stage=Stage(tuple(groups), tuple(members))))


def within(tried: Tried, traits: OptimizerTraits) -> Tried:
    """Return the trial of those tensors alone that lie as an implementation declares they must."""
    return only(tried, [each for each in tried.scenario.stage.members if _lies(each, traits.strides)])


def _lies(member: Member, declared: str) -> bool:
    given = member.gradient_layout or member.layout
    own, other = (strides(member.shape, each) for each in (member.layout, given))
    if declared == "contiguous":
        return own == other == strides(member.shape, "contiguous")
    return declared == "any" or (own == other and member.layout != "gaps")


def only(tried: Tried, members: Sequence[Member]) -> Tried:
    """Return a trial of some of its tensors alone."""
    scenario = tried.scenario
    return replace(tried, scenario=replace(scenario, stage=replace(scenario.stage, members=tuple(members))))


def _placed(members: Sequence[Member]) -> tuple[Member, ...]:
    """Give every member numbers of its own among those that are drawn at once."""
    placed, start = [], 0
    for each in members:
        placed.append(replace(each, place=start))
        start += math.prod(each.shape)
    return tuple(placed)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) if len(shape) > 1 else f"{shape[0]:,}"


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers in words, neighbours as a range."""
    runs: list[list[int]] = []
    for each in sorted(numbers):
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    return ", ".join(f"{run[0]:,}" if len(run) == 1 else f"{run[0]:,}-{run[-1]:,}" for run in runs)
