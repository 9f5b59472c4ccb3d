"""Random numbers as a pure function of a key and a counter.

Nothing here has a state: a number depends on its key and its counter alone, so every rank can compute just the
samples that it needs and gets what any other split of the work would have given it. The generator is
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17):
the finaliser applied to ``key + (counter + 1) * gamma``. Integer arithmetic modulo 2**64 gives the same bits in
numpy and torch, on CPUs and accelerators, in every version.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def derive_key(seed: int, *words: str) -> int:
    """Return a 64-bit key for one purpose, a parameter's name say, under one seed."""
    text = "\0".join([str(seed), *words])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def signed(value: int) -> int:
    """Return the int64 with the bits of a uint64: torch computes with signed integers."""
    return value - 2**64 if value >= 2**63 else value


def bits(key: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 random bits for each counter, in the counters' shape."""
    mixed = np.atleast_1d(counters) + np.uint64(1)
    mixed *= np.uint64(GAMMA)
    mixed += np.uint64(key)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(_FIRST)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_SECOND)
    mixed ^= mixed >> np.uint64(31)
    return mixed.reshape(np.shape(counters))


def uniform(key: int, counters: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return numbers in [0, 1), multiples of 2**-53."""
    return (bits(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(key: int, counters: NDArray[np.uint64], bound: int) -> NDArray[np.int64]:
    """Return integers in [0, bound); the bias is below bound / 2**53."""
    return (uniform(key, counters) * bound).astype(np.int64)


def normal(key: int, counters: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return standard normal numbers (Box and Muller 1958), two counters of the stream behind each."""
    doubled = counters * np.uint64(2)
    radius = np.sqrt(-2.0 * np.log1p(-uniform(key, doubled)))
    return np.asarray(radius * np.cos(2.0 * np.pi * uniform(key, doubled + np.uint64(1))))


def tensor_bits(keys: Tensor, counters: Tensor) -> Tensor:
    """Do what `bits` does, for int64 tensors that broadcast against each other, on any device.

    Args:
        keys: the bits of each key as int64.
        counters: int64.

    Returns:
        int64 of the broadcast shape, equal to ``bits(key, counter)`` modulo 2**64.
    """
    mixed = (counters + 1) * signed(GAMMA) + keys
    mixed = _shift_xor(mixed, 30).mul_(signed(_FIRST))
    mixed = _shift_xor(mixed, 27).mul_(signed(_SECOND))
    return _shift_xor(mixed, 31)


def _shift_xor(value: Tensor, places: int) -> Tensor:
    # torch shifts int64 arithmetically: the mask clears the copies of the sign bit.
    shifted = torch.bitwise_right_shift(value, places).bitwise_and_((1 << (64 - places)) - 1)
    return shifted.bitwise_xor_(value)
