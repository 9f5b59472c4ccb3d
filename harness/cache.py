"""The folder in which optbench keeps what can be made again: probed machines, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the project's cache folder, which need not exist yet.

    ``$OPTBENCH_CACHE``, else ``$XDG_CACHE_HOME/optbench``, else ``~/.cache/optbench``. An empty or relative
    ``$XDG_CACHE_HOME`` counts as unset, as the XDG base directory specification says.
    """
    own = os.environ.get("OPTBENCH_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(shared) if Path(shared).is_absolute() else Path("~/.cache").expanduser()
    return base / "optbench"
