"""Where the memory of a tensor lies, whatever kind of tensor it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.tracing.storages import Extent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def local_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors of this rank that a tensor consists of.

    A DTensor gives its local shard, a wrapper (a quantised state, say) what it wraps, a sparse tensor its indices
    and values.
    """
    if hasattr(tensor, "to_local"):
        with torch.no_grad():  # left before anything is yielded: a reader may stop half-way
            local = tensor.to_local()
        yield from local_parts(local)
    elif hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from local_parts(getattr(tensor, name))
    elif tensor.layout is torch.sparse_coo:
        yield tensor._indices()  # noqa: SLF001  # indices() insists on a coalesced tensor
        yield tensor._values()  # noqa: SLF001  # likewise
    elif tensor.layout is torch.strided:
        yield tensor


def extent(tensor: Tensor) -> Extent | None:
    """Return where a plain tensor lies; None: it has no memory (meta, empty, a freed shard)."""
    if tensor.device.type == "meta" or tensor.numel() == 0 or tensor.untyped_storage().nbytes() == 0:
        return None
    first = tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return Extent(str(tensor.device), first, first + (last + 1) * tensor.element_size())
