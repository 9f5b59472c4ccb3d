"""How a rank leaves its world."""

from __future__ import annotations

import time

SETTLE_S = 0.1
"""For gloo's threads to free what the last collective carried; they need a turn on a core, no more."""


def leave_world() -> None:
    """Destroy this rank's process groups, if it is in any, once their threads have come to rest.

    ``~ProcessGroupGloo`` waits for its threads with Python's lock held. A thread that still frees the tensors of
    the last collective waits for that lock: both wait for ever (torch 2.13, on a busy machine).
    """
    import torch.distributed as dist

    if dist.is_initialized():
        time.sleep(SETTLE_S)  # without Python's lock
        dist.destroy_process_group()
