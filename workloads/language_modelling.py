"""Next-token prediction: what the language models share beside their architecture."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from workloads.keyed_random import derive_key, integers
from workloads.sampling import sample_numbers
from workloads.text import Text, standard_library, token_file, windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from harness.interfaces import Batch, DataShard

_EVALUATION_TOKENS = 4096


class NextTokenTask:
    """Windows of a text, cross-entropy of each next token, and the same on held-out text.

    Args:
        length: tokens that the model reads at once; a window has one more, the last one's successor.
        rows: of the embedding.
        data: a token file; None: the Python standard library's sources, a byte a token.
        data_dtype, header_bytes: of a raw token file.

    Raises:
        ValueError: naming the file, if it cannot be read or is too short.
    """

    def __init__(self, length: int, rows: int, data: str | None, data_dtype: str, header_bytes: int) -> None:
        self.length, self.rows = length, rows
        # A file of the user's is opened at once: what is wrong with it shows before a model is built.
        self._file = None if data is None else token_file(Path(data), data_dtype, header_bytes)
        if self._file is not None:
            self._check_length(self._file)

    @cached_property
    def text(self) -> Text:
        """The text; the standard library's is read on first use."""
        text = self._file or standard_library()
        self._check_length(text)
        return text

    def _check_length(self, text: Text) -> None:
        shortest = min(text.train.size, text.held_out.size)
        if shortest <= self.length:
            raise ValueError(
                f"{text.source}: {text.train.size} tokens to train on and {text.held_out.size} held out; "
                f"each part must be longer than the sequence of {self.length}: "
                "use a longer text or a smaller sequence_length"
            )

    def batches(self, shard: DataShard) -> Iterator[Batch]:
        """Yield ``tokens``, shape (samples, length + 1), int64, and ``sample``, shape (samples,), int64."""
        text, key = self.text, derive_key(shard.seed, "window")
        for _, samples in sample_numbers(shard):
            starts = integers(key, samples.view(np.uint64), text.train.size - self.length)
            yield {"tokens": self._windows(text.train, starts), "sample": torch.from_numpy(samples)}

    def _windows(self, tokens: NDArray[np.integer[Any]], starts: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(windows(tokens, starts, self.length + 1, self.rows, self.text.source))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats a token, in float32 whatever the model computes in."""
        tokens = batch["tokens"]
        logits: Tensor = model(tokens[:, :-1], batch["sample"])
        return functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return loss (nats a token) and, for bytes, bits a byte, on windows spread evenly over the held-out text.

        About 4,096 tokens whatever the model: the same ones at each call, on every rank.
        """
        device = next(model.parameters()).device
        count = max(1, min(_EVALUATION_TOKENS // self.length, self.text.held_out.size // (self.length + 1)))
        starts = np.linspace(0, self.text.held_out.size - self.length - 1, count).astype(np.int64)
        per_batch = max(1, 2048 // self.length)
        total = torch.zeros((), dtype=torch.float64)
        for chunk in np.split(starts, range(per_batch, count, per_batch)):
            batch = {
                "tokens": self._windows(self.text.held_out, chunk).to(device),
                "sample": torch.zeros(len(chunk), dtype=torch.int64, device=device),
            }
            total += self.loss(model, batch).double().cpu() * len(chunk)
        loss = total.item() / count
        if self.text.bytes_per_token is None:
            return {"validation_loss": loss}
        return {
            "validation_loss": loss,
            "validation_bits_per_byte": loss / math.log(2) / self.text.bytes_per_token,
        }

    def facts(self) -> dict[str, JsonValue]:
        """Return what a record should say of the text."""
        return dict(self.text.facts)
