"""recommender: sparse embedding tables and an MLP that predict clicks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.interfaces import Target, WorkloadSize, WorkloadTraits
from workloads.initialisation import fill_he, fill_normal, fill_vector
from workloads.keyed_random import derive_key, normal, uniform
from workloads.layers import Embedding, Linear
from workloads.options import chosen_size, refuse_data, size_facts, switch
from workloads.sampling import sample_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from harness.interfaces import Batch, DataShard

DENSE = 8
_EXPONENT = 1.05
_HELD_OUT = 4096


@dataclass(frozen=True)
class Shape:
    """``tables`` embedding tables of ``rows`` rows and ``width`` channels; hidden layers of ``hidden`` units."""

    tables: int
    rows: int
    width: int
    hidden: int


SHAPES = {
    "small": Shape(tables=8, rows=10_000, width=16, hidden=128),
    "large": Shape(tables=16, rows=250_000, width=32, hidden=512),
}


class ClickModel(nn.Module):
    """One embedding a categorical feature, concatenated with the dense features, then three linear layers.

    The shape of DLRM (Naumov et al. 2019) without its pairwise interactions.
    """

    def __init__(self, shape: Shape, *, sparse: bool) -> None:
        super().__init__()
        self.tables = nn.ModuleList(Embedding(shape.rows, shape.width, sparse=sparse) for _ in range(shape.tables))
        self.first = Linear(DENSE + shape.tables * shape.width, shape.hidden)
        self.second = Linear(shape.hidden, shape.hidden)
        self.head = Linear(shape.hidden, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Return logits of a click, shape (samples,), of dense (samples, 8) and ids (samples, tables)."""
        looked_up = [table(ids[:, column]) for column, table in enumerate(self.tables)]
        features = torch.cat([dense.to(self.first.weight.dtype), *looked_up], dim=1)
        hidden = functional.relu(self.second(functional.relu(self.first(features))))
        logits: Tensor = self.head(hidden)
        return logits.squeeze(1)


