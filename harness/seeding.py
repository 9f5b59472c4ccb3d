"""One seed for every global random generator that a workload, an optimizer or an engine may draw from."""

from __future__ import annotations

import random


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
