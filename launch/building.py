"""Builds the kernels that runs and proofs need, before any of them starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import kernels
from harness.plan import kernels_of
from harness.registry import OPTIMIZERS, strategy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.plan import Cell
    from harness.spec import RunSpec


class Kernels:
    """Builds each kernel at most once in a command, also one whose build fails.

    Args:
        told: hears what is built, how long that usually takes, and why a build failed.
    """

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told = told
        self._reasons: dict[tuple[str, str], str | None] = {}

    def build(self, specs: Sequence[RunSpec]) -> list[str | None]:
        """Build what the specs need and nobody has built yet, all kernels of a device type side by side.

        Args:
            specs: of runs or proofs, with every default resolved for this machine.

        Returns:
            For each spec None, or why it cannot start: which of its kernels could not be built.
        """
        return self._build([_needed(spec) for spec in specs])

    def build_planned(self, cells: Sequence[Cell]) -> list[str | None]:
        """Build what planned cells need, as `build`, also where only the code of another place knows their names.

        Args:
            cells: planned on this machine, by this process or another one.
        """
        return self._build([_on_devices(cell.kernels, cell.spec) for cell in cells])

    def _build(self, needs: Sequence[Sequence[tuple[str, str]]]) -> list[str | None]:
        missing: dict[str, list[str]] = {}
        for name, device in dict.fromkeys(each for need in needs for each in need):
            if (name, device) not in self._reasons:
                missing.setdefault(device, []).append(name)
        for device, names in missing.items():
            found = kernels.ensure(names, self._told, device)
            self._reasons |= {(name, device): reason for name, reason in found.items()}
        return [_joined([self._reasons[each] for each in need]) for need in needs]


def _needed(spec: RunSpec) -> list[tuple[str, str]]:
    """Return the kernels of a spec, each with the type of device that it is built for."""
    return _on_devices(kernels_of(spec, OPTIMIZERS.get(spec.optimizer), strategy(spec.strategy)), spec)


def _on_devices(names: Sequence[str], spec: RunSpec) -> list[tuple[str, str]]:
    """Return kernels of a spec, each with the type of device that it is built for."""
    if not names:
        return []
    device = "cpu" if spec.device == "cpu" else kernels.default_device()
    return [(name, device) for name in names]


def _joined(reasons: Sequence[str | None]) -> str | None:
    return "; ".join(reason for reason in reasons if reason is not None) or None
