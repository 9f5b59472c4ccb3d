"""Optimizers that are wrong at some sizes, counts or layouts alone, and sound ones with ways of their own."""

from __future__ import annotations

import torch
from faulty_optimizers import Flattened, Written
from torch.optim import AdamW, Optimizer

CHUNK = 65_536


class Sized(Written):
    """AdamW; a fault says which elements of a tensor it forgets."""

    def update(self, p, g, group, number):
        lost = self.lost(p, group["params"], number)
        kept = None if lost is None else p.reshape(-1)[lost].clone()
        super().update(p, g, group, number)
        if lost is not None:
            p.view(-1)[lost] = kept

    def lost(self, p, listed, number):
        """Return a slice of elements, None for none."""


def whole(*, where):
    return slice(None) if where else None


def position(p, listed):
    """Return a tensor's number in its list, from 1."""
    return next(number for number, each in enumerate(listed, start=1) if each is p)


class LastHundredth(Sized):
    def lost(self, p, listed, number):
        return slice(p.numel() - p.numel() // 100, None) if p.numel() > 100 else None


class VectorTail(Sized):
    def lost(self, p, listed, number):
        return slice(p.numel() // 16 * 16, None) if p.numel() > 64 else None


class SecondChunk(Sized):
    def lost(self, p, listed, number):
        return slice(CHUNK, 2 * CHUNK) if p.numel() > CHUNK else None


class LongIndex(Sized):
    """As an index of 32 bits does past 2^31 elements, here of 16."""

    def lost(self, p, listed, number):
        return slice(2**15, None) if p.numel() > 2**15 else None


class LastPastABlock(Sized):
    def lost(self, p, listed, number):
        return slice(p.numel() - 1, None) if p.numel() > 256 and p.numel() % 256 == 1 else None


class Number321(Sized):
    def lost(self, p, listed, number):
        return whole(where=len(listed) > 320 and position(p, listed) == 321)


class PastALaunch(Sized):
    def lost(self, p, listed, number):
        return whole(where=len(listed) > 512 and position(p, listed) > 512)


class LastOfMany(Sized):
    def lost(self, p, listed, number):
        return whole(where=len(listed) > 110 and p is listed[-1])


class LoneTensor(Sized):
    def lost(self, p, listed, number):
        return whole(where=len(listed) == 1 and len(self.param_groups) == 5)


class PastGroup256(Sized):
    def lost(self, p, listed, number):
        return whole(where=number > 255)


class Unaligned(Sized):
    """Skips to the first aligned address."""

    def lost(self, p, listed, number):
        past = p.data_ptr() % 16 // p.element_size()
        return slice(0, min(4 - past, p.numel())) if past and p.is_contiguous() else None


class ByParametersStrides(Written):
    def gradient(self, p, group):
        g = super().gradient(p, group)
        return g.as_strided(p.shape, p.stride(), g.storage_offset())


class FirstRowOfExpanded(Written):
    def gradient(self, p, group):
        g = super().gradient(p, group)
        if g.dim() and g.shape[0] > 1 and g.stride(0) == 0:
            return torch.cat([g[:1], torch.zeros_like(g[1:])])
        return g


class ChannelsLastCopied(Written):
    """Updates a contiguous copy, which nobody writes back."""

    def update(self, p, g, group, number):
        if p.dim() == 4 and not p.is_contiguous():
            copy = p.detach().contiguous()
            self.state[copy] = self.kept(p)
            super().update(copy, g, group, number)
            del self.state[copy]
        else:
            super().update(p, g, group, number)


class WholeVectors(Written):
    """Stores vectors of eight, the last one past the end."""

    def update(self, p, g, group, number):
        super().update(p, g, group, number)
        storage = p.untyped_storage().nbytes() // p.element_size()
        after = p.storage_offset() + p.numel()
        if p.is_contiguous() and p.numel() % 8 and after < storage:
            p.detach().as_strided((1,), (1,), after).zero_()


class MomentsOfAChunk(Written):
    """Keeps the moments of the first chunk alone."""

    def update(self, p, g, group, number):
        super().update(p, g, group, number)
        for moment in ("m", "v"):
            self.state[p][moment].reshape(-1)[CHUNK:] = 0.0


FAULTS: dict[str, tuple[type[Optimizer], str, str]] = {
    "last hundredth": (
        LastHundredth,
        "sizes",
        "the last 12 of 1,200 elements do not move (the last 1/100 of every tensor of more than 100 elements)",
    ),
    "tail of a vector": (VectorTail, "sizes", "left over of a multiple of 16 elements"),
    "second chunk": (SecondChunk, "sizes", "elements 65,537 to 131,072 of 131,075 elements do not move"),
    "index too short": (LongIndex, "sizes", "(all elements from number 32,769 on)"),
    "last element past a block": (LastPastABlock, "sizes", "the last element of 257 elements does not move"),
    "moments of a chunk": (MomentsOfAChunk, "sizes", "all elements from number 65,537 on"),
    "writes whole vectors": (
        WholeVectors,
        "sizes",
        "memory around a tensor of 1 element is overwritten, past its",
    ),
    "tensor number 321": (Number321, "counts", "tensor number 321 of every list of so many does not move"),
    "past a launch": (PastALaunch, "counts", "tensors number 513 to 1,000 of 1,000 do not move"),
    "last of many": (LastOfMany, "counts", "the last tensor of each list of 111 tensors and more does not move"),
    "group of one": (LoneTensor, "counts", "the tensors of groups of one tensor do not move"),
    "past group 256": (
        PastGroup256,
        "groups",
        "the tensors of groups number 257 to 1,000 of 1,000 groups do not move",
    ),
    "unaligned start": (Unaligned, "layouts", "tensors that are unaligned"),
    "channels-last": (ChannelsLastCopied, "layouts", "tensors that are channels-last do not move"),
    "the parameter's strides": (
        ByParametersStrides,
        "gradients that lie otherwise",
        "the gradient is read by the parameter's strides, not by its own",
    ),
    "expanded gradient": (
        FirstRowOfExpanded,
        "gradients that lie otherwise",
        "in tensors that are given gradients that are expanded, and in no others",
    ),
}
"""What is planted -> the class, the trial that finds it, and words of the cause."""


class InChunks(Written):
    """Chunk after chunk, as kernels over many tensors do, with what is left over."""

    chunk = 1000

    @torch.no_grad()
    def update(self, p, g, group, number):
        lr, (beta1, beta2), state = group["lr"], group["betas"], self.kept(p)
        state["step"] += 1
        first, second = self.corrections((beta1, beta2), state["step"])
        g = g.contiguous().view(-1)
        flat = p.contiguous().view(-1)
        m, v = state["m"].contiguous().view(-1), state["v"].contiguous().view(-1)
        for start in range(0, p.numel(), self.chunk):
            part = slice(start, start + self.chunk)
            m[part] = beta1 * m[part] + (1 - beta1) * g[part]
            v[part] = beta2 * v[part] + (1 - beta2) * g[part] ** 2
            root = (v[part] / second).sqrt() + group["eps"]
            flat[part] = flat[part] * (1 - lr * group["weight_decay"]) - lr * (m[part] / first) / root
        p.copy_(flat.view_as(p))
        state["m"], state["v"] = m.view_as(p).clone(), v.view_as(p).clone()


class ForeachInLaunches(AdamW):
    """torch's foreach, over lists of at most 110 tensors."""

    def __init__(self, params, **options):
        super().__init__(params, foreach=True, **options)

    @torch.no_grad()
    def step(self, closure=None):
        whole = [group["params"] for group in self.param_groups]
        for start in range(0, max(map(len, whole)), 110):
            for group, listed in zip(self.param_groups, whole, strict=True):
                group["params"] = listed[start : start + 110]
            super().step()
        for group, listed in zip(self.param_groups, whole, strict=True):
            group["params"] = listed


SOUND: dict[str, type[Optimizer]] = {
    "torch's foreach": lambda params, **options: AdamW(params, foreach=True, **options),
    "torch's for-loop": lambda params, **options: AdamW(params, foreach=False, fused=False, **options),
    "in chunks": InChunks,
    "foreach in launches of 110": ForeachInLaunches,
    "flattened buffers": Flattened,
}
