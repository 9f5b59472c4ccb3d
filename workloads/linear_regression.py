"""linear_regression: y = 3 x + 1 + noise, the smallest workload whose right answer is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.interfaces import Target, WorkloadSize, WorkloadTraits
from workloads.initialisation import fill_normal, fill_vector
from workloads.keyed_random import derive_key, normal, uniform
from workloads.layers import Linear
from workloads.options import chosen_size, refuse_data, size_facts
from workloads.sampling import sample_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from harness.interfaces import Batch, DataShard

SLOPE, INTERCEPT, NOISE = 3.0, 1.0, 0.1
_HELD_OUT = 1024


class Line(nn.Module):
    """One weight and one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, shape (samples, 1), to predictions of the same shape."""
        predicted: Tensor = self.linear(x.to(self.linear.weight.dtype))
        return predicted


class LinearRegression:
    """A line through noisy points: the recovered slope and intercept are evaluated beside the loss.

    Args:
        size: small, the only one.
        data: refused: the points are drawn.

    Raises:
        ValueError: naming the argument.
    """

    traits = WorkloadTraits(
        summary="y = 3 x + 1 + noise of standard deviation 0.1: the slope and intercept recovered",
        blocks=("",),
        source="drawn from the seed: x uniform in [-1, 1); the held-out points are the same for every seed",
        sizes={
            "small": WorkloadSize(
                parameters=2,
                global_batch=64,
                target=Target(metric="validation_loss", value=0.0105, better="lower"),
                activation_bytes_per_sample=4,
            ),
        },
        default_size="small",
        metrics={"validation_loss": "lower", "slope": "neither", "intercept": "neither"},
    )

    def __init__(self, size: str | None = None, data: str | None = None) -> None:
        refuse_data(data, "draws its points")
        self._size = chosen_size(self.traits, size)

    def build(self) -> nn.Module:
        """Return the line; its values are undefined until initialised."""
        return Line()

    def initialise(self, name: str, tensor: Tensor, seed: int) -> None:
        """Fill the weight with a standard normal number, the bias with 0."""
        if name.endswith("weight"):
            fill_normal(tensor, name, seed, 1.0)
        else:
            fill_vector(name, tensor)

    def batches(self, shard: DataShard) -> Iterator[Batch]:
        """Yield ``x`` and ``y``, shape (samples, 1), and ``sample`` (samples,)."""
        keys = _keys(f"train {shard.seed}")
        for _, samples in sample_numbers(shard):
            x, y = _points(keys, samples)
            yield {"x": x, "y": y, "sample": torch.from_numpy(samples)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean squared error."""
        predicted: Tensor = model(batch["x"])
        return functional.mse_loss(predicted.float(), batch["y"])

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return validation_loss (mean squared error; 0.01 at best), slope and intercept."""
        device = next(model.parameters()).device
        x, y = _points(_keys("held out"), np.arange(_HELD_OUT, dtype=np.int64))
        loss = self.loss(model, {"x": x.to(device), "y": y.to(device)})
        with torch.autocast(device.type, enabled=False):  # bfloat16 would round them to two digits
            at_zero, at_one = model(torch.tensor([[0.0], [1.0]], device=device)).double().flatten().tolist()
        return {"validation_loss": loss.item(), "slope": at_one - at_zero, "intercept": at_zero}

    def facts(self) -> dict[str, JsonValue]:
        """Return what a record should say of the data."""
        return {
            **size_facts(self.traits, self._size),
            "data_source": "drawn: y = 3 x + 1 + 0.1 noise",
            "true_slope": SLOPE,
            "true_intercept": INTERCEPT,
            "held_out_samples": _HELD_OUT,
        }


def _keys(purpose: str) -> tuple[int, int]:
    return derive_key(0, purpose, "x"), derive_key(0, purpose, "noise")


def _points(keys: tuple[int, int], samples: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    counters = samples.view(np.uint64)
    x = 2.0 * uniform(keys[0], counters) - 1.0
    y = SLOPE * x + INTERCEPT + NOISE * normal(keys[1], counters)
    return torch.from_numpy(x[:, None]).float(), torch.from_numpy(y[:, None]).float()
