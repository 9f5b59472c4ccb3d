"""cnn: a small convolutional classifier of handwritten digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from harness.interfaces import Target, WorkloadSize, WorkloadTraits
from workloads.digits import CLASSES, DigitsTask, image_loss
from workloads.dropout import KeyedDropout, initialise_dropout
from workloads.initialisation import fill_he, fill_vector
from workloads.layers import Conv2d, Linear
from workloads.options import chosen_size, dropout_probability, refuse_data, size_facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

    from harness.interfaces import Batch, DataShard

CHANNELS = {"small": (16, 32, 64), "large": (64, 128, 256)}


class DigitClassifier(nn.Module):
    """Three 3 x 3 convolutions, the last two behind 2 x 2 max pooling, then two linear layers."""

    def __init__(self, channels: tuple[int, int, int], dropout: float) -> None:
        super().__init__()
        first, second, third = channels
        self.first = Conv2d(1, first, 3, padding=1)
        self.second = Conv2d(first, second, 3, padding=1)
        self.third = Conv2d(second, third, 3, padding=1)
        self.hidden = Linear(third * 2 * 2, 2 * third)
        self.dropout = KeyedDropout(dropout)
        self.head = Linear(2 * third, CLASSES)

    def forward(self, images: Tensor, sample: Tensor) -> Tensor:
        """Return logits, shape (samples, 10), of images of shape (samples, 1, 8, 8)."""
        features = functional.relu(self.first(images.to(self.first.weight.dtype)))
        features = functional.max_pool2d(functional.relu(self.second(features)), 2)
        features = functional.max_pool2d(functional.relu(self.third(features)), 2)
        hidden = functional.relu(self.hidden(features.flatten(1)))
        logits: Tensor = self.head(self.dropout(hidden, sample))
        return logits


class CNN:
    """A small convolutional classifier of scikit-learn's handwritten digits.

    Args:
        size: small or large.
        data: refused: it reads scikit-learn's digits.
        dropout: probability before the last layer, keyed by seed and sample.

    Raises:
        ValueError: naming the argument.
    """

    traits = WorkloadTraits(
        summary="small convolutional classifier of handwritten digits",
        blocks=("",),
        source="scikit-learn's digits (Alpaydin and Kaynak 1998): 1,797 images of 8 x 8, every fifth held out",
        sizes={
            "small": WorkloadSize(
                parameters=57482,
                global_batch=64,
                target=Target(metric="validation_accuracy", value=0.97, better="higher"),
                activation_bytes_per_sample=30500,
            ),
            "large": WorkloadSize(
                parameters=899594,
                global_batch=64,
                target=Target(metric="validation_accuracy", value=0.97, better="higher"),
                activation_bytes_per_sample=115000,
            ),
        },
        default_size="small",
        metrics={"validation_accuracy": "higher", "validation_loss": "lower"},
        options={"dropout": 0.0},
        heads=("head.weight",),
    )

    def __init__(self, size: str | None = None, data: str | None = None, *, dropout: float = 0.0) -> None:
        refuse_data(data, "scikit-learn's digits")
        self._size = chosen_size(self.traits, size)
        self._dropout = dropout_probability(dropout)
        self._task = DigitsTask()

    def build(self) -> nn.Module:
        """Return the classifier; its values are undefined until initialised."""
        return DigitClassifier(CHANNELS[self._size], self._dropout)

    def initialise(self, name: str, tensor: Tensor, seed: int) -> None:
        """Fill weights with He's normal numbers, biases with 0."""
        if initialise_dropout(name, tensor, seed):
            return
        if name.endswith("weight"):
            fill_he(tensor, name, seed, gain=1.0 if name.startswith("head") else 2**0.5)
        else:
            fill_vector(name, tensor)

    def batches(self, shard: DataShard) -> Iterator[Batch]:
        """Yield ``images`` (samples, 1, 8, 8), ``labels`` and ``sample`` (samples,)."""
        return self._task.batches(shard)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats."""
        return image_loss(model, batch)

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return validation_accuracy and validation_loss."""
        return self._task.evaluate(model)

    def facts(self) -> dict[str, JsonValue]:
        """Return what a record should say of the data."""
        return {**size_facts(self.traits, self._size), **self._task.facts()}
