"""Keyed random numbers, dropout, sampling: pure functions of what keys them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.interfaces import DataShard
from workloads.dropout import KeyedDropout, initialise_dropout
from workloads.initialisation import fill_he, fill_normal, fill_uniform, fill_vector
from workloads.keyed_random import bits, derive_key, integers, normal, signed, tensor_bits, uniform
from workloads.sampling import sample_numbers

words = st.integers(0, 2**64 - 1)


def test_bits_are_those_of_the_published_generator() -> None:
    # The first outputs of SplitMix64 from state 0, as its reference implementation prints them.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert bits(0, np.arange(3, dtype=np.uint64)).tolist() == expected


@given(key=words, counters=st.lists(words, min_size=1, max_size=8))
def test_torch_computes_the_same_bits_as_numpy(key: int, counters: list[int]) -> None:
    expected = bits(key, np.array(counters, dtype=np.uint64)).view(np.int64)
    found = tensor_bits(torch.tensor(signed(key)), torch.tensor([signed(c) for c in counters]))
    assert found.tolist() == expected.tolist()


@given(key=words, counters=st.lists(words, min_size=1, max_size=8), bound=st.integers(1, 2**40))
def test_uniform_numbers_and_integers_stay_in_range(key: int, counters: list[int], bound: int) -> None:
    array = np.array(counters, dtype=np.uint64)
    assert ((uniform(key, array) >= 0) & (uniform(key, array) < 1)).all()
    assert ((integers(key, array, bound) >= 0) & (integers(key, array, bound) < bound)).all()


def test_normal_numbers_have_mean_0_variance_1_and_normal_tails() -> None:
    drawn = normal(derive_key(0, "x"), np.arange(100_000, dtype=np.uint64))
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.02
    assert abs((np.abs(drawn) > 1.96).mean() - 0.05) < 0.005


def test_keys_of_different_words_differ_even_if_they_join_to_the_same_text() -> None:
    keys = {derive_key(1, "2", "x"), derive_key(12, "x"), derive_key(1, "2x"), derive_key(1, "x", "2")}
    assert len(keys) == 4


@given(
    ranks=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    micro=st.integers(1, 4),
    steps=st.integers(1, 3),
)
def test_ranks_together_read_every_sample_number_once(
    ranks: int, accumulation: int, micro: int, steps: int
) -> None:
    samples = ranks * accumulation * micro
    seen: list[int] = []
    for rank in range(ranks):
        shard = DataShard(rank, ranks, samples, accumulation, 0)
        for step, numbers in itertools.islice(sample_numbers(shard), steps * accumulation):
            assert (numbers // samples == step).all()
            seen += numbers.tolist()
    assert sorted(seen) == list(range(steps * samples))


def dropout(probability: float, name: str = "blocks.0.dropout.key", seed: int = 0) -> KeyedDropout:
    module = KeyedDropout(probability)
    assert initialise_dropout(name, module.key, seed)
    return module


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    dropped = dropout(0.25)(torch.ones(64, 1000), torch.arange(64))
    assert abs((dropped == 0).double().mean().item() - 0.25) < 0.01
    assert torch.equal(dropped.unique(), torch.tensor([0.0, 1 / 0.75]))


@settings(deadline=None)
@given(
    samples=st.integers(1, 6),
    cut=st.integers(0, 6),
    first=st.integers(0, 2**62),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
)
def test_dropout_of_a_part_of_the_batch_is_that_part_of_the_dropout(
    samples: int, cut: int, first: int, shape: list[int]
) -> None:
    module, values, numbers = dropout(0.5), torch.ones(samples, *shape), torch.arange(first, first + samples)
    whole = module(values, numbers)
    for part in (slice(0, cut), slice(cut, samples)):
        if len(numbers[part]):
            assert torch.equal(module(values[part], numbers[part]), whole[part])


def test_dropout_differs_between_samples_layers_and_seeds() -> None:
    values = torch.ones(2, 256)
    reference = dropout(0.5)(values, torch.tensor([0, 1]))
    others = [
        reference.flip(0),
        dropout(0.5)(values, torch.tensor([2, 3])),
        dropout(0.5, name="blocks.1.dropout.key")(values, torch.tensor([0, 1])),
        dropout(0.5, seed=1)(values, torch.tensor([0, 1])),
    ]
    for other in others:
        assert 0.35 < (other == reference).double().mean().item() < 0.65


def test_dropout_is_the_identity_in_evaluation_and_at_probability_0() -> None:
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropout(0.5).eval()(values, torch.arange(3)), values)
    assert torch.equal(KeyedDropout(0.0)(values, torch.arange(3)), values)
    assert not list(KeyedDropout(0.0).buffers())


def test_only_dropout_keys_are_taken_for_dropout_keys() -> None:
    tensor = torch.zeros(2)
    assert not initialise_dropout("blocks.0.mlp.weight", tensor, 0)
    assert torch.equal(tensor, torch.zeros(2))


def test_fills_have_the_spread_they_name() -> None:
    weight = torch.empty(200, 100)
    fill_normal(weight, "a", 0, 0.02)
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    fill_he(weight, "a", 0)
    assert weight.std().item() == pytest.approx((2 / 100) ** 0.5, rel=0.02)
    fill_uniform(weight, "a", 0, 0.1)
    assert -0.1 <= weight.min() < -0.0999 < 0.0999 < weight.max() <= 0.1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("norm.weight", 1),
        ("bn1.running_var", 1),
        ("bn1.running_mean", 0),
        ("fc.bias", 0),
        ("num_batches_tracked", 0),
    ],
)
def test_vectors_start_neutral(name: str, value: int) -> None:
    tensor = torch.full((3,), 7.0)
    fill_vector(name, tensor)
    assert tensor.tolist() == [value] * 3
