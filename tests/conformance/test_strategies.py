"""Every strategy trains what ``single`` trains: the whole grid of the registries, in real torchrun worlds.

Cells of one world size share a world. A cell that the plan refuses must say why; any other must train, and its
losses must be those of one rank with the same global batch. ``pytest -m exhaustive`` tries every optimizer under
every variation and on four ranks too.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import TYPE_CHECKING

import pytest
import worlds

from harness import kernels, probe
from harness.checks.curves import WIDEST
from harness.plan import plan
from harness.registry import OPTIMIZERS, STRATEGIES, strategy
from harness.spec import RunSpec
from harness.verification.amplifying import amplified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

pytestmark = pytest.mark.timeout(3600)

STEPS, FEW, MANY = 6, 3, 12
CLIP = 0.5
SLOWEST = 10  # cells whose time is shown where a test fails

BOUND = 1e-5
"""Largest relative difference of a loss from ``single``'s, element-wise algorithms in fp32."""

MUON_BOUND = 2e-3
"""torch's Muon iterates in bfloat16, where another order of additions is another rounding."""

CLOSURE_BOUND = 1e-3
"""Each step evaluates the loss twenty times, and feeds the rounding of one into the next."""

CLOSURE_ROUNDED_BOUND = 0.3
"""The same where the parameters or the forward pass round to bfloat16. Seen: 0.16 under DDP with bf16-pure."""

QUANTISED_BOUND = {
    # Blocks of the quantisation are cut from what a strategy hands over: a flat partition or a shard has others.
    "uint8": 2e-3,
    "int8": 2e-3,
    "float8_e4m3fn": 2e-3,
    "uint4": 1e-2,
    "int4": 1e-2,
    "bfloat16": 1e-2,
}
"""By the narrowest dtype of the optimizer's state."""

PRECISION_BOUND = {"bf16": 5e-3, "bf16-pure": 5e-3, "bf16-master": 5e-3}
"""bfloat16 keeps 8 bits: one rounding is up to 4e-3 of a value, and shards and micro-batches round in another
order. Seen over three steps: 4e-4, and 1.1e-3 with Adafactor."""


@functools.cache
def machine():
    return probe.machine((), (), print)


def cell(optimizer: str, name: str, ranks: int, **fields) -> RunSpec:
    fields = {"steps": STEPS, "warmup_steps": 2, "schedule": "warmup-cosine", **fields}
    if OPTIMIZERS.get(optimizer).traits.closure:
        # Twenty evaluations a step at its own rate of 1 amplify every rounding; clipped, it diverges.
        fields |= {"steps": FEW, "warmup_steps": 1, "lr": 0.1, "clip_norm": None}
    return RunSpec(
        workload="tiny:Tiny", optimizer=optimizer, strategy=name, world_size=ranks, device="cpu", **fields
    )


def planned(specs: Iterable[RunSpec]):
    return plan(list(specs), machine()).cells


def resolved(spec: RunSpec) -> RunSpec:
    return planned([spec])[0].spec


def distributed() -> list[str]:
    return [name for name in STRATEGIES.names() if not strategy(name).one_rank]


def compiles(name: str) -> bool:
    """Say whether a cell of it spends its time in the compiler: tried exhaustively, and in the main job."""
    return OPTIMIZERS.get(name).traits.compiled


def kind(name: str) -> tuple[str, str, tuple[str, ...]]:
    """Return what makes an optimizer unlike others: its code's family, its granularity, how its state is kept."""
    optimizer = OPTIMIZERS.get(name)
    return (type(optimizer).__module__, optimizer.traits.granularity, optimizer.traits.state_dtypes)


def typical() -> list[str]:
    """Return every implementation of AdamW, and the first optimizer of each further kind."""
    seen = set()
    chosen = []
    for name in OPTIMIZERS.names():
        if name.startswith("adamw/") or kind(name) not in seen:
            seen.add(kind(name))
            chosen.append(name)
    return chosen


