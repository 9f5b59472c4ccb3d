"""Names, in terms of numbers and places, which elements an implementation gets wrong.

What is said of one tensor ("the last 12 of 1,200 elements do not move") is followed by what all wrong ones have in
common and no right one has: a length, a number in the list, a layout.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.verification.comparing import Twist
from harness.verification.layouts import strides, whole
from harness.verification.sized import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from harness.verification.comparing import Held
    from harness.verification.layouts import Layout
    from harness.verification.playing import Trace
    from harness.verification.sized import Found
    from harness.verification.stream import Member, Stage

_WIDTHS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Of vectors and blocks whose remainder a kernel may forget."""


@dataclass(frozen=True)
class _Wrong:
    """One tensor of which elements are wrong.

    Attributes:
        member: the tensor.
        number: in its group, from 1; of: how many there are.
        places: of the wrong elements.
        still: all of them stand still.
    """

    member: Member
    number: int
    of: int
    places: Tensor
    still: bool

    @property
    def length(self) -> int:
        return math.prod(self.member.shape)

    @property
    def first(self) -> int:
        return int(self.places[0])

    @property
    def last(self) -> int:
        return int(self.places[-1])

    @property
    def count(self) -> int:
        return len(self.places)

    @property
    def entire(self) -> bool:
        return self.count == self.length

    @property
    def together(self) -> bool:
        return self.last - self.first + 1 == self.count

    @property
    def tail(self) -> bool:
        return self.together and self.last == self.length - 1


def named(found: Found, stage: Stage, held: Held | None = None, trace: Trace | None = None) -> str | None:
    """Return what is wrong, in words; None: nothing is.

    Args:
        found: which elements are.
        stage: the tensors and their groups.
        held: the reference; with ``trace`` misreadings of gradients are tried, too.
        trace: what was seen.
    """
    wrong, right = _split(found, stage)
    if not wrong:
        return None
    if held is not None and trace is not None:
        misread = _misread(held, trace)
        if misread is not None:
            return misread
    if all(each.entire for each in wrong):
        return _whole_tensors(wrong, right, stage)
    return _parts(wrong, right)


def _split(found: Found, stage: Stage) -> tuple[list[_Wrong], list[_Wrong]]:
    """Return the tensors with wrong elements, and the others."""
    sizes = _group_sizes(stage)
    numbers: dict[int, int] = {}
    wrong: list[_Wrong] = []
    right: list[_Wrong] = []
    stills = [part for _, part in found.parts(found.still)]
    for (member, part), still in zip(found.parts(found.wrong), stills, strict=True):
        number = numbers[member.group] = numbers.get(member.group, 0) + 1
        places = part.nonzero().view(-1)
        each = _Wrong(member, number, sizes[member.group], places, bool((still == part).all()))
        (wrong if len(places) else right).append(each)
    return wrong, right


def _group_sizes(stage: Stage) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for each in stage.members:
        sizes[each.group] = sizes.get(each.group, 0) + 1
    return sizes


def _fate(wrong: Sequence[_Wrong], *, one: bool = False) -> str:
    """Return what becomes of the wrong elements, as the rest of a sentence."""
    if all(each.still for each in wrong):
        return "does not move" if one else "do not move"
    return "gets a wrong update" if one else "get a wrong update"


def _whole_tensors(wrong: Sequence[_Wrong], right: Sequence[_Wrong], stage: Stage) -> str:
    """Describe tensors of which no element is right."""
    shown = wrong[0]
    for rule in (_by_layout, _by_group_size, _by_group, _by_number, _by_length):
        words = rule(wrong, right, stage)
        if words is not None:
            return f"{words} {_fate(wrong, one=words.startswith(('tensor number', 'the last tensor')))}"
    if len(wrong) == 1:
        return f"tensor number {shown.number} of {shown.of:,} {_fate(wrong, one=True)}"
    total = len(wrong) + len(right)
    return f"{len(wrong):,} of {total:,} tensors {_fate(wrong)}, such as number {shown.number} of {shown.of:,}"


def _by_group_size(wrong: Sequence[_Wrong], right: Sequence[_Wrong], stage: Stage) -> str | None:
    """A group is wrong as a whole, and those of its size alone."""
    del stage
    counts, others = {each.of for each in wrong}, {each.of for each in right}
    if not right or counts & others:
        return None
    if counts == {1}:
        return "the tensors of groups of one tensor"
    least = min(counts)
    if others and least > max(others):
        return f"the tensors of groups of {least:,} tensors and more"
    return f"the tensors of groups of {_listed(sorted(counts))} tensors"


def _by_group(wrong: Sequence[_Wrong], right: Sequence[_Wrong], stage: Stage) -> str | None:
    groups, others = {each.member.group for each in wrong}, {each.member.group for each in right}
    total = len(stage.groups)
    if groups & others or total == 1 or not others:
        return None
    first = min(groups)
    if groups == set(range(first, total)):
        if first == 1:
            return f"the tensors of every group but the first, of {total:,} groups,"
        return f"the tensors of groups number {first + 1:,} to {total:,} of {total:,} groups"
    return f"the tensors of group number {_listed([each + 1 for each in sorted(groups)])} of {total:,} groups"


