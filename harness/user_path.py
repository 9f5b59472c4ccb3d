"""Makes the user's own modules importable without letting them hide installed ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "OPTBENCH_USER_PATH"
"""Names the user's folder in the processes that optbench starts, which run with PYTHONSAFEPATH."""


PLACE = "OPTBENCH_PLACE"
"""Names the folder of an arm with a ``path``: what is found there is meant, whatever the user's folder holds."""


def place() -> list[str]:
    """Return the folders in which an arm's packages are looked for first; none for an arm without a path."""
    named = os.environ.get(PLACE)
    return roots(named) if named else []


def folder() -> Path:
    """Return the user's folder: the current one, unless the variable names another."""
    return Path(os.environ.get(VARIABLE) or Path.cwd())


def roots(project: str) -> list[str]:
    """Return the folders in which a project's packages are looked for: its own, and ``src`` in the src layout."""
    inner = Path(project) / "src"
    return [project, str(inner)] if inner.is_dir() and not (inner / "__init__.py").exists() else [project]


def extend(otherwise: str | None = None) -> None:
    """Append ``$OPTBENCH_USER_PATH`` to ``sys.path``, so that a ``workloads/`` of the user's hides nothing.

    Our own folder goes before it: an editable install is found by a hook that Python asks after ``sys.path``.

    Args:
        otherwise: the folder, where the variable is not set.
    """
    ours = str(Path(__file__).resolve().parents[1])
    users = os.environ.get(VARIABLE) or otherwise
    for each in (ours, *(roots(users) if users else ())):
        if each not in sys.path:
            sys.path.append(each)
