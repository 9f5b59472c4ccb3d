"""Which stored runs are compared with which: runs named one by one, or two folders of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import InvalidInputError, Problem
from harness.invocation import command
from harness.record import RunRecord
from harness.run_ids import COMPARISON_ID, RUN_ID, SWEEP_ID

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from harness.store import Store

Couple = tuple[RunRecord | None, RunRecord | None]
"""A run and its partner; None: it has none."""

SAME = ("workload", "size", "data", "workload_options", "strategy", "precision", "world_size")
"""Fields that two runs of two folders must share to be a pair, beside the algorithm."""

REMEDY = "name two runs or more by their ids, or two folders of runs; or, with --arm, what to run now"


def read(words: Sequence[str], store: Store) -> list[Couple]:
    """Return the pairs that a user's words mean.

    Runs named one by one are compared with the first, whatever they are. Of two folders or sweeps, runs are paired
    that are the same in most of their fields; those without a partner come last, each with None. A run that is
    gone or cannot be read comes as ``missing`` or ``unreadable``, with the reason.

    Args:
        words: ids, beginnings of ids, ``latest``, sweeps, or folders.
        store: where ids are looked up.

    Raises:
        InvalidInputError: a word means no run, there are fewer than two, or runs and folders are mixed.
        CorruptFileError: a run named by itself cannot be read.
    """
    for word in words:
        if COMPARISON_ID.fullmatch(word):
            remedy = f"show it again: {command('compare', '--from', word, results=store.root)}"
            raise InvalidInputError([Problem(word, "is a comparison, not a run", remedy)])
    if len(words) < 2:
        what = "is one run: two are compared" if words else "names nothing to compare"
        raise InvalidInputError([Problem(" ".join(words) or "compare", what, REMEDY)])
    found: list[RunRecord | list[RunRecord]] = []
    problems: list[Problem] = []
    for word in words:
        try:
            found.append(_meant(word, store))
        except InvalidInputError as error:
            problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    single = [each for each in found if isinstance(each, RunRecord)]
    if len(single) == len(found):
        return [(single[0], other) for other in single[1:]]
    if len(found) > 2 or single:
        what = "runs and folders are mixed" if single else "is more than two folders"
        raise InvalidInputError([Problem(" ".join(words), what, REMEDY)])
    left, right = (each for each in found if isinstance(each, list))
    return match(left, right)


def match(left: Sequence[RunRecord], right: Sequence[RunRecord]) -> list[Couple]:
    """Pair the runs of two folders, most alike first; equally alike ones in their order.

    Args:
        left: runs of the first folder.
        right: runs of the second.

    Returns:
        The pairs in the order of the first folder, then what has no partner.
    """
    partner = _equal(left, right)
    by_kind: dict[Hashable, list[int]] = {}
    for index in set(range(len(right))) - set(partner.values()):
        by_kind.setdefault(_kind(right[index]), []).append(index)
    for first in sorted(set(range(len(left))) - partner.keys()):
        open_ones = by_kind.get(_kind(left[first]), [])
        if open_ones and left[first].spec:
            best = min(open_ones, key=lambda index: (_distance(left[first], right[index]), index))
            partner[first] = best
            open_ones.remove(best)
    couples: list[Couple] = [(left[first], right[partner[first]]) for first in sorted(partner)]
    couples += [(record, None) for index, record in enumerate(left) if index not in partner]
    taken = set(partner.values())
    couples += [(None, record) for index, record in enumerate(right) if index not in taken]
    return couples


@dataclass(frozen=True)
class Nearest:
    """Why runs of two folders are no pairs.

    Attributes:
        differ: each field that keeps runs of the first folder from the most alike of the second, and how many;
            the most frequent first.
        pair: the two that are most alike.
        fields: in which these two differ.
    """

    differ: tuple[tuple[str, int], ...]
    pair: tuple[RunRecord, RunRecord]
    fields: tuple[str, ...]


def nearest(left: Sequence[RunRecord], right: Sequence[RunRecord]) -> Nearest | None:
    """Say what keeps runs without a partner from being pairs; None: a side has none that can be read.

    Args:
        left: runs of the first folder that have no partner.
        right: runs of the second.
    """
    readable = [record for record in right if record.spec]
    best: list[tuple[tuple[str, ...], RunRecord, RunRecord]] = []
    for record in left:
        if record.spec and readable:
            told = [(_kept_apart_by(record, other), other) for other in readable]
            fields, other = min(told, key=lambda each: len(each[0]))
            best.append((fields, record, other))
    if not best:
        return None
    counts = Counter(field for fields, _, _ in best for field in fields)
    fields, one, other = min(best, key=lambda each: len(each[0]))
    return Nearest(tuple(counts.most_common()), (one, other), fields)


def _kept_apart_by(one: RunRecord, other: RunRecord) -> tuple[str, ...]:
    fields = tuple(field for field in SAME if one.spec.get(field) != other.spec.get(field))
    return fields if one.algorithm == other.algorithm else ("algorithm", *fields)


def _equal(left: Sequence[RunRecord], right: Sequence[RunRecord]) -> dict[int, int]:
    """Pair runs whose whole specs are equal, the first of one folder with the first of the other."""
    waiting: dict[str, list[int]] = {}
    for index, record in enumerate(right):
        waiting.setdefault(_everything(record), []).append(index)
    partner = {}
    for index, record in enumerate(left):
        equal = waiting.get(_everything(record))
        if equal and record.spec:
            partner[index] = equal.pop(0)
    return partner


def _everything(record: RunRecord) -> str:
    return json.dumps(record.spec, sort_keys=True)


def _kind(record: RunRecord) -> str:
    return json.dumps([record.algorithm, *(record.spec.get(field) for field in SAME)], sort_keys=True)


def _distance(one: RunRecord, other: RunRecord) -> int:
    return sum(one.spec.get(field) != other.spec.get(field) for field in one.spec.keys() | other.spec.keys())


def _meant(word: str, store: Store) -> RunRecord | list[RunRecord]:
    folder = Path(word)
    if SWEEP_ID.fullmatch(word):
        return list(_swept(word, store))
    if RUN_ID.fullmatch(word) or not folder.is_dir():
        if folder.is_absolute() or len(folder.parts) > 1 or word.endswith("/"):
            raise InvalidInputError(
                [Problem(word, "there is no such folder", "name a results folder, or a run's id")]
            )
        return store.read(word)
    beside = type(store)(folder.resolve().parent)
    if RUN_ID.fullmatch(folder.resolve().name):
        return beside.read(folder.resolve().name)
    if SWEEP_ID.fullmatch(folder.resolve().name):
        return list(_swept(folder.resolve().name, beside))
    inside = type(store)(folder)
    records = [inside.attempt(run_id) for run_id in inside.run_ids()]
    if not records:
        raise InvalidInputError(
            [Problem(word, "this folder holds no run", "name a results folder, or a run's id")]
        )
    return records


def _swept(sweep_id: str, store: Store) -> Iterator[RunRecord]:
    sweep = store.read_sweep(sweep_id)
    for spec, run_id in zip(sweep.started, sweep.run_ids, strict=True):
        if run_id is not None:
            yield store.attempt(run_id, spec.model_dump(mode="json"))
