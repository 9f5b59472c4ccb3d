"""Initial values from seed and name alone: order, device and sharding don't matter."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workloads.keyed_random import derive_key


def fill_normal(tensor: Tensor, name: str, seed: int, std: float) -> None:
    """Fill in place with normal numbers of mean 0 keyed by seed and name."""
    tensor.copy_(torch.empty(tensor.shape, device="cpu").normal_(0.0, std, generator=_generator(name, seed)))


def fill_uniform(tensor: Tensor, name: str, seed: int, bound: float) -> None:
    """Fill in place with uniform numbers in [-bound, bound) keyed by seed and name."""
    tensor.copy_(torch.empty(tensor.shape, device="cpu").uniform_(-bound, bound, generator=_generator(name, seed)))


def fill_he(tensor: Tensor, name: str, seed: int, gain: float = math.sqrt(2.0)) -> None:
    """Fill a weight of shape (out, in, …) with normal numbers of std gain / sqrt(fan in) (He et al. 2015)."""
    fan_in = math.prod(tensor.shape[1:])
    fill_normal(tensor, name, seed, gain / math.sqrt(fan_in))


def fill_vector(name: str, tensor: Tensor) -> None:
    """Fill a bias with 0, a normalisation's scale with 1, running statistics with those of normalised data."""
    ones = name.endswith(("weight", "running_var"))
    tensor.fill_(1 if ones else 0)


def _generator(name: str, seed: int) -> torch.Generator:
    # Values come from the CPU in float32 whatever the tensor's device and dtype, so that both don't matter.
    # The 32 low bits of the key seed torch's Mersenne twister.
    return torch.Generator(device="cpu").manual_seed(derive_key(seed, name))
