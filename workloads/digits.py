"""The 1,797 handwritten digits that scikit-learn ships: 8 x 8 pixels, ten classes."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from workloads.keyed_random import derive_key, integers
from workloads.sampling import sample_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

    from harness.interfaces import Batch, DataShard

CLASSES = 10
_HELD_OUT_EVERY = 5
_MEAN, _STD = 4.884, 6.017  # of all pixels, which range over 0 … 16


@dataclass(frozen=True)
class Split:
    """Images, shape (n, 1, 8, 8), float32, normalised to mean 0 and variance 1; labels, shape (n,), int64."""

    images: Tensor
    labels: Tensor


def load_digits() -> tuple[Split, Split]:
    """Return the digits to train on (1,438) and those held out (every fifth, 359).

    The file is read without importing scikit-learn, which takes a second.

    Raises:
        FileNotFoundError: where scikit-learn or its file is missing, with the command that installs it.
    """
    spec = importlib.util.find_spec("sklearn")
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders), ""), "datasets", "data", "digits.csv.gz") if folders else None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"the digits that scikit-learn ships are missing ({path or 'scikit-learn is not installed'}); "
            "run: pip install scikit-learn"
        )
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    images = torch.from_numpy((table[:, :-1] - _MEAN) / _STD).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    held_out = torch.arange(len(labels)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    return Split(images[~held_out], labels[~held_out]), Split(images[held_out], labels[held_out])


class DigitsTask:
    """Batches of digits, drawn with replacement; cross-entropy; accuracy on the held-out ones."""

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        return load_digits()

    def batches(self, shard: DataShard) -> Iterator[Batch]:
        """Yield ``images`` (samples, 1, 8, 8), ``labels`` (samples,) and ``sample`` (samples,)."""
        train, _ = self._splits
        key, count = derive_key(shard.seed, "digit"), len(train.labels)
        for _, samples in sample_numbers(shard):
            chosen = torch.from_numpy(integers(key, samples.view(np.uint64), count))
            yield {
                "images": train.images[chosen],
                "labels": train.labels[chosen],
                "sample": torch.from_numpy(samples),
            }

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return validation_accuracy (share of the held-out digits) and validation_loss (nats)."""
        _, held_out = self._splits
        device = next(model.parameters()).device
        images, labels = held_out.images.to(device), held_out.labels.to(device)
        sample = torch.zeros_like(labels)
        logits = model(images, sample).float()
        return {
            "validation_accuracy": (logits.argmax(1) == labels).double().mean().item(),
            "validation_loss": functional.cross_entropy(logits, labels).item(),
        }

    def facts(self) -> dict[str, JsonValue]:
        """Return what a record should say of the data."""
        train, held_out = self._splits
        return {
            "data_source": "scikit-learn's digits (1,797 of 8 x 8 pixels), every fifth held out",
            "train_samples": len(train.labels),
            "held_out_samples": len(held_out.labels),
        }


def image_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of ``labels`` given ``images``, in float32."""
    logits: Tensor = model(batch["images"], batch["sample"])
    return functional.cross_entropy(logits.float(), batch["labels"])
