"""Fingerprints of tensors: equal bits give equal numbers, and one changed bit another number."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from harness.tracing.extents import local_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

SAMPLED_BYTES = 16 << 20
"""Of one rank's tensors, as many bytes are read at most: every n-th block of `BLOCK_WORDS` words where there are
more. An update of all elements, or of one in a thousand, cannot miss them all."""

BLOCK_WORDS = 1 << 15
"""Words of 8 bytes that are weighed at once: a quarter of a MiB, which stays in a core's cache."""

_MODULUS = 1 << 64
_BETWEEN_BLOCKS = 0x9E3779B97F4A7C15  # odd, so that no block's number is lost in the product
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@cache
def _weights(count: int, device: torch.device) -> Tensor:
    """Return odd numbers, fixed ones: a product with an odd number modulo 2^64 keeps every difference."""
    source = torch.Generator().manual_seed(20)
    drawn = torch.randint(-(1 << 62), 1 << 62, (count,), generator=source, dtype=torch.int64)
    return (drawn | 1).to(device)


def forget() -> None:
    """Release what fingerprints are made with; the next one makes it again."""
    _weights.cache_clear()


def every_nth(sizes: Iterable[int]) -> int:
    """Return of how many blocks one is read where tensors of so many bytes are to be fingerprinted."""
    return max(1, -(-sum(sizes) // SAMPLED_BYTES))


def fingerprint(tensor: Tensor, every: int = 1) -> int:
    """Return a number from 0 to 2^64 - 1 that depends on the bits of a plain tensor and their order.

    Args:
        tensor: dense, on any device; never changed.
        every: read the first of so many blocks.
    """
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return 0
    flat = tensor.detach().reshape(-1)
    if flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    octets = flat.view(torch.uint8)
    whole = octets.numel() // 8 * 8
    words, tail = octets[:whole].view(torch.int64), octets[whole:]
    weights = _weights(BLOCK_WORDS, tensor.device)
    sums = [
        (block * weights[: block.numel()]).sum()
        for block in (words[at : at + BLOCK_WORDS] for at in range(0, words.numel(), BLOCK_WORDS * every))
    ]
    found = int.from_bytes(bytes(tail.tolist()), "little") + tensor.numel()
    for each in torch.stack(sums).tolist() if sums else []:
        found = (found * _BETWEEN_BLOCKS + each) % _MODULUS
    return found % _MODULUS


def combined(tensors: Sequence[Tensor]) -> int:
    """Return one number for tensors in their order; of wrappers (DTensors, quantised ones) for what they wrap."""
    plain = [part for tensor in tensors for part in local_parts(tensor.detach())]
    every = every_nth(part.numel() * part.element_size() for part in plain)
    found = len(plain)
    for part in plain:
        found = (found * _BETWEEN_BLOCKS + fingerprint(part, every)) % _MODULUS
    return found


def row_fingerprints(batch: Mapping[str, Tensor]) -> list[int]:
    """Return a number for each sample of a micro-batch: its rows in all tensors, by the tensors' names."""
    found: Tensor | None = None
    for key in sorted(batch):
        rows = _weighed_rows(batch[key])
        found = rows if found is None else found * (_BETWEEN_BLOCKS - _MODULUS) + rows
    return [] if found is None else list(map(int, found.tolist()))


def _weighed_rows(tensor: Tensor) -> Tensor:
    """Return shape (samples,), int64."""
    samples = tensor.shape[0]
    flat = tensor.detach().reshape(samples, -1).contiguous()
    integers = flat.view(_INTEGERS[flat.element_size()]) if flat.element_size() in _INTEGERS else flat.long()
    weights = _weights(max(1, integers.shape[1]), tensor.device)[: integers.shape[1]]
    at_once = max(1, BLOCK_WORDS // max(1, integers.shape[1]))
    return torch.cat([(rows.to(torch.int64) * weights).sum(1) for rows in torch.split(integers, at_once)])
