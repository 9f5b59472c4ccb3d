"""Dropout that does not depend on how the batch is split."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workloads.keyed_random import derive_key, signed, tensor_bits


class KeyedDropout(nn.Module):
    """Inverted dropout whose mask is a pure function of seed, module name, global sample number and element.

    A step's samples have numbers of their own, so masks differ from step to step; and since no generator has a
    state, any world size, accumulation and recomputation (activation checkpointing) drops the same elements.

    Args:
        probability: of dropping an element, in [0, 1).

    Attributes:
        key: persistent buffer, shape (), int64: seed and name, filled by `initialise`. Absent at probability 0.
    """

    key: Tensor

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        if probability > 0:
            self.register_buffer("key", torch.zeros((), dtype=torch.int64))

    def forward(self, values: Tensor, sample: Tensor) -> Tensor:
        """Drop elements of ``values``.

        Args:
            values: shape (samples, …).
            sample: global sample numbers, shape (samples,), int64.
        """
        if not self.training or self.probability == 0:
            return values
        return values * self.mask(values, sample)

    def mask(self, values: Tensor, sample: Tensor) -> Tensor:
        """Return 0 or 1 / (1 - probability) for each element, in the shape and dtype of ``values``."""
        elements = torch.arange(values[0].numel(), device=values.device)
        drawn = tensor_bits(tensor_bits(self.key, sample)[:, None], elements)
        # The bits are uniform over the int64 range: compare there, which is exact, unlike a conversion to float.
        keep = drawn >= int(self.probability * 2**64) - 2**63
        return keep.view(values.shape).to(values.dtype) / (1 - self.probability)

    def extra_repr(self) -> str:
        """Say the probability in the module's printed form."""
        return f"probability={self.probability}"


def initialise_dropout(name: str, tensor: Tensor, seed: int) -> bool:
    """Fill ``tensor`` if it is a `KeyedDropout`'s key; say whether it was one."""
    if not name.endswith("dropout.key"):
        return False
    tensor.fill_(signed(derive_key(seed, name)))
    return True
