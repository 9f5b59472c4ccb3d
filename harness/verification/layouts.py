"""How a tensor lies in memory: strides, where it starts, and what lies around it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Layout = Literal["contiguous", "framed", "offset", "transposed", "channels-last", "gaps", "expanded", "repeated"]
"""``contiguous``: a storage of its own. All others lie within a larger one: ``framed`` contiguous from an aligned
address on, ``offset`` contiguous from one element further on, ``transposed`` with its dimensions in reverse,
``channels-last`` with dimension 1 innermost (four dimensions), ``gaps`` every second element, ``expanded`` with
stride 0 along dimension 0, ``repeated`` the same values without that (both gradients only)."""

MARGIN = 64
"""Elements before and after a tensor within its storage; a multiple of every kernel's alignment."""

GUARD = 0.4375
"""What lies around a parameter; exact in every format of parameters."""


def strides(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """Return the strides, in elements, of a tensor of a shape that lies so."""
    if layout == "transposed":
        return _contiguous(shape[::-1])[::-1]
    if layout == "channels-last":
        batch, channels, height, width = shape
        del batch
        return (channels * height * width, 1, channels * width, channels)
    if layout == "gaps":
        return tuple(2 * each for each in _contiguous(shape))
    if layout == "expanded":
        return (0, *_contiguous(shape[1:]))
    return _contiguous(shape)


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[position + 1 :]) for position in range(len(shape)))


def laid_out(values: Tensor, layout: Layout, around: float | Tensor = GUARD) -> Tensor:
    """Return a copy of the values that lies as asked.

    Args:
        values: of an ``expanded`` tensor all the same along dimension 0.
        layout: of the copy.
        around: what the rest of its storage holds: a number, or at least 2 numel + 2 MARGIN + 1 of them.
    """
    if layout == "contiguous":
        return values.detach().clone(memory_format=torch.contiguous_format)
    size = 2 * values.numel() + 2 * MARGIN + 1
    if isinstance(around, float):
        storage = values.new_full((size,), around)
    else:
        storage = around[:size].to(values.device, values.dtype, copy=True)
    start = MARGIN + 1 if layout == "offset" else MARGIN
    view = values.new_empty(0).set_(storage.untyped_storage(), start, values.shape, strides(values.shape, layout))
    if layout == "expanded":
        view[:1].copy_(values[:1])
    else:
        view.copy_(values)
    return view


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor's storage as a vector of its dtype."""
    storage = tensor.untyped_storage()
    count = storage.nbytes() // tensor.element_size()
    return tensor.detach().new_empty(0).set_(storage, 0, (count,), (1,))


def overwritten(tensor: Tensor) -> int | None:
    """Return where something was written around a tensor that `laid_out` made: elements past its start.

    None: nothing was. A tensor of a storage of its own has nothing around it.
    """
    around = whole(tensor)
    if around.numel() == tensor.numel():
        return None
    changed = around != GUARD
    changed.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(False)  # noqa: FBT003
    if not bool(changed.any()):
        return None
    return int(changed.nonzero()[0]) - int(tensor.storage_offset())
