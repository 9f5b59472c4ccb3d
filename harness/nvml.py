"""NVIDIA's management library, where every question may be refused: a refusal is None, never an exception."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

REASONS = {
    "sw_power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sync_boost": 0x10,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "hw_power_brake": 0x80,
}
"""Why clocks are held down, as bits of NVML's clocks event reasons (nvml.h, nvmlClocksEventReasons)."""


class Library:
    """A loaded and initialised NVML.

    Args:
        binding: the ``pynvml`` module.
    """

    def __init__(self, binding: Any) -> None:
        self.binding = binding
        # an older driver answers some questions in another shape, which is an error of its own class
        mismatch = getattr(binding, "NVMLLibraryMismatchError", binding.NVMLError)
        self._refusals = (binding.NVMLError, mismatch, UnicodeDecodeError)

    def ask(self, question: str, *arguments: Any) -> Any:
        """Call ``nvml<question>``; None where the driver, the device or the binding does not answer."""
        function = getattr(self.binding, f"nvml{question}", None)
        if function is None:
            return None
        try:
            return function(*arguments)
        except self._refusals:
            return None

    def device(self, device: torch.device) -> Any:
        """Return the handle of a torch device, found by what it is: NVML knows no CUDA_VISIBLE_DEVICES.

        Args:
            device: of type cuda, with or without an index.
        """
        import torch  # only a process that has a device gets here

        properties = torch.cuda.get_device_properties(device)
        return self.find(
            getattr(properties, "uuid", None),
            getattr(properties, "pci_domain_id", 0),
            getattr(properties, "pci_bus_id", None),
            getattr(properties, "pci_device_id", 0),
        )

    def find(self, uuid: object, pci_domain: int = 0, pci_bus: int | None = None, pci_device: int = 0) -> Any:
        """Return the handle of the device with that UUID, else on that PCI bus; None: NVML knows neither.

        Args:
            uuid: as torch gives it, without NVML's ``GPU-`` or ``MIG-``.
            pci_domain: number of the PCI domain.
            pci_bus: number of the PCI bus; None: unknown.
            pci_device: number of the device on the bus.
        """
        for prefix in ("GPU-", "MIG-", "") if uuid is not None else ():
            found = self.ask("DeviceGetHandleByUUID", f"{prefix}{uuid}")
            if found is not None:
                return found
        if pci_bus is None:
            return None
        return self.ask("DeviceGetHandleByPciBusId", f"{pci_domain:08x}:{pci_bus:02x}:{pci_device:02x}.0")

    def close(self) -> None:
        """Give the library back; it counts its users."""
        self.ask("Shutdown")


def load() -> Library | None:
    """Load and initialise NVML; None without the binding, the library, a driver, or the permission."""
    try:
        binding = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        binding.nvmlInit()
    except binding.NVMLError:
        return None
    return Library(binding)


@contextlib.contextmanager
def loaded() -> Iterator[Library | None]:
    """Lend NVML for the length of a block."""
    library = load()
    try:
        yield library
    finally:
        if library is not None:
            library.close()
