"""lstm: a recurrent byte-level language model on text."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.interfaces import Target, WorkloadSize, WorkloadTraits
from workloads import layers
from workloads.dropout import KeyedDropout, initialise_dropout
from workloads.initialisation import fill_normal, fill_uniform, fill_vector
from workloads.language_modelling import NextTokenTask
from workloads.options import chosen_size, dropout_probability, resized, size_facts, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

    from harness.interfaces import Batch, DataShard

_ROWS = 256


@dataclass(frozen=True)
class Shape:
    """``layers`` LSTM layers of ``width`` units on embeddings of ``width`` channels, over ``length`` tokens."""

    layers: int
    width: int
    length: int


SHAPES = {
    "small": Shape(layers=2, width=128, length=32),
    "large": Shape(layers=2, width=512, length=64),
}


class RecurrentModel(nn.Module):
    """Embedding, LSTM layers (Hochreiter and Schmidhuber 1997) with dropout before each and the head, head."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.embedding = layers.Embedding(_ROWS, shape.width)
        # One module a layer: the dropout between torch's stacked layers draws from a global generator.
        self.layers = nn.ModuleList(
            layers.LSTM(shape.width, shape.width, batch_first=True) for _ in range(shape.layers)
        )
        self.dropouts = nn.ModuleList(_Between(dropout) for _ in range(shape.layers + 1))
        self.head = layers.Linear(shape.width, _ROWS)
        self._cpu_has_bf16 = cpu_has_bf16()

    def forward(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return logits, shape (samples, positions, 256), of ids of shape (samples, positions)."""
        hidden = self.embedding(tokens)
        for layer, dropout in zip(self.layers, self.dropouts, strict=False):
            hidden = self._through(layer, dropout(hidden, sample))
        logits: Tensor = self.head(self.dropouts[-1](hidden, sample))
        return logits

    def _through(self, layer: nn.Module, values: Tensor) -> Tensor:
        """Return a layer's output: in float32 where autocast asks for what this CPU has no kernel for."""
        hidden: Tensor
        if values.device.type == "cpu" and not self._cpu_has_bf16 and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                hidden, _ = layer(values.float())
        else:
            hidden, _ = layer(values)
        return hidden


@functools.cache
def cpu_has_bf16() -> bool:
    """Say whether this CPU runs torch's LSTM under autocast to bfloat16; oneDNN has no kernel for AVX2 alone."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.LSTM(8, 8, device="cpu")
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            layer(torch.zeros(1, 1, 8, device="cpu"))
    except RuntimeError:
        return False
    return True


class _Between(nn.Module):
    """Names the dropout in front of a layer."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.dropout = KeyedDropout(probability)

    def forward(self, values: Tensor, sample: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(values, sample)
        return dropped


class LSTM:
    """A recurrent language model on the Python standard library's sources or a file of bytes.

    Args:
        size: small or large.
        data: a token file with ids below 256 instead.
        dropout: probability, keyed by seed and sample.
        sequence_length: tokens a sample; None: the size's own.
        data_dtype: of a raw token file.
        data_header_bytes: to skip in a raw token file.

    Raises:
        ValueError: naming the argument, or the file that cannot be used.
    """

    traits = WorkloadTraits(
        summary="recurrent byte-level language model on Python's standard library",
        source="Hochreiter and Schmidhuber 1997; text: this Python's standard library, or data = a token file",
        sizes={
            "small": WorkloadSize(
                parameters=329984,
                global_batch=32,
                tokens_per_sample=32,
                target=Target(metric="validation_loss", value=2.5, better="lower"),
                activation_bytes_per_sample=609000,
            ),
            "large": WorkloadSize(
                parameters=4464896,
                global_batch=32,
                tokens_per_sample=64,
                target=Target(metric="validation_loss", value=2.2, better="lower"),
                activation_bytes_per_sample=4650000,
            ),
        },
        default_size="small",
        metrics={"validation_loss": "lower", "validation_bits_per_byte": "lower"},
        options={"dropout": 0.0, "sequence_length": None, "data_dtype": "uint16", "data_header_bytes": 0},
        reads_data_file=True,
        blocks=("layers.[0-9]",),
        embeddings=("embedding.weight",),
        heads=("head.weight",),
    )

    def __init__(
        self,
        size: str | None = None,
        data: str | None = None,
        *,
        dropout: float = 0.0,
        sequence_length: int | None = None,
        data_dtype: str = "uint16",
        data_header_bytes: int = 0,
    ) -> None:
        name = chosen_size(type(self).traits, size)
        self._size, self._shape = name, SHAPES[name]
        self._dropout = dropout_probability(dropout)
        length = self._shape.length
        if sequence_length is not None:
            length = whole_number("sequence_length", sequence_length, 2)
        header = whole_number("data_header_bytes", data_header_bytes, 0)
        self._task = NextTokenTask(length, _ROWS, data, data_dtype, header)
        kept = type(self).traits.size(name).activation_bytes_per_sample * length // self._shape.length
        changes: dict[str, object] = {"tokens_per_sample": length, "activation_bytes_per_sample": kept}
        if data is not None or length != self._shape.length:
            changes["target"] = None  # it was set for the size's own length on the standard library
        self.traits = resized(type(self).traits, name, **changes)

    def build(self) -> nn.Module:
        """Return the model; its values are undefined until initialised."""
        return RecurrentModel(self._shape, self._dropout)

    def initialise(self, name: str, tensor: Tensor, seed: int) -> None:
        """Fill weights uniformly within 1 / sqrt(width), as torch does; the forget gates' biases with 1.

        Forget biases of 1 (Jozefowicz et al. 2015, section 2.2) let gradients pass from the first step.
        """
        if initialise_dropout(name, tensor, seed):
            return
        if name == "embedding.weight":
            fill_normal(tensor, name, seed, 1.0)
        elif "weight" in name:
            fill_uniform(tensor, name, seed, 1 / math.sqrt(self._shape.width))
        else:
            fill_vector(name, tensor)
            if "bias_ih" in name:  # torch adds two biases and orders the gates input, forget, cell, output
                tensor[self._shape.width : 2 * self._shape.width].fill_(1)

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
