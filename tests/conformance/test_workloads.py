"""What every registered workload keeps, whatever it is: a new entry is tested without a new test."""

from __future__ import annotations

import inspect
import json
import math
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.interfaces import (
    DataShard,
    OptimizerOnlyWorkload,
    Target,
    Workload,
    WorkloadSize,
    WorkloadTraits,
)
from harness.model_facts import WHOLE, matches, units_of
from harness.registry import WORKLOADS, static_traits

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = WORKLOADS.names()
SIZES = [(name, size) for name in NAMES for size in WORKLOADS.get(name).traits.sizes]
TRAINED = [name for name in NAMES if not WORKLOADS.get(name).traits.optimizer_only]
INDEPENDENT = [
    (name, size)
    for name, size in SIZES
    if name in TRAINED and WORKLOADS.get(name).traits.sizes[size].parameters < 1_500_000
]
"""Trained sizes small enough to run forward and backward on many times."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: on a busy machine threads that wait for each other take many times longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def on_meta(workload: Workload) -> nn.Module:
    with torch.device("meta"):
        return workload.build()


def initialised(workload: Workload, seed: int = 0) -> nn.Module:
    model = workload.build()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            workload.initialise(name, tensor, seed)
    return model


def step_of(workload: Workload, shard: DataShard) -> list[dict[str, torch.Tensor]]:
    batches = workload.batches(shard)
    return [dict(next(batches)) for _ in range(shard.accumulation)]


def global_step(
    workload: Workload, ranks: int, accumulation: int, samples: int, step: int
) -> dict[str, torch.Tensor]:
    """Put one step's global batch together out of all ranks' micro-batches."""
    pieces: dict[int, dict[str, torch.Tensor]] = {}
    for rank in range(ranks):
        shard = DataShard(rank, ranks, samples, accumulation, seed=5)
        batches = workload.batches(shard)
        for _ in range(step * accumulation):
            next(batches)
        for micro in range(accumulation):
            pieces[shard.positions(micro).start] = dict(next(batches))
    ordered = [pieces[first] for first in sorted(pieces)]
    return {key: torch.cat([piece[key] for piece in ordered]) for key in ordered[0]}


@pytest.mark.parametrize("name", NAMES)
def test_traits_read_from_the_source_are_the_traits_of_the_class(name: str) -> None:
    read = static_traits(WORKLOADS.target(name), WorkloadTraits, (WorkloadSize, Target))
    assert read is not None
    assert read == WORKLOADS.get(name).traits


@pytest.mark.parametrize("name", NAMES)
def test_constructor_takes_size_data_and_exactly_the_declared_options(name: str) -> None:
    taken = {p.name: p.default for p in inspect.signature(WORKLOADS.get(name)).parameters.values()}
    assert (taken.pop("size"), taken.pop("data")) == (None, None)
    assert taken == WORKLOADS.get(name).traits.options


@pytest.mark.parametrize("name", NAMES)
def test_unknown_size_is_refused_with_the_known_ones(name: str) -> None:
    kind = WORKLOADS.get(name)
    with pytest.raises(ValueError, match="unknown size 'gigantic'") as raised:
        kind("gigantic")
    assert all(size in str(raised.value) for size in kind.traits.sizes)


@pytest.mark.parametrize("name", [name for name in NAMES if not WORKLOADS.get(name).traits.reads_data_file])
def test_data_file_is_refused_where_none_is_read(name: str) -> None:
    with pytest.raises(ValueError, match="reads no file of yours"):
        WORKLOADS.get(name)(data="tokens.bin")


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_declared_parameters_are_those_of_the_model(name: str, size: str) -> None:
    workload = WORKLOADS.get(name)(size)
    count = sum(p.numel() for p in on_meta(workload).parameters() if p.requires_grad)
    assert count == workload.traits.size(size).parameters
    assert all(p.is_meta for p in on_meta(workload).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_patterns_name_parameters_and_blocks_that_exist(name: str) -> None:
    kind = WORKLOADS.get(name)
    models = [on_meta(kind(size)) for size in kind.traits.sizes]
    parameters = {path for model in models for path, _ in model.named_parameters()}
    modules = {path for model in models for path, _ in model.named_modules()}
    traits = kind.traits
    for pattern in (*traits.embeddings, *traits.heads, *traits.sparse_parameters):
        assert any(fnmatchcase(path, pattern) for path in parameters), pattern
    # A pattern for two-digit blocks may match nothing in smaller sizes; but no match may lie inside another.
    blocks = [path for path in modules if path and any(matches(path, pattern) for pattern in traits.blocks)]
    assert bool(blocks) == (traits.blocks not in {(), WHOLE})
    assert all(
        units_of(model, traits.blocks).remark(name) is None
        for model in models
        if traits.blocks and not traits.optimizer_only
    )
    assert not any(inner.startswith(f"{outer}.") for inner in blocks for outer in blocks)


@pytest.mark.parametrize("name", NAMES)
def test_workload_fulfils_the_protocol(name: str) -> None:
    workload = WORKLOADS.get(name)()
    assert isinstance(workload, Workload)
    assert isinstance(workload, OptimizerOnlyWorkload) == workload.traits.optimizer_only


@pytest.mark.parametrize("name", NAMES)
def test_initialisation_fills_everything_and_depends_on_seed_and_name_alone(name: str) -> None:
    workload = WORKLOADS.get(name)()
    model = workload.build()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    with torch.no_grad():
        for _, tensor in tensors:
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
        for path, tensor in reversed(tensors):
            workload.initialise(path, tensor, 3)
    other = initialised(workload, 3)
    for path, tensor in tensors:
        assert tensor.isfinite().all(), path
        assert torch.equal(
            tensor, other.get_parameter(path) if path in dict(other.named_parameters()) else other.get_buffer(path)
        ), path
    different = dict(initialised(workload, 4).named_parameters())
    assert any(not torch.equal(tensor, different[path]) for path, tensor in model.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_initialisation_in_another_dtype_gives_the_same_values_rounded(name: str) -> None:
    workload = WORKLOADS.get(name)()
    for path, tensor in initialised(workload).named_parameters():
        rounded = torch.empty_like(tensor, dtype=torch.bfloat16, requires_grad=False)
        workload.initialise(path, rounded, 0)
        assert torch.equal(rounded, tensor.detach().bfloat16()), path


@pytest.mark.parametrize("name", NAMES)
def test_building_and_initialising_draw_nothing_from_the_global_generator(name: str) -> None:
    before = torch.get_rng_state()
    initialised(WORKLOADS.get(name)())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("name", "size"), [*INDEPENDENT, ("resnet", "50"), ("parameters", "resnet-50")])
@settings(max_examples=8, deadline=None)
@given(ranks=st.integers(1, 4), accumulation=st.integers(1, 3), micro=st.integers(1, 3), step=st.integers(0, 30))
def test_global_batches_do_not_depend_on_how_they_are_split(
    name: str, size: str, ranks: int, accumulation: int, micro: int, step: int
) -> None:
    workload = WORKLOADS.get(name)(size)
    samples = ranks * accumulation * micro
    whole = global_step(workload, 1, 1, samples, step)
    split = global_step(workload, ranks, accumulation, samples, step)
    assert whole.keys() == split.keys()
    assert all(torch.equal(whole[key], split[key]) for key in whole)
    assert whole["sample"].tolist() == list(range(step * samples, (step + 1) * samples))
    assert whole["sample"].dtype == torch.int64
    assert all(len(tensor) == samples for tensor in whole.values())


@pytest.mark.parametrize("name", NAMES)
def test_batches_differ_between_steps_and_between_seeds(name: str) -> None:
    workload = WORKLOADS.get(name)()
    data = {key for key in next(workload.batches(DataShard(0, 1, 4, 1, 0))) if key not in {"sample", "step"}}
    batches = workload.batches(DataShard(0, 1, 4, 1, 0))
    first, second = next(batches), next(batches)
    (other,) = step_of(workload, DataShard(0, 1, 4, 1, 1))
    assert any(not torch.equal(first[key], second[key]) for key in data)
    assert any(not torch.equal(first[key], other[key]) for key in data)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("bf16", [False, True])
def test_loss_is_one_finite_float32_number_with_gradients_for_every_parameter(name: str, *, bf16: bool) -> None:
    workload = WORKLOADS.get(name)()
    model = initialised(workload)
    (batch,) = step_of(workload, DataShard(0, 1, 4, 1, 0))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = workload.loss(model, batch)
    assert (loss.shape, loss.dtype) == (torch.Size(()), torch.float32)
    assert loss.isfinite()
    loss.backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        values = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
        assert values.isfinite().all(), path
        sparse = any(fnmatchcase(path, pattern) for pattern in workload.traits.sparse_parameters)
        assert parameter.grad.is_sparse == sparse, path


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, size in SIZES if name in TRAINED])
def test_forward_and_backward_run_on_the_meta_device(name: str, size: str) -> None:
    # Where FLOPs are counted, without the memory or the time of the real thing.
    workload = WORKLOADS.get(name)(size)
    model = on_meta(workload)
    (batch,) = step_of(workload, DataShard(0, 1, 2, 1, 0))
    loss = workload.loss(model, {key: tensor.to("meta") for key, tensor in batch.items()})
    assert loss.shape == ()
    loss.backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


@pytest.mark.parametrize(("name", "size"), INDEPENDENT)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_loss_of_a_batch_is_the_mean_of_the_losses_of_its_parts(name: str, size: str, dropout: float) -> None:
    kind = WORKLOADS.get(name)
    options = {"dropout": dropout} if "dropout" in kind.traits.options else {}
    workload = kind(size, **options)
    assert not workload.traits.size(size).batch_coupled
    model = initialised(workload)
    (whole,) = step_of(workload, DataShard(0, 1, 8, 1, 0))
    parts = [step_of(workload, DataShard(rank, 2, 8, 2, 0)) for rank in range(2)]
    losses = torch.stack([workload.loss(model, batch) for rank in parts for batch in rank])
    torch.testing.assert_close(workload.loss(model, whole), losses.mean(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_evaluation_returns_the_declared_metrics_and_the_same_values_again(name: str) -> None:
    workload = WORKLOADS.get(name)()
    model = initialised(workload).eval()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    with torch.no_grad():
        first, second = workload.evaluate(model), workload.evaluate(model)
    assert first == second
    assert set(first) == set(workload.traits.metrics)
    assert all(isinstance(value, float) and math.isfinite(value) for value in first.values())
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_of_declared_metrics_in_their_direction(name: str) -> None:
    traits = WORKLOADS.get(name).traits
    targets = [size.target for size in traits.sizes.values() if size.target is not None]
    assert all(traits.metrics[target.metric] == target.better for target in targets)


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_json_and_say_where_the_data_come_from(name: str) -> None:
    facts = WORKLOADS.get(name)().facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["data_source"]


@pytest.mark.parametrize(("name", "size"), [*INDEPENDENT, ("resnet", "18-groupnorm"), ("resnet", "18-batchnorm")])
def test_declared_activations_are_within_a_factor_of_two(name: str, size: str) -> None:
    workload, samples = WORKLOADS.get(name)(size), 8
    model = initialised(workload)
    (batch,) = step_of(workload, DataShard(0, 1, samples, 1, 0))
    standing = [*model.parameters(), *model.buffers(), *batch.values()]
    own = {tensor.untyped_storage().data_ptr() for tensor in standing}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = workload.loss(model, batch)
    measured = sum(kept.values()) / samples
    declared = workload.traits.size(size).activation_bytes_per_sample
    assert measured / 2 <= declared <= measured * 2
    assert loss.requires_grad