def reference(spec: RunSpec) -> RunSpec:
    """Return the cell whose losses this one must repeat."""
    optimizer = OPTIMIZERS.get(spec.optimizer)
    changes = {"world_size": 1, "accumulation": 1, "strategy": "single", "strategy_options": {}, "threads": 1}
    config = getattr(optimizer, "deepspeed_config", None)
    if spec.strategy.startswith("zero") and optimizer.traits.granularity == "matrix" and config and config(spec):
        changes |= {"strategy": "zero0", "world_size": spec.world_size, "accumulation": spec.accumulation}
    return spec.model_copy(update=changes)


def bound(spec: RunSpec) -> float:
    traits = OPTIMIZERS.get(spec.optimizer).traits
    bounds = [QUANTISED_BOUND[dtype] for dtype in traits.state_dtypes if dtype in QUANTISED_BOUND]
    if traits.granularity == "matrix":
        bounds += [MUON_BOUND, rounding(spec.optimizer)]
    if traits.closure:
        bounds.append(CLOSURE_BOUND if spec.precision == "fp32" else CLOSURE_ROUNDED_BOUND)
    return max([PRECISION_BOUND.get(spec.precision, BOUND), *bounds])


@functools.cache
def rounding(name: str) -> float:
    """Return what the gradients' last bits make of an update: SOAP's losses part by as much as that in the end."""
    spec = RunSpec(workload="tiny:Tiny", optimizer=name, device="cpu")
    return min(WIDEST, amplified(OPTIMIZERS.get(name), spec).error or 0.0)


def difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    assert len(losses) == len(expected)
    assert all(map(math.isfinite, [*losses, *expected]))
    return max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))


Wanted = list[tuple[RunSpec, str | None]]
"""Cells, each with the name of what is changed for it in world.PATCHES."""

RAN: dict[tuple[str, str | None], worlds.Ran] = {}
"""What was trained: cells that several tests look at are trained once."""


def ran(wanted: Wanted) -> list[worlds.Ran]:
    """Train what was not trained yet, in one world of each size; return all of it."""
    new = {_key(*each): each for each in wanted if _key(*each) not in RAN}
    if new:
        specs = [spec for spec, _ in new.values()]
        kernels.ensure(sorted({name for spec in specs for name in kernels_of(spec)}), print, "cpu")
        found = worlds.run(specs, [patch for _, patch in new.values()], limit_s=3000)
        RAN.update(zip(new, found, strict=True))
        for slow in sorted(found, key=lambda each: -each.took_s)[:SLOWEST]:
            print(f"{slow.took_s:.1f} s: {slow}")
    return [RAN[_key(*each)] for each in wanted]


def _key(spec: RunSpec, patch: str | None) -> tuple[str, str | None]:
    return spec.model_dump_json(), patch


def kernels_of(spec: RunSpec) -> list[str]:
    return [
        *OPTIMIZERS.get(spec.optimizer).traits.kernels,
        *getattr(strategy(spec.strategy), "kernels", lambda _: ())(spec),
    ]


def able(specs: Iterable[RunSpec]) -> list[RunSpec]:
    return [each.spec for each in planned(specs) if each.unsupported is None]


def with_references(specs: Iterable[RunSpec]) -> Wanted:
    return [(spec, None) for each in able(specs) for spec in (reference(each), each)]


def trained(specs: Iterable[RunSpec]) -> list[tuple[worlds.Ran, worlds.Ran]]:
    """Train the cells that the plan lets run and what they are compared with; return both."""
    found = ran(with_references(specs))
    return list(zip(found[1::2], found[::2], strict=True))


def cells(wanted: Callable[[], Wanted]):
    """Mark a test with the cells that it will ask for, so that all such tests share a world."""

    def marked(test):
        test.cells = wanted
        return test

    return marked


@pytest.fixture(autouse=True, scope="module")
def one_world(request):
    """Train the cells of all marked tests that were chosen."""
    chosen = [item.function for item in request.session.items if item.path == request.path]
    ran([each for test in dict.fromkeys(chosen) if hasattr(test, "cells") for each in test.cells()])


