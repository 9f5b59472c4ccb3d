"""gpt: a decoder-only transformer in GPT-2's shapes on text, a byte a token unless a token file is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from harness.interfaces import Target, WorkloadSize, WorkloadTraits
from workloads.dropout import KeyedDropout, initialise_dropout
from workloads.initialisation import fill_normal, fill_vector
from workloads.language_modelling import NextTokenTask
from workloads.layers import Embedding, Linear
from workloads.options import chosen_size, dropout_probability, resized, size_facts, switch, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

    from harness.interfaces import Batch, DataShard

_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """One transformer: ``layers`` blocks of ``width`` channels and ``heads`` heads over ``context`` positions."""

    layers: int
    heads: int
    width: int
    context: int
    rows: int


SHAPES = {
    "nano": Shape(layers=5, heads=4, width=128, context=64, rows=256),
    "mini": Shape(layers=6, heads=6, width=384, context=256, rows=256),
    "small": Shape(layers=12, heads=12, width=768, context=1024, rows=50257),
    "medium": Shape(layers=24, heads=16, width=1024, context=1024, rows=50257),
}


class Attention(nn.Module):
    """Causal multi-head self-attention through scaled_dot_product_attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = Linear(shape.width, 3 * shape.width)
        self.projection = Linear(shape.width, shape.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (samples, positions, width) to the same shape."""
        samples, positions, width = hidden.shape
        split = self.qkv(hidden).view(samples, positions, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.projection(mixed.transpose(1, 2).reshape(samples, positions, width))
        return out


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm (pre-norm) and added to the residual stream."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = Attention(shape)
        self.attention_dropout = KeyedDropout(dropout)
        self.mlp_norm = nn.LayerNorm(shape.width)
        self.expand = Linear(shape.width, 4 * shape.width)
        self.contract = Linear(4 * shape.width, shape.width)
        self.mlp_dropout = KeyedDropout(dropout)

    def forward(self, hidden: Tensor, sample: Tensor) -> Tensor:
        """Map (samples, positions, width) to the same shape; ``sample`` keys the dropout."""
        mixed = self.attention(self.attention_norm(hidden))
        hidden = hidden + self.attention_dropout(mixed, sample)
        inner = functional.gelu(self.expand(self.mlp_norm(hidden)), approximate="tanh")
        out: Tensor = hidden + self.mlp_dropout(self.contract(inner), sample)
        return out


class Transformer(nn.Module):
    """GPT-2's decoder (Radford et al. 2019): learned positions, pre-norm blocks, head tied to the embedding.

    Dropout acts on the embedding and on each block's two branches, not on attention probabilities.
    """

    def __init__(self, shape: Shape, dropout: float, *, activation_checkpointing: bool) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.token_embedding = Embedding(shape.rows, shape.width)
        self.position_embedding = Embedding(shape.context, shape.width)
        self.embedding_dropout = KeyedDropout(dropout)
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.final_norm = nn.LayerNorm(shape.width)

    def forward(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return logits, shape (samples, positions, rows).

        Args:
            tokens: ids, shape (samples, positions), int64.
            sample: global sample numbers, shape (samples,), int64; they key the dropout.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        hidden: Tensor = self.token_embedding(tokens) + self.position_embedding(positions)
        hidden = self.embedding_dropout(hidden, sample)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                # The dropout's masks are keyed, so no generator's state needs to be restored for recomputation.
                hidden = checkpoint(block, hidden, sample, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = block(hidden, sample)
        return functional.linear(self.final_norm(hidden), self.token_embedding.weight)


class GPT:
    """A GPT-2-shaped language model on the Python standard library's sources or a token file.

    Args:
        size: nano, mini, small (GPT-2 124M) or medium (GPT-2 medium, 355M).
        data: a token file instead: raw ids or ``.npy``, memory-mapped.
        dropout: probability, keyed by seed and sample.
        activation_checkpointing: recompute each block in backward instead of keeping its activations.
        sequence_length: tokens a sample; None: the size's whole context.
        data_dtype: of a raw token file.
        data_header_bytes: to skip in a raw token file.

    Raises:
        ValueError: naming the argument, or the file that cannot be used.
    """

    traits = WorkloadTraits(
        summary="GPT-2-shaped transformer, next-byte prediction on Python's standard library",
        source="Radford et al. 2019, Language Models are Unsupervised Multitask Learners; text: this Python's "
        "standard library, or data = a token file",
        sizes={
            "nano": WorkloadSize(
                parameters=1032576,
                global_batch=16,
                tokens_per_sample=64,
                target=Target(metric="validation_loss", value=2.5, better="lower"),
                activation_bytes_per_sample=2900000,
                recomputed_bytes_per_sample=690000,
            ),
            "mini": WorkloadSize(
                parameters=10844160,
                global_batch=16,
                tokens_per_sample=256,
                target=Target(metric="validation_loss", value=2.5, better="lower"),
                activation_bytes_per_sample=39800000,
                recomputed_bytes_per_sample=8270000,
            ),
            "small": WorkloadSize(
                parameters=124439808,
                global_batch=16,
                tokens_per_sample=1024,
                activation_bytes_per_sample=1229000000,
                recomputed_bytes_per_sample=662000000,
            ),
            "medium": WorkloadSize(
                parameters=354823168,
                global_batch=16,
                tokens_per_sample=1024,
                activation_bytes_per_sample=2239000000,
                recomputed_bytes_per_sample=727000000,
            ),
        },
        default_size="nano",
        metrics={"validation_loss": "lower", "validation_bits_per_byte": "lower"},
        options={
            "dropout": 0.0,
            "activation_checkpointing": False,
            "sequence_length": None,
            "data_dtype": "uint16",
            "data_header_bytes": 0,
        },
        reads_data_file=True,
        blocks=("blocks.[0-9]", "blocks.[0-9][0-9]"),
        embeddings=("token_embedding.weight", "position_embedding.weight"),
    )

    def __init__(
        self,
        size: str | None = None,
        data: str | None = None,
        *,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
        sequence_length: int | None = None,
        data_dtype: str = "uint16",
        data_header_bytes: int = 0,
    ) -> None:
        name = chosen_size(type(self).traits, size)
        self._size, self._shape = name, SHAPES[name]
        self._dropout = dropout_probability(dropout)
        self._checkpointing = switch("activation_checkpointing", activation_checkpointing)
        length = self._shape.context
        if sequence_length is not None:
            length = whole_number("sequence_length", sequence_length, 2, self._shape.context)
        header = whole_number("data_header_bytes", data_header_bytes, 0)
        self._task = NextTokenTask(length, self._shape.rows, data, data_dtype, header)
        kept = type(self).traits.size(name).activation_bytes_per_sample * length // self._shape.context
        again = (type(self).traits.size(name).recomputed_bytes_per_sample or 0) * length // self._shape.context
        changes: dict[str, object] = {
            "tokens_per_sample": length,
            "activation_bytes_per_sample": kept,
            "recomputed_bytes_per_sample": again,
        }
        if data is not None or length != self._shape.context:
            changes["target"] = None  # it was set for whole contexts of the standard library
        self.traits = resized(type(self).traits, name, **changes)

    def build(self) -> nn.Module:
        """Return the transformer; its values are undefined until initialised."""
        return Transformer(self._shape, self._dropout, activation_checkpointing=self._checkpointing)

    def initialise(self, name: str, tensor: Tensor, seed: int) -> None:
        """Fill as GPT-2 does: std 0.02, divided by sqrt(2 layers) where a branch meets the residual stream."""
        if initialise_dropout(name, tensor, seed):
            return
        if name.endswith("bias") or "norm" in name:
            fill_vector(name, tensor)
            return
        residual = name.endswith(("projection.weight", "contract.weight"))
        std = _STD / math.sqrt(2 * self._shape.layers) if residual else _STD
        fill_normal(tensor, name, seed, std)

    def batches(self, shard: DataShard) -> Iterator[Batch]:
        """Yield ``tokens`` (samples, positions + 1) and ``sample`` (samples,)."""
        return self._task.batches(shard)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats a token."""
        return self._task.loss(model, batch)

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return validation_loss (nats a token) and, for bytes, validation_bits_per_byte."""
        return self._task.evaluate(model)

    def facts(self) -> dict[str, JsonValue]:
        """Return what a record should say of the data."""
        return {**size_facts(self.traits, self._size), **self._task.facts()}
