"""resnet: ResNet-18 on handwritten digits, ResNet-50 on synthetic images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from harness.interfaces import Target, WorkloadSize, WorkloadTraits
from workloads.digits import CLASSES, DigitsTask, image_loss
from workloads.initialisation import fill_he, fill_vector
from workloads.keyed_random import derive_key, integers
from workloads.options import chosen_size, refuse_data, size_facts
from workloads.residual_network import ResidualNetwork, batch_norm, group_norm
from workloads.sampling import sample_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from harness.interfaces import Batch, DataShard

IMAGE_CLASSES, IMAGE_PIXELS = 1000, 224
_POOL = 64


class ResNet:
    """A residual network.

    The digits' ResNet-18 has a small stem and comes with GroupNorm, so that its loss does not depend on how the
    batch is split, and with BatchNorm, whose loss does. ResNet-50 reads noise in ImageNet's shapes: it is for
    throughput, and nothing can be learnt.

    Args:
        size: 18-groupnorm, 18-batchnorm or 50.
        data: refused.

    Raises:
        ValueError: naming the argument.
    """

    traits = WorkloadTraits(
        summary="ResNet-18 on handwritten digits; ResNet-50 on synthetic images, throughput only",
        source="He et al. 2016, Deep Residual Learning for Image Recognition; scikit-learn's digits, every fifth "
        "held out; size 50: normal noise of 3 x 224 x 224 with random labels",
        sizes={
            "18-groupnorm": WorkloadSize(
                parameters=11172810,
                global_batch=32,
                target=Target(metric="validation_accuracy", value=0.95, better="higher"),
                activation_bytes_per_sample=300000,
            ),
            "18-batchnorm": WorkloadSize(
                parameters=11172810,
                global_batch=32,
                target=Target(metric="validation_accuracy", value=0.95, better="higher"),
                activation_bytes_per_sample=300000,
                batch_coupled=True,
            ),
            "50": WorkloadSize(
                parameters=25557032,
                global_batch=32,
                activation_bytes_per_sample=85400000,
                batch_coupled=True,
                synthetic=True,
            ),
        },
        default_size="18-groupnorm",
        metrics={"validation_accuracy": "higher", "validation_loss": "lower"},
        blocks=("layer[1-4].[0-9]",),
        heads=("fc.weight",),
    )

    def __init__(self, size: str | None = None, data: str | None = None) -> None:
        refuse_data(data, "scikit-learn's digits, or draws its images")
        self._size = chosen_size(self.traits, size)
        self._digits = None if self._size == "50" else DigitsTask()

    def build(self) -> nn.Module:
        """Return the network; its values are undefined until initialised."""
        if self._size == "50":
            return ResidualNetwork(50, 3, IMAGE_CLASSES, batch_norm, small_images=False)
        norm = group_norm if self._size == "18-groupnorm" else batch_norm
        return ResidualNetwork(18, 1, CLASSES, norm, small_images=True)

    def initialise(self, name: str, tensor: Tensor, seed: int) -> None:
        """Fill convolutions with He's normal numbers, norms with 1 and 0, statistics with 0 and 1.

        The last norm of each block starts at scale 0, so that the block starts as the identity (Goyal et al. 2017,
        section 5.1): without it, SGD at its usual rates diverges.
        """
        last_norm = "bn3.weight" if self._size == "50" else "bn2.weight"
        if tensor.ndim == 4:
            fill_he(tensor, name, seed)
        elif name == "fc.weight":
            fill_he(tensor, name, seed, gain=1.0)
        elif name.startswith("layer") and name.endswith(last_norm):
            tensor.zero_()
        else:
            fill_vector(name, tensor)

    def batches(self, shard: DataShard) -> Iterator[Batch]:
        """Yield ``images`` (samples, channels, h, w), ``labels`` and ``sample`` (samples,)."""
        return _noise(shard) if self._digits is None else self._digits.batches(shard)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats."""
        return image_loss(model, batch)

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return validation_accuracy and validation_loss; of synthetic images nothing."""
        return {} if self._digits is None else self._digits.evaluate(model)

    def facts(self) -> dict[str, JsonValue]:
        """Return what a record should say of the data."""
        data: dict[str, JsonValue] = {"data_source": f"synthetic: {_POOL} images of normal noise, random labels"}
        if self._digits is not None:
            data = self._digits.facts()
        return {**size_facts(self.traits, self._size), **data}


def _noise(shard: DataShard) -> Iterator[Batch]:
    """Yield synthetic images out of a pool drawn once: drawing them anew would outlast a GPU's step."""
    generator = torch.Generator().manual_seed(derive_key(shard.seed, "images"))
    pool = torch.randn(_POOL, 3, IMAGE_PIXELS, IMAGE_PIXELS, generator=generator)
    key = derive_key(shard.seed, "labels")
    for _, samples in sample_numbers(shard):
        labels = integers(key, samples.view(np.uint64), IMAGE_CLASSES)
        yield {
            "images": _from_pool(pool, samples),
            "labels": torch.from_numpy(labels),
            "sample": torch.from_numpy(samples),
        }


def _from_pool(pool: Tensor, samples: NDArray[np.int64]) -> Tensor:
    """Return image ``sample % len(pool)`` of consecutive samples; without a copy unless they wrap around."""
    first, count = int(samples[0]) % len(pool), len(samples)
    if first + count <= len(pool):
        return pool[first : first + count]
    return pool[torch.from_numpy(samples % len(pool))]