def _by_number(wrong: Sequence[_Wrong], right: Sequence[_Wrong], stage: Stage) -> str | None:
    del stage
    numbers = sorted({each.number for each in wrong})
    first, longest = numbers[0], max(each.of for each in wrong)
    if all(each.number < first for each in right) and 1 < first < longest:
        return f"tensors number {first:,} to {longest:,} of {longest:,}"
    if len(numbers) == 1 and len(wrong) > 1 and all(each.number != first for each in right):
        return f"tensor number {first:,} of every list of so many"
    return _last_of_lists(wrong, right) or _series(numbers, right, longest)


def _last_of_lists(wrong: Sequence[_Wrong], right: Sequence[_Wrong]) -> str | None:
    ends = [each.of for each in right if each.number == each.of]
    if all(each.number == each.of for each in wrong) and len(wrong) > 1:
        least = min(each.of for each in wrong)
        if not ends:
            return "the last tensor of each list"
        if max(ends) < least:
            return f"the last tensor of each list of {least:,} tensors and more"
    return None


def _series(numbers: Sequence[int], right: Sequence[_Wrong], longest: int) -> str | None:
    """Describe tensors by their numbers: a run of them, or every so many."""
    first = numbers[0]
    if len(numbers) > 1 and not {each.number for each in right} & set(numbers):
        run = numbers == list(range(first, numbers[-1] + 1))
        if run:
            return f"tensors number {first:,} to {numbers[-1]:,} of {longest:,}"
        gap = numbers[1] - numbers[0]
        if len(numbers) > 2 and numbers == list(range(first, numbers[-1] + 1, gap)):
            return f"tensors number {first:,}, {first + gap:,}, {first + 2 * gap:,} … of {longest:,}"
    return None


def _by_length(wrong: Sequence[_Wrong], right: Sequence[_Wrong], stage: Stage) -> str | None:
    del stage
    lengths, others = sorted({each.length for each in wrong}), {each.length for each in right}
    if set(lengths) & others or not others:
        return None
    if len(lengths) == 1:
        return f"tensors of {elements(lengths[0])}"
    if lengths[0] > max(others):
        return f"tensors of {lengths[0]:,} elements and more"
    if lengths[-1] < min(others):
        return f"tensors of {lengths[-1]:,} elements and fewer"
    return _by_remainder(lengths, others) or f"tensors of {_listed(lengths)} elements"


def _by_remainder(lengths: Sequence[int], others: set[int]) -> str | None:
    for width in reversed(_WIDTHS):
        if all(each % width for each in lengths) and not any(each % width for each in others):
            return f"tensors whose length is no multiple of {width:,}"
        if not any(each % width for each in lengths) and all(each % width for each in others):
            return f"tensors whose length is a multiple of {width:,}"
    return None


def _parts(wrong: Sequence[_Wrong], right: Sequence[_Wrong]) -> str:
    """Describe tensors of which some elements are right."""
    shown = min(wrong, key=lambda each: (each.entire, each.tail, each.length % 100 != 0, each.length))
    rule = _common(wrong, right)
    return _part(shown, wrong) + (f" ({rule})" if rule is not None else "")


def _part(shown: _Wrong, wrong: Sequence[_Wrong]) -> str:
    one, of = shown.count == 1, f"of {elements(shown.length)}"
    fate = _fate(wrong, one=one)
    if shown.tail:
        return f"the last {'element' if one else f'{shown.count:,}'} {of} {fate}"
    if shown.together and shown.first == 0:
        return f"the first {'element' if one else f'{shown.count:,}'} {of} {fate}"
    if shown.together:
        numbers = f"element {shown.first + 1:,}" if one else f"elements {shown.first + 1:,} to {shown.last + 1:,}"
        return f"{numbers} {of} {fate}"
    return f"{shown.count:,} {of} {fate}, such as number {shown.first + 1:,}"


def _common(wrong: Sequence[_Wrong], right: Sequence[_Wrong]) -> str | None:
    """Return what the wrong parts have in common."""
    layout = _layout_words([each.member for each in wrong], [each.member for each in right])
    if layout is not None:
        return f"in tensors that are {layout}, and in no others"
    longest = max((each.length for each in right), default=0)
    every = "every tensor"
    if 0 < longest < min(each.length for each in wrong):
        every = f"every tensor of more than {elements(longest)}"
    if all(each.together for each in wrong) and len({each.first for each in wrong}) == 1:
        return _range(wrong)
    if all(each.tail for each in wrong):
        return _tail(wrong, right, every)
    return f"in {every}" if longest and every != "every tensor" else _how_many(wrong, right)


