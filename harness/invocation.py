"""Command lines of optbench to be copied: as it was started here, quoted for a shell, about the same store."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

RESULTS = Path("results")
"""The store where none is named."""

PROGRAM = "optbench"

MODULES = ("harness.cli", "optbench.__main__")
"""What ``python -m`` starts it by."""


def command(*words: str, results: Path | None = None) -> str:
    """Return a command line that a shell in the current folder runs.

    Args:
        words: the verb, its arguments and options, not yet quoted.
        results: the store that it is about; None: none.
    """
    store = [] if results is None or results == RESULTS else ["--results", str(results)]
    return shlex.join([*program(), *words, *store])


def program() -> list[str]:
    """Return the words that start optbench as it was started here: its environment need not be activated."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is not None and main.name in MODULES:
        safe = ["-P"] if sys.flags.safe_path else []
        return [_shortest(Path(sys.executable)), *safe, "-m", main.name.removesuffix(".__main__")]
    started, beside = Path(sys.argv[0]), Path(sys.executable).with_name(PROGRAM)
    script = started if started.name == PROGRAM and os.access(started, os.X_OK) else beside
    return [_shortest(script) if script.is_file() else PROGRAM]


def _shortest(file: Path) -> str:
    """Return the name by which a shell in the current folder finds a program."""
    found = shutil.which(file.name)
    if found is not None and Path(found).samefile(file):
        return file.name
    here = Path.cwd()
    if file.is_absolute() and not file.is_relative_to(here):
        return str(file)
    near = os.path.relpath(file)
    return near if os.sep in near else f".{os.sep}{near}"
