"""parameters: the parameters of well-known models with fresh gradients each step, for the optimizer alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from harness.interfaces import WorkloadSize, WorkloadTraits
from workloads.initialisation import fill_normal
from workloads.keyed_random import derive_key, uniform
from workloads.options import chosen_size, refuse_data, size_facts
from workloads.published_shapes import PUBLISHED
from workloads.sampling import sample_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

    from harness.interfaces import Batch, DataShard

_POOL = 2**21
"""Distinct values of a step's gradients: 8 MB in float32, small beside any model here."""
_BLOCK = 2**18
"""Distinct initial values of a parameter."""
_GRADIENT_STD = 0.01


class Tensors(nn.Module):
    """Parameters of given names and shapes, and no forward pass."""

    def __init__(self, name: str) -> None:
        super().__init__()
        for path, shape in PUBLISHED[name]():
            *owners, leaf = path.split(".")
            module: nn.Module = self
            for owner in owners:
                if owner not in dict(module.named_children()):
                    module.add_module(owner, nn.Module())
                module = module.get_submodule(owner)
            module.register_parameter(leaf, nn.Parameter(torch.empty(shape)))


class Parameters:
    """The parameters of a published model; gradients are made up, so only the optimizer's step is real work.

    Args:
        size: gpt2-124m, resnet-50, vit-b-16 or llama-1b (Llama 3.2 1B).
        data: refused.

    Raises:
        ValueError: naming the argument.
    """

    traits = WorkloadTraits(
        summary="parameter shapes of well-known models with fresh gradients: the optimizer alone",
        source="shapes of openai-community/gpt2, torchvision's resnet50 and vit_b_16, meta-llama/Llama-3.2-1B; "
        "gradients are synthetic",
        sizes={
            "gpt2-124m": WorkloadSize(parameters=124439808, global_batch=1, synthetic=True),
            "resnet-50": WorkloadSize(parameters=25557032, global_batch=1, synthetic=True),
            "vit-b-16": WorkloadSize(parameters=86567656, global_batch=1, synthetic=True),
            "llama-1b": WorkloadSize(parameters=1235814400, global_batch=1, synthetic=True),
        },
        default_size="resnet-50",
        blocks=(
            "h.[0-9]",
            "h.[0-9][0-9]",
            "layer[1-4].[0-9]",
            "encoder.layers.encoder_layer_[0-9]",
            "encoder.layers.encoder_layer_[0-9][0-9]",
            "model.layers.[0-9]",
            "model.layers.[0-9][0-9]",
        ),
        embeddings=(
            "wte.weight",
            "wpe.weight",
            "class_token",
            "encoder.pos_embedding",
            "model.embed_tokens.weight",
        ),
        heads=("fc.weight", "heads.head.weight"),
        optimizer_only=True,
    )

    def __init__(self, size: str | None = None, data: str | None = None) -> None:
        refuse_data(data, "makes its gradients up")
        self._size = chosen_size(self.traits, size)
        self._pools: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._offsets: dict[str, int] = {}

    def build(self) -> nn.Module:
        """Return the parameters; their values are undefined until initialised."""
        return Tensors(self._size)

    def initialise(self, name: str, tensor: Tensor, seed: int) -> None:
        """Fill vectors with 1; everything else with normal numbers of std 0.02, a block of them repeated.

        Drawing a billion numbers would take ten seconds, and what they are does not matter to a step's time.
        """
        if tensor.ndim == 1:
            tensor.fill_(1.0)
            return
        block = torch.empty(min(tensor.numel(), _BLOCK), device="cpu")
        fill_normal(block, name, seed, 0.02)
        _repeat(block.to(tensor.device, tensor.dtype), 0, tensor)

    def batches(self, shard: DataShard) -> Iterator[Batch]:
        """Yield ``step`` (int64), ``phase`` (float32, radians, drawn for seed and step) and ``sample``.

        Each has shape (samples,).
        """
        key = derive_key(shard.seed, "phase")
        for step, samples in sample_numbers(shard):
            phase = 2 * math.pi * float(uniform(key, np.array(step, dtype=np.uint64)))
            yield {
                "step": torch.full((len(samples),), step),
                "phase": torch.full((len(samples),), phase),
                "sample": torch.from_numpy(samples),
            }

    def gradients(self, model: nn.Module, batch: Batch) -> None:
        """Set a fresh ``.grad`` on every parameter, a function of seed, step and name alone.

        Two fixed pools A and B of normal numbers give a step's pool A cos(phase) + B sin(phase), again normal.
        Each parameter reads it from an offset of its own, over and over if it is longer. That writes every
        gradient once, and nothing waits for the device.
        """
        steps: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        for name, parameter in model.named_parameters():
            kind = (parameter.device, parameter.dtype)
            if kind not in steps:
                steps[kind] = self._step_pool(kind, batch["phase"][0])
            gradient = torch.empty_like(parameter, requires_grad=False)
            _repeat(steps[kind], self._offset(name), gradient)
            parameter.grad = gradient

    def _step_pool(self, kind: tuple[torch.device, torch.dtype], phase: Tensor) -> Tensor:
        if kind not in self._pools:
            both = torch.empty(2, _POOL, device=kind[0], dtype=kind[1])
            fill_normal(both, "gradients", 0, _GRADIENT_STD)
            self._pools[kind] = both
        turn = torch.stack([phase.cos(), phase.sin()]).to(*kind)
        return turn @ self._pools[kind]

    def _offset(self, name: str) -> int:
        if name not in self._offsets:
            self._offsets[name] = derive_key(0, "offset", name) % _POOL
        return self._offsets[name]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Refuse: there is no forward pass."""
        raise NotImplementedError("parameters has no forward pass; use gradients()")

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return nothing: there is nothing to learn."""
        return {}

    def facts(self) -> dict[str, JsonValue]:
        """Return what a record should say of the data."""
        return {**size_facts(self.traits, self._size), "data_source": "none: gradients are made up"}


def _repeat(pool: Tensor, offset: int, target: Tensor) -> None:
    """Fill the target with the pool from ``offset`` on, which begins again at its start."""
    flat, size = target.view(-1), pool.numel()
    head = min(size - offset, flat.numel())
    flat[:head].copy_(pool[offset : offset + head])
    whole = (flat.numel() - head) // size
    flat[head : head + whole * size].view(whole, size).copy_(pool.expand(whole, size))
    rest = flat[head + whole * size :]
    rest.copy_(pool[: rest.numel()])
