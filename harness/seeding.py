"""One seed for every global random generator that a workload, an optimizer or an engine may draw from."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def seed_generators(seed: int) -> None:
    """Seed the generators of torch (all devices), of Python and of numpy.

    Optimizers draw from each of them: stochastic rounding from torch's, the updates of a preconditioner from
    Python's or numpy's. Numpy takes 32 bits only, so it gets the seed's lower ones.
    """
    import numpy as np
    import torch

    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # the generator that others draw from


def generators_kept() -> AbstractContextManager[None]:
    """Return a context that leaves torch's generators, the CPU's and this rank's device's, as it found them.

    Left to itself torch would ask every device of the machine, and other ranks' are not ours to touch.
    """
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng([torch.accelerator.current_device_index()], device_type=device.type)
