"""Makes the user's own modules importable without letting them hide installed ones."""

from __future__ import annotations

import os
import sys

VARIABLE = "OPTBENCH_USER_PATH"
"""Names the user's folder in the processes that optbench starts, which run with PYTHONSAFEPATH."""


def extend() -> None:
    """Append ``$OPTBENCH_USER_PATH`` to ``sys.path``, so that a ``workloads/`` of the user's hides nothing."""
    folder = os.environ.get(VARIABLE)
    if folder and folder not in sys.path:
        sys.path.append(folder)
