"""SGD with momentum, which keeps its momentum somewhere else in each class."""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.dlpack import to_dlpack

GLOBAL: dict[int, torch.Tensor] = {}


class Momentum(torch.optim.Optimizer):
    """A class derived from it says where the momentum is: `begin` makes the place, `of` finds a parameter's."""

    def __init__(self, params, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})
        self.begin([p for group in self.param_groups for p in group["params"]])

    def begin(self, parameters) -> None:
        raise NotImplementedError

    def of(self, number: int) -> torch.Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure=None) -> None:
        number = 0
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.of(number)
                momentum.mul_(0.9).add_(p.grad)
                p.add_(momentum, alpha=-group["lr"])
                number += 1


class Deque(Momentum):
    def begin(self, parameters):
        self.held = deque(torch.zeros_like(p) for p in parameters)

    def of(self, number):
        return self.held[number]


@dataclass
class Record:
    tensors: list[torch.Tensor] = field(default_factory=list)


class DataClass(Momentum):
    def begin(self, parameters):
        self.record = Record([torch.zeros_like(p) for p in parameters])

    def of(self, number):
        return self.record.tensors[number]


class Slot:
    __slots__ = ("momentum",)

    def __init__(self, momentum):
        self.momentum = momentum


class Slots(Momentum):
    def begin(self, parameters):
        self.slots = tuple(Slot(torch.zeros_like(p)) for p in parameters)

    def of(self, number):
        return self.slots[number].momentum


class Closure(Momentum):
    def begin(self, parameters):
        momenta = [torch.zeros_like(p) for p in parameters]
        self.find = lambda number: momenta[number]

    def of(self, number):
        return self.find(number)


class Partial(Momentum):
    def begin(self, parameters):
        self.find = functools.partial(
            lambda momenta, number: momenta[number], [torch.zeros_like(p) for p in parameters]
        )

    def of(self, number):
        return self.find(number)


class Generator(Momentum):
    def begin(self, parameters):
        def momenta():
            held = [torch.zeros_like(p) for p in parameters]
            number = yield None
            while True:
                number = yield held[number]

        self.generator = momenta()
        next(self.generator)

    def of(self, number):
        return self.generator.send(number)


class Groups(Momentum):
    def begin(self, parameters):
        for group in self.param_groups:
            group["momenta"] = tuple(torch.zeros_like(p) for p in group["params"])

    def of(self, number):
        return [momentum for group in self.param_groups for momentum in group["momenta"]][number]


class Flat(Momentum):
    """One buffer, of which each parameter's momentum is a slice."""

    def begin(self, parameters):
        self.buffer = torch.zeros(sum(p.numel() for p in parameters))
        self.slices = [
            piece.view_as(p)
            for piece, p in zip(self.buffer.split([p.numel() for p in parameters]), parameters, strict=True)
        ]

    def of(self, number):
        return self.slices[number]


class Inner(Momentum):
    """A module with parameters of its own, inside an object that refers back to the optimizer, in a cycle."""

    def begin(self, parameters):
        self.owner = Slot((self, torch.nn.ParameterList([torch.zeros_like(p) for p in parameters])))
        self.model = parameters  # the model's own are no state

    def of(self, number):
        return self.owner.momentum[1][number].data


class OnParameters(Momentum):
    def begin(self, parameters):
        for p in parameters:
            p.momentum = torch.zeros_like(p)
        self.parameters = parameters

    def of(self, number):
        return self.parameters[number].momentum


class ClassAttribute(Momentum):
    cache: dict = {}  # noqa: RUF012  # as careless code has it

    def begin(self, parameters):
        self.cache.clear()
        self.cache.update(enumerate(torch.zeros_like(p) for p in parameters))

    def of(self, number):
        return self.cache[number]


class Array(Momentum):
    """NumPy's memory, wrapped anew for each step."""

    def begin(self, parameters):
        self.arrays = [np.zeros(tuple(p.shape), dtype=np.float32) for p in parameters]

    def of(self, number):
        return torch.from_numpy(self.arrays[number])


class Objects(Momentum):
    """The garbage collector does not look into an array of objects."""

    def begin(self, parameters):
        self.held = np.empty(len(parameters), dtype=object)
        for number, p in enumerate(parameters):
            self.held[number] = torch.zeros_like(p)

    def of(self, number):
        return self.held[number]


class Property(Momentum):
    """A property whose reading changes what the optimizer does."""

    def begin(self, parameters):
        self.momenta = [torch.zeros_like(p) for p in parameters]

    @property
    def trap(self):
        raise AssertionError("nobody asked for it")

    def __getattr__(self, name):
        raise AssertionError(f"{name} was asked for")

    def of(self, number):
        return self.momenta[number]


REACHED = (
    *(Deque, DataClass, Slots, Closure, Partial, Generator, Groups, Flat, Inner, OnParameters, ClassAttribute),
    *(Array, Objects, Property),
)


class Global(Momentum):
    def begin(self, parameters):
        GLOBAL.clear()
        GLOBAL.update(enumerate(torch.zeros_like(p) for p in parameters))

    def of(self, number):
        return GLOBAL[number]


class Opaque(Momentum):
    """Behind an address: nothing that Python knows of refers to it."""

    def begin(self, parameters):
        momenta = [torch.zeros_like(p) for p in parameters]
        for each in momenta:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))
        self.addresses = list(map(id, momenta))

    def of(self, number):
        return ctypes.cast(self.addresses[number], ctypes.py_object).value


class InExtension(Momentum):
    """C++ holds the storages; each step makes tensors over them."""

    def begin(self, parameters):
        momenta = [torch.zeros(p.shape) for p in parameters]
        self.held = [to_dlpack(each) for each in momenta]
        self.places = [(each.data_ptr(), each.numel(), each.shape) for each in momenta]

    def of(self, number):
        first, count, shape = self.places[number]
        memory = (ctypes.c_float * count).from_address(first)
        return torch.frombuffer(memory, dtype=torch.float32).view(shape)


class Replaced(Momentum):
    """A new tensor in each step, in a global."""

    def begin(self, parameters):
        GLOBAL.clear()
        GLOBAL.update(enumerate(torch.zeros_like(p) for p in parameters))

    def of(self, number):
        GLOBAL[number] = GLOBAL[number].clone()
        return GLOBAL[number]


class Snapshots(Momentum):
    """Slow weights that only every thousandth step would touch."""

    def begin(self, parameters):
        GLOBAL.clear()
        self.momenta = [torch.zeros_like(p) for p in parameters]
        GLOBAL[0] = torch.zeros(1 << 16)

    def of(self, number):
        return self.momenta[number]


HIDDEN = (Global, Opaque, InExtension, Replaced)


class SlowWeights(torch.optim.Optimizer):
    """Slow weights around an optimizer that this class makes itself, with which it shares its groups."""

    def __init__(self, params, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})
        self.inner = torch.optim.AdamW(self.param_groups, lr=lr)
        self.param_groups = self.inner.param_groups
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        for p in parameters:
            self.state[p].setdefault("slow", p.detach().clone())
        self.inner.step()
        self.count += 1
        for p in parameters if self.count % 5 == 0 else ():
            p.copy_(self.state[p]["slow"].lerp_(p, 0.5))