def _range(wrong: Sequence[_Wrong]) -> str | None:
    """Describe parts that begin at one number."""
    first, ends = wrong[0].first + 1, {each.last + 1 for each in wrong if not each.tail}
    if len(ends) == 1:
        return "in every tensor that has them"
    if not ends and first > 1:
        return f"all elements from number {first:,} on"
    return None


def _tail(wrong: Sequence[_Wrong], right: Sequence[_Wrong], every: str) -> str:
    """Describe ends of tensors."""
    least = min(each.length for each in wrong)
    comparable = [each.length for each in right if each.length >= least]
    for width in reversed(_WIDTHS):
        if any(length % width for length in comparable):
            continue
        if all(each.count == each.length % width for each in wrong):
            return f"what is left over of a multiple of {width:,} elements"
    shares = {each.length / each.count for each in wrong if each.count >= 10}
    if shares and max(shares) < 1.1 * min(shares) and round(min(shares)) > 1:
        return f"the last 1/{round(min(shares)):,} of {every}"
    counts = {each.count for each in wrong}
    if len(counts) == 1:
        return f"the last {elements(counts.pop())} of {_how_many(wrong, right)}"
    return _how_many(wrong, right)


def _how_many(wrong: Sequence[_Wrong], right: Sequence[_Wrong]) -> str:
    return f"{len(wrong):,} of {len(wrong) + len(right):,} tensors"


def _by_layout(wrong: Sequence[_Wrong], right: Sequence[_Wrong], stage: Stage) -> str | None:
    del stage
    words = _layout_words([each.member for each in wrong], [each.member for each in right])
    return None if words is None else f"tensors that are {words}"


def _layout_words(wrong: Sequence[Member], right: Sequence[Member]) -> str | None:
    """Return how the wrong ones lie, if no right one does."""
    ways: tuple[Callable[[Member], tuple[Layout, ...]], ...] = (
        lambda each: (each.layout,),
        lambda each: (_gradient_layout(each),),
        lambda each: (each.layout, _gradient_layout(each)),
    )
    words = ("{}", "given gradients that are {}", "{} with gradients that are {}")
    for way, form in zip(ways, words, strict=True):
        lying, others = {way(each) for each in wrong}, {way(each) for each in right}
        if others and not lying & (others | {("contiguous",), ("framed",)}):
            return _listed([form.format(*(_LYING[each] for each in lies)) for lies in sorted(lying)])
    return None


_LYING = {
    "contiguous": "contiguous",
    "framed": "contiguous",
    "offset": "unaligned",
    "transposed": "transposed",
    "channels-last": "channels-last",
    "gaps": "strided with gaps",
    "expanded": "expanded",
}


def _gradient_layout(each: Member) -> Layout:
    return each.gradient_layout or each.layout


def _misread(held: Held, trace: Trace) -> str | None:
    """Return which way of reading gradients in the wrong order explains everything."""
    plain = {"contiguous", "framed"}
    if all({each.layout, _gradient_layout(each)} <= plain for each in trace.scenario.stage.members):
        return None
    for cause, order in _ORDERS.items():
        twist = Twist(cause, gradient=functools.partial(_reread, order=order))
        if judge(held, trace, twist).worst.ratio <= 1:
            return cause
    return None


def _by_parameter(member: Member, gradient: Tensor) -> Tensor:
    return _read(whole(gradient), member, strides(member.shape, member.layout), int(gradient.storage_offset()))


def _by_memory(member: Member, gradient: Tensor) -> Tensor:
    return _read(whole(gradient), member, strides(member.shape, "contiguous"), int(gradient.storage_offset()))


def _by_index(member: Member, gradient: Tensor) -> Tensor:
    flat = gradient.contiguous().view(-1)
    if member.layout == "gaps":
        return gradient
    return _read(flat, member, strides(member.shape, member.layout), 0)


_ORDERS: dict[str, Callable[[Member, Tensor], Tensor]] = {
    "the gradient is read by the parameter's strides, not by its own": _by_parameter,
    "the gradient is read in the order of memory, whatever its strides": _by_memory,
    "the parameter is read in the order of memory, the gradient by its indices": _by_index,
}


def _read(flat: Tensor, member: Member, steps: Sequence[int], offset: int) -> Tensor:
    return flat.as_strided(member.shape, steps, offset).double().clone()


def _reread(trace: Trace, name: str, step: int, order: Callable[[Member, Tensor], Tensor]) -> Tensor | None:
    from harness.verification.stream import given

    member = trace.scenario.stage.member(name)
    like = trace.steps[step - 1].before[name].to(trace.dtype)
    gradient = given(member, step, like)
    return None if gradient is None else order(member, gradient)


def _listed(words: Sequence[object]) -> str:
    told = [f"{each:,}" if isinstance(each, int) else str(each) for each in words]
    if len(told) > 4:
        return f"{', '.join(told[:3])} … {told[-1]}"
    return " and ".join(filter(None, [", ".join(told[:-1]), told[-1]]))


def elements(count: int) -> str:
    """Return a number of elements in words."""
    return f"{count:,} element{'' if count == 1 else 's'}"