def faults(specs: Iterable[RunSpec]) -> list[str]:
    """Return a line for each cell that neither trains rightly nor says why it can't."""
    specs = list(specs)
    found = [
        f"{each.spec.optimizer} {each.spec.strategy}: no remedy"
        for each in planned(specs)
        if each.unsupported == ""
    ]
    for it, expected in trained(specs):
        if it.outcome == "unsupported" and it.reason:
            continue
        if it.outcome != "completed":
            found.append(f"{it}: {it.outcome}: {it.reason}")
        elif expected.outcome != "completed":
            found.append(f"{it}: trains, but its reference does not: {expected}: {expected.reason}")
        else:
            largest = difference(it.losses, expected.losses)
            if not largest <= bound(it.spec):
                found.append(f"{it}: losses {largest:.1e} from {expected}, bound {bound(it.spec):.0e}")
            found += unlike_norms(it, expected)
    return found


def unlike_norms(ran: worlds.Ran, expected: worlds.Ran) -> list[str]:
    """Say where clipping saw another norm than one rank does."""
    if ran.spec.clip_norm is None:
        return []
    pairs = list(zip(ran.ranks[0]["norms"], expected.ranks[0]["norms"], strict=True))
    if any(norm is None for pair in pairs for norm in pair):
        return [] if OPTIMIZERS.get(ran.spec.optimizer).traits.closure else [f"{ran}: no gradient norm"]
    largest = max(abs(a - b) / abs(b) for a, b in pairs)
    limit = max(10 * bound(ran.spec), 1e-4)
    return [f"{ran}: gradient norms {largest:.1e} from {expected}"] if largest > limit else []


HANDS = 167
"""Into which cells are dealt; a test plays one. Were it a divisor of the strategies, some would never come up."""


def dealt(names: Iterable[str], hands: int) -> list[tuple[str, str, int]]:
    """Return every optimizer with every strategy and a number below ``hands``, dealt out like cards."""
    pairs = [(name, way) for name in names for way in distributed()]
    assert math.gcd(hands, len(distributed())) == 1
    return [(name, way, number % hands) for number, (name, way) in enumerate(pairs)]


def of_curves() -> list[RunSpec]:
    specs = []
    for name, way, hand in dealt((name for name in typical() if not compiles(name)), HANDS):
        if hand == 0:
            specs.append(cell(name, way, 2))
        if hand == 1 or name == "adamw/foreach":
            specs.append(cell(name, way, 2, accumulation=4, clip_norm=CLIP))
    return specs


@cells(lambda: with_references(of_curves()))
def test_every_strategy_trains_the_same_curve_as_one_rank():
    """One hand of the cells plain, one accumulated and clipped, as all of adamw/foreach; the rest exhaustively."""
    assert faults(of_curves()) == []


def of_one_rank() -> list[RunSpec]:
    return [cell("adamw/foreach", way, 1, clip_norm=CLIP) for way in distributed()]


@pytest.mark.exhaustive
@cells(lambda: with_references(of_one_rank()))
def test_one_rank_in_a_world_of_its_own_trains_the_same_curve():
    assert faults(of_one_rank()) == []


def of_others() -> list[RunSpec]:
    first = set(typical())
    names = [name for name in OPTIMIZERS.names() if name not in first and not compiles(name) and ":" not in name]
    hands = dealt(names, HANDS)  # each optimizer under some; the exhaustive tier tries the rest
    return [cell(name, way, 2, steps=FEW, warmup_steps=1) for name, way, hand in hands if hand == 0]


@cells(lambda: with_references(of_others()))
def test_every_other_cell_trains_or_says_why_not():
    assert faults(of_others()) == []


def of_precisions() -> list[RunSpec]:
    names = [name for name in typical() if not compiles(name)]
    return [
        cell(name, way, 2, steps=FEW, warmup_steps=1, precision=precision)
        for number, precision in enumerate(("tf32", "bf16", "bf16-pure", "bf16-master", "fp16"))
        for name, way, hand in dealt(names, HANDS)
        if hand == number
    ]


@cells(lambda: with_references(of_precisions()))
def test_every_precision_trains_or_says_why_not():
    assert faults(of_precisions()) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-pure", "bf16-master"])
def test_every_optimizer_under_every_strategy_in_every_precision(precision):
    names = [name for name in OPTIMIZERS.names() if not compiles(name)]
    specs = [
        cell(name, way, 2, steps=FEW, warmup_steps=1, precision=precision)
        for name in names
        for way in distributed()
    ]
    assert faults(specs) == []


