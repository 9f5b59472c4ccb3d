"""Which operators an optimizer's step really calls: two names that call the same ones are the same code."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pydantic import JsonValue


class _Count(TorchDispatchMode):
    """Counts every operator that reaches the dispatcher."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch declares no types for it
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count and pass on."""
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


class StepOperators:
    """Watches one untimed step. A compiled step is left alone: a mode would make it compile again."""

    def __init__(self) -> None:
        self._found: Counter[str] | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is called inside, unless something has been compiled in this process."""
        if _compiled_graphs():
            yield
            return
        with _Count() as mode:
            yield
        self._found = mode.found

    def counts(self) -> dict[str, JsonValue] | None:
        """Return operator -> calls of one step; None: no step was watched."""
        return None if self._found is None else dict(sorted(self._found.items()))

    def ran_as(self) -> str | None:
        """Return fused, foreach or forloop by the operators' names; own kernels: none of torch's were called."""
        if self._found is None:
            return "compiled" if _compiled_graphs() else None
        names = list(self._found)
        if any("._fused_" in name for name in names):
            return "fused"
        if any("._foreach_" in name for name in names):
            return "foreach"
        return "forloop" if any(name.endswith("_.default") or "_." in name for name in names) else "own kernels"


def _compiled_graphs() -> int:
    """Return how many graphs torch.compile has made in this process, without importing the compiler."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo is not None else 0