class Recommender:
    """Clicks predicted from eight numbers and categorical ids whose popularity follows Zipf's law.

    Args:
        size: small or large.
        data: refused: the clicks are drawn.
        sparse: whether the tables' gradients are sparse tensors.

    Raises:
        ValueError: naming the argument.
    """

    traits = WorkloadTraits(
        summary="sparse embedding tables and an MLP that predict clicks",
        blocks=("",),
        source="synthetic: ids of Zipf's law (exponent 1.05), clicks drawn from a planted logistic model; "
        "architecture after Naumov et al. 2019 (DLRM)",
        sizes={
            "small": WorkloadSize(
                parameters=1314177,
                global_batch=256,
                target=Target(metric="validation_auc", value=0.88, better="higher"),
                activation_bytes_per_sample=1600,
                synthetic=True,
            ),
            "large": WorkloadSize(
                parameters=128529921,
                global_batch=1024,
                activation_bytes_per_sample=6200,
                synthetic=True,
            ),
        },
        default_size="small",
        metrics={"validation_log_loss": "lower", "validation_auc": "higher"},
        options={"sparse": True},
        embeddings=("tables.*.weight",),
        heads=("head.weight",),
        sparse_parameters=("tables.*.weight",),
    )

    def __init__(self, size: str | None = None, data: str | None = None, *, sparse: bool = True) -> None:
        refuse_data(data, "draws its clicks")
        self._size = chosen_size(type(self).traits, size)
        self._shape = SHAPES[self._size]
        self._sparse = switch("sparse", sparse)
        changes: dict[str, object] = {} if sparse else {"sparse_parameters": ()}
        self.traits = type(self).traits.model_copy(update=changes)

    def build(self) -> nn.Module:
        """Return the model; its values are undefined until initialised."""
        return ClickModel(self._shape, sparse=self._sparse)

    def initialise(self, name: str, tensor: Tensor, seed: int) -> None:
        """Fill tables with normal numbers of std 0.1, weights with He's, biases with 0."""
        if name.startswith("tables"):
            fill_normal(tensor, name, seed, 0.1)
        elif name.endswith("weight"):
            fill_he(tensor, name, seed, gain=1.0 if name.startswith("head") else 2**0.5)
        else:
            fill_vector(name, tensor)

    def batches(self, shard: DataShard) -> Iterator[Batch]:
        """Yield ``dense`` (samples, 8), ``ids`` (samples, tables), ``clicks`` and ``sample`` (samples,)."""
        planted = Planted(self._shape, shard.seed, "train")
        for _, samples in sample_numbers(shard):
            yield {**planted.clicks(samples), "sample": torch.from_numpy(samples)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean log loss in nats."""
        logits: Tensor = model(batch["dense"], batch["ids"])
        return functional.binary_cross_entropy_with_logits(logits.float(), batch["clicks"])

    @cached_property
    def _held_out(self) -> Batch:
        return Planted(self._shape, 0, "held out").clicks(np.arange(_HELD_OUT, dtype=np.int64))

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return validation_log_loss (nats) and validation_auc on 4,096 clicks, the same for every seed."""
        device = next(model.parameters()).device
        held_out = self._held_out
        logits = model(held_out["dense"].to(device), held_out["ids"].to(device)).float().cpu()
        loss = functional.binary_cross_entropy_with_logits(logits, held_out["clicks"])
        return {"validation_log_loss": loss.item(), "validation_auc": area_under_curve(logits, held_out["clicks"])}

    def facts(self) -> dict[str, JsonValue]:
        """Return what a record should say of the data."""
        return {
            **size_facts(self.traits, self._size),
            "data_source": "synthetic: planted logistic model, Zipf ids",
            "held_out_samples": _HELD_OUT,
        }


class Planted:
    """Draws clicks whose probability is known: the logistic of a linear score.

    The score adds fixed weights on the dense features and a fixed standard normal taste for each table's id; the
    weights and tastes are the same for every seed, so that a model trained under one is judged under all.

    Args:
        shape: of the tables.
        seed: of the samples.
        purpose: keeps the held-out samples apart from those trained on.
    """

    def __init__(self, shape: Shape, seed: int, purpose: str) -> None:
        self._shape = shape
        self._keys = {word: derive_key(seed, purpose, word) for word in ("ids", "dense", "click")}
        self._weights = normal(derive_key(0, "weights"), np.arange(DENSE, dtype=np.uint64)) / np.sqrt(DENSE)
        # A table of all tastes is small beside the embeddings, and faster than drawing a batch's anew.
        tastes = normal(derive_key(0, "tastes"), np.arange(shape.tables * shape.rows, dtype=np.uint64))
        self._tastes = (tastes / np.sqrt(shape.tables)).astype(np.float32)

    def clicks(self, samples: NDArray[np.int64]) -> Batch:
        """Return ``dense`` float32, ``ids`` int64 and ``clicks`` float32 of the numbered samples."""
        counters = samples.view(np.uint64)
        tables, rows = self._shape.tables, self._shape.rows
        columns = np.arange(tables, dtype=np.uint64)
        ids = zipf_ids(uniform(self._keys["ids"], counters[:, None] * np.uint64(tables) + columns), rows)
        # Uniform of variance 1: cheaper than normal numbers, and as good for a planted model.
        columns = np.arange(DENSE, dtype=np.uint64)
        drawn = uniform(self._keys["dense"], counters[:, None] * np.uint64(DENSE) + columns)
        dense = (2.0 * drawn - 1.0) * np.sqrt(3.0)
        score = 2.0 * (dense @ self._weights + self._tastes[ids + rows * np.arange(tables)].sum(1)) - 1.0
        clicked = uniform(self._keys["click"], counters) * (1.0 + np.exp(-score)) < 1.0
        return {
            "dense": torch.from_numpy(dense.astype(np.float32)),
            "ids": torch.from_numpy(ids),
            "clicks": torch.from_numpy(clicked.astype(np.float32)),
        }


def zipf_ids(drawn: NDArray[np.float64], rows: int) -> NDArray[np.int64]:
    """Return ids 0 … rows - 1 whose frequency falls as (id + 1) ** -1.05, from uniform numbers in [0, 1).

    Inverts the distribution function of the continuous power law on [1, rows + 1) and rounds down.
    """
    power = 1.0 - _EXPONENT
    values = (1.0 + drawn * ((rows + 1.0) ** power - 1.0)) ** (1.0 / power)
    ids: NDArray[np.int64] = np.minimum(values.astype(np.int64), rows) - 1
    return ids


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative, ties half.

    From the rank sum of the positives (Mann and Whitney 1947), ties given their mean rank.
    """
    _, inverse, counts = torch.unique(scores.double(), return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts.double() - 1) / 2)[inverse]
    positives = labels.double()
    number, others = positives.sum(), (1 - positives).sum()
    rank_sum = (ranks * positives).sum()
    return float((rank_sum - number * (number + 1) / 2) / (number * others))
