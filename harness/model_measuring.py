"""Measures a workload's model with tensors that have no memory: parameters, activations, repeated layers."""

from __future__ import annotations

import contextlib
import signal
import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness import contract, precision
from harness.interfaces import DataShard
from harness.model_facts import ModelFacts, units_of
from harness.registry import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from harness.interfaces import Workload
    from harness.spec import RunSpec


STEP_LIMIT_S = 20.0
"""What the step may take before it is given up."""


def of_workload(target: str, spec: RunSpec, micro_batch: int) -> ModelFacts:
    """Import and construct a workload as a run of the spec does, and measure its model."""
    return measured(contract.construct(load(target), spec), spec, micro_batch)


def measured(workload: Workload, spec: RunSpec, micro_batch: int) -> ModelFacts:
    """Return what building the model and one step over a micro-batch tell. No parameter takes memory.

    Args:
        workload: constructed.
        spec: for the precision and the seed.
        micro_batch: samples.
    """
    with torch.device("meta"):
        model = workload.build()
    units = units_of(model, workload.traits.blocks)
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    inside = [sum(n for name, n in sizes.items() if name.startswith(f"{unit}.")) for unit in units.names]
    held: tuple[int | None, int | None] = (None, None)
    if not workload.traits.optimizer_only:
        # A model that reads its values cannot be stepped so, and strangers' code may wait for something.
        with contextlib.suppress(Exception), _within(STEP_LIMIT_S):
            held = _stepped(workload, spec, micro_batch)
    return ModelFacts(
        parameters=sum(sizes.values()),
        activation_bytes=held[0],
        peak_bytes=held[1],
        units=units,
        root_elements=sum(sizes.values()) - sum(inside),
        largest_elements=max(inside, default=0),
    )


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so long; where signals cannot be had, never."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(_number: int, _frame: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _stepped(workload: Workload, spec: RunSpec, micro_batch: int) -> tuple[int, int]:
    """Return the bytes live at the end of forward, and the most of forward and backward."""
    shard = DataShard(0, 1, micro_batch, 1, spec.seed)
    batch = next(iter(contract.checked(workload.batches(shard), shard)))
    half = precision.model_dtype(spec.precision) == "bfloat16"
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, _built_in(torch.bfloat16 if half else torch.float32):
        model = workload.build()
        model.train()
        inputs = {name: _as_read(fake.from_tensor(tensor), half) for name, tensor in batch.items()}
        known = [*model.parameters(), *model.buffers(), *inputs.values()]
        with _Live(known) as live:
            with _autocast(spec):
                loss = workload.loss(model, inputs)
            forward = live.now
            loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types for it
            return forward, live.peak


def _as_read(tensor: Tensor, half: bool) -> Tensor:  # noqa: FBT001  # a private function's
    return tensor.to(torch.bfloat16) if half and tensor.is_floating_point() else tensor


@contextlib.contextmanager
def _built_in(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _autocast(spec: RunSpec) -> contextlib.AbstractContextManager[Any]:
    if spec.precision not in {"bf16", "fp16"}:
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16)  # as wide as float16


class _Live(TorchDispatchMode):
    """Adds up the memory of what operators return, for as long as it lives."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch declares no types for it
        self.now = self.peak = 0
        self._known = {_key(tensor) for tensor in known}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Pass on, and take note of new memory."""
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor) and _key(each) not in self._known:
                storage = each.untyped_storage()
                self._known.add(_key(each))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, _key(each), storage.nbytes())
        return found

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  # the storage's identity: it has no address
