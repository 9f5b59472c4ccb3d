"""Makes the user's own modules importable without letting them hide installed ones."""

from __future__ import annotations

import os
import sys

VARIABLE = "OPTBENCH_USER_PATH"
"""Names the user's folder in the processes that optbench starts, which run with PYTHONSAFEPATH."""


def extend(otherwise: str | None = None) -> None:
    """Append ``$OPTBENCH_USER_PATH`` to ``sys.path``, so that a ``workloads/`` of the user's hides nothing.

    Args:
        otherwise: the folder, where the variable is not set.
    """
    folder = os.environ.get(VARIABLE) or otherwise
    if folder and folder not in sys.path:
        sys.path.append(folder)
