"""Dense peak rates of devices, from the makers' data sheets, for model FLOP/s utilisation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from harness.spec import Precision

TERA = 1e12

# Whole words of the device's name -> (fp32 without TF32, bf16 without sparsity), in FLOP/s. First match wins.
DATA_SHEETS: tuple[tuple[str, float, float], ...] = (
    ("B200", 75 * TERA, 2250 * TERA),  # NVIDIA Blackwell B200 data sheet (HGX)
    ("GH200", 67 * TERA, 989.4 * TERA),  # NVIDIA GH200 data sheet
    ("H200", 67 * TERA, 989.4 * TERA),  # NVIDIA H200 data sheet (SXM)
    ("H100 PCIe", 51 * TERA, 756 * TERA),  # NVIDIA H100 data sheet
    ("H100 NVL", 60 * TERA, 835 * TERA),
    ("H100", 67 * TERA, 989.4 * TERA),
    ("A100", 19.5 * TERA, 312 * TERA),  # NVIDIA A100 data sheet
    ("L40S", 91.6 * TERA, 362 * TERA),
    ("L4", 30.3 * TERA, 121 * TERA),
    ("A10", 31.2 * TERA, 125 * TERA),
    ("V100", 15.7 * TERA, 0.0),  # no bf16
    ("MI300X", 163.4 * TERA, 1307.4 * TERA),  # AMD Instinct MI300X data sheet
    ("MI250X", 47.9 * TERA, 383 * TERA),
)


def named_peak(name: str, precision: Precision) -> float | None:
    """Return a device's peak by name in FLOP/s; None: unknown, or without that precision."""
    for part, fp32, bf16 in DATA_SHEETS:
        if re.search(rf"\b{re.escape(part)}\b", name):
            # Dense TF32 runs at half the rate of bf16 and fp16 on every NVIDIA part that has it.
            return {"fp32": fp32, "tf32": bf16 / 2}.get(precision, bf16) or None
    return None


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Return the peak of one device in FLOP/s; None where no data sheet is known (all CPUs)."""
    if device.type != "cuda":
        return None
    return named_peak(torch.cuda.get_device_name(device), precision)
