"""gpt and lstm: what their models compute and how they start."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from harness.interfaces import DataShard
from workloads.gpt import GPT
from workloads.lstm import LSTM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: on a busy machine threads that wait for each other take many times longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def initialised(workload: GPT | LSTM, seed: int = 0) -> nn.Module:
    model = workload.build()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            workload.initialise(name, tensor, seed)
    return model


def gradients(workload: GPT, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    model = initialised(workload).train()
    workload.loss(model, batch).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", [GPT, LSTM])
def test_no_position_sees_later_tokens(kind: type[GPT | LSTM]) -> None:
    model = initialised(kind())
    tokens = torch.arange(20)[None]
    changed = tokens.clone()
    changed[0, 12:] = 99
    sample = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        before, after = model(tokens, sample), model(changed, sample)
    torch.testing.assert_close(before[0, :12], after[0, :12])
    assert not torch.allclose(before[0, 12], after[0, 12])


@pytest.mark.parametrize("kind", [GPT, LSTM])
def test_untrained_model_knows_nothing(kind: type[GPT | LSTM]) -> None:
    workload = kind()
    with torch.no_grad():
        loss = workload.evaluate(initialised(workload).eval())["validation_loss"]
    assert loss == pytest.approx(math.log(256), rel=0.06)


def test_gpt_starts_as_gpt_2_does() -> None:
    parameters = dict(initialised(GPT("mini")).named_parameters())
    assert parameters["token_embedding.weight"].std().item() == pytest.approx(0.02, rel=0.01)
    assert parameters["blocks.3.expand.weight"].std().item() == pytest.approx(0.02, rel=0.01)
    for name in ("blocks.3.attention.projection.weight", "blocks.0.contract.weight"):
        assert parameters[name].std().item() == pytest.approx(0.02 / math.sqrt(12), rel=0.01)
    assert parameters["blocks.5.mlp_norm.weight"].unique().tolist() == [1]
    assert not parameters["blocks.5.attention.qkv.bias"].any()


def test_gpt_head_is_its_token_embedding() -> None:
    names = [name for name, _ in GPT("small").build().named_parameters()]
    assert not [name for name in names if "head" in name]
    assert names.count("token_embedding.weight") == 1


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputed_activations_give_the_same_gradients(dropout: float) -> None:
    plain = GPT(dropout=dropout)
    batch = dict(next(plain.batches(DataShard(0, 1, 2, 1, 0))))
    recomputed = gradients(GPT(dropout=dropout, activation_checkpointing=True), batch)
    for kept, again in zip(gradients(plain, batch), recomputed, strict=True):
        torch.testing.assert_close(kept, again)


def test_dropout_changes_training_and_not_evaluation() -> None:
    dropped, plain = GPT(dropout=0.5), GPT()
    batch = dict(next(plain.batches(DataShard(0, 1, 2, 1, 0))))
    with torch.no_grad():
        assert dropped.loss(initialised(dropped).train(), batch) != plain.loss(initialised(plain).train(), batch)
        assert dropped.loss(initialised(dropped).eval(), batch) == plain.loss(initialised(plain).eval(), batch)


def test_shorter_sequences_are_told_in_the_traits_of_the_instance_alone() -> None:
    workload = GPT(sequence_length=16)
    size, whole = workload.traits.size("nano"), GPT.traits.size("nano")
    assert (size.tokens_per_sample, whole.tokens_per_sample) == (16, 64)
    assert size.activation_bytes_per_sample == whole.activation_bytes_per_sample // 4
    assert (size.target, size.parameters) == (None, whole.parameters)
    assert next(workload.batches(DataShard(0, 1, 2, 1, 0)))["tokens"].shape == (2, 17)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dropout": 1.0}, "dropout = 1.0: expected a number of at least 0 and below 1"),
        ({"dropout": "much"}, "dropout = 'much'"),
        ({"dropout": True}, "dropout = True"),
        ({"activation_checkpointing": 1}, "activation_checkpointing = 1: expected true or false"),
        ({"sequence_length": 65}, "sequence_length = 65: expected a whole number of at least 2 and at most 64"),
        ({"sequence_length": 1}, "sequence_length = 1"),
        ({"sequence_length": 8.0}, "sequence_length = 8.0"),
        ({"data_header_bytes": -1}, "data_header_bytes = -1: expected a whole number of at least 0"),
    ],
)
def test_wrong_options_are_named_with_what_is_expected(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        GPT(**options)


def test_lstm_starts_with_open_forget_gates() -> None:
    biases = dict(initialised(LSTM()).named_parameters())
    bias = biases["layers.1.bias_ih_l0"].view(4, 128)
    assert bias.sum(1).tolist() == [0, 128, 0, 0]
    assert not biases["layers.1.bias_hh_l0"].any()


@pytest.mark.parametrize(("kind", "lr", "steps", "reached"), [(GPT, 1e-3, 10, 4.0), (LSTM, 3e-3, 25, 3.3)])
def test_training_on_source_code_learns_its_letters(
    kind: type[GPT | LSTM], lr: float, steps: int, reached: float
) -> None:
    workload = kind()
    model = initialised(workload).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    batches = workload.batches(DataShard(0, 1, workload.traits.size(None).global_batch, 1, 0))
    for _ in range(steps):
        optimizer.zero_grad()
        workload.loss(model, next(batches)).backward()
        optimizer.step()
    with torch.no_grad():
        assert workload.evaluate(model.eval())["validation_loss"] < reached