def of_planted() -> Wanted:
    """Return clipping left to DeepSpeed's default and LAMB forced through flat partitions, each beside one rank.

    After them Muon without its rounding, on one rank and under a strategy of each module.
    """
    unclipped = resolved(cell("sgd-momentum/foreach", "zero1", 2))
    forced = resolved(cell("pytorch_optimizer:lamb", "zero1", 2))  # past the plan, which refuses it
    one_of_each = {type(strategy(way)).__module__: way for way in distributed()}
    muon = able(cell("muon/forloop", way, 2) for way in one_of_each.values())
    wanted: Wanted = [(spec, "no-clipping-entry") for spec in (unclipped, reference(unclipped))]
    wanted += [(forced, None), (reference(forced), None)]
    return wanted + [(spec, "muon-fp32") for spec in (reference(muon[0]), *muon)]


@cells(lambda: of_planted() if importlib.util.find_spec("pytorch_optimizer") else [])
def test_faults_of_the_way_are_seen_and_muons_distance_is_rounding_alone():
    """Both planted faults part; exact Muon does not."""
    pytest.importorskip("pytorch_optimizer")
    wanted = of_planted()
    assert planned([wanted[2][0]])[0].unsupported
    found = ran(wanted)
    for red, alone in (found[:2], found[2:4]):
        assert difference(red.losses, alone.losses) > 100 * BOUND
    alone, *rest = found[4:]
    far = {str(each): difference(each.losses, alone.losses) for each in rest if each.outcome == "completed"}
    assert far
    assert all(distance <= BOUND for distance in far.values()), far


@pytest.mark.exhaustive
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(("accumulation", "clip_norm"), [(1, None), (1, CLIP), (4, None), (4, CLIP)])
def test_every_optimizer_under_every_strategy(ranks, accumulation, clip_norm):
    specs = [
        cell(name, way, ranks, steps=MANY, accumulation=accumulation, clip_norm=clip_norm)
        for name in OPTIMIZERS.names()
        for way in distributed()
    ]
    assert faults(specs) == []


def shares(ran: worlds.Ran, category: str) -> list[int]:
    return [rank["elements"].get(category, 0) for rank in ran.ranks]


def of_state(ranks: int) -> list[RunSpec]:
    ways = {"adamw/foreach": distributed(), "adamw/deepspeed": distributed()[::2]}
    return [
        cell(name, way, ranks, accumulation=4, clip_norm=CLIP)  # as others of the day
        for name in ways
        if name in OPTIMIZERS.names()
        for way in ways[name]
    ]


@cells(lambda: with_references(of_state(2)))
def test_optimizer_state_is_held_by_the_strategys_own_rule():
    assert state_faults(2) == []


@pytest.mark.exhaustive
def test_four_ranks_hold_optimizer_state_by_the_strategys_own_rule():
    assert state_faults(4) == []


def state_faults(ranks: int) -> list[str]:
    """Compare what ranks hold: summed it is what one rank alone holds, each as much as the strategy predicts."""
    wrong = []
    for it, expected in trained(of_state(ranks)):
        if it.outcome != "completed":
            continue
        whole = shares(expected, "state")[0] or OPTIMIZERS.get(it.spec.optimizer).traits.state_tensors * 62336
        way = strategy(it.spec.strategy)
        parted = "state" in getattr(way, "partitioned", ())
        whole *= int({**way.options, **it.spec.strategy_options}.get("replicas", 1))  # of the model in the world
        held = sum(shares(it, "state")) if parted else max(shares(it, "state"))
        if not whole <= held <= 1.1 * whole:  # a little more is padding
            wrong.append(f"{it}: {held} elements of state, {whole} on one rank")
        for number, rank in enumerate(it.ranks):
            if rank["predicted"] is None:
                wrong.append(f"{it}: no prediction")
                continue
            for category in ("parameters", "gradients", "state", "master"):
                told, seen = rank["predicted"]["held_bytes"].get(category), rank["held_bytes"].get(category, 0)
                if told and category != "gradients" and abs(seen - told) > 0.1 * told:
                    wrong.append(f"{it}: rank {number} holds {seen} bytes of {category}, predicted {told}")
    return wrong
