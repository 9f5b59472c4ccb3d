"""The command that installs more of optbench from where this one came."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = "optbench"


def install(extra: str, root: Path | None = None) -> str:
    """Return the command that installs an extra of optbench and leaves optbench what it is.

    Args:
        extra: its name.
        root: the folder that holds our packages; None: where this one lies.
    """
    found = source(root)
    if found is None:
        return f"pip install {' '.join(map(shlex.quote, _requirements(extra) or [f'{NAME}[{extra}]']))}"
    words = [*found.options, found.with_extra(extra)]
    return f"pip install {' '.join(map(_quoted, words))}"


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./-]+", word) else f"'{word}'" if "'" not in word else shlex.quote(word)


class Source:
    """What pip installs this optbench from.

    Args:
        place: a folder, a file, or a URL as pip wants it.
        editable: the folder itself is what runs.
    """

    def __init__(self, place: str, *, editable: bool = False) -> None:
        self.place = place
        self.options = ["-e"] if editable else []

    def with_extra(self, extra: str) -> str:
        """Return pip's word for it, with an extra."""
        if "://" in self.place:
            return f"{NAME}[{extra}] @ {self.place}"
        return f"{self.place}[{extra}]"


def source(root: Path | None = None) -> Source | None:
    """Return what this optbench was installed from; None: an index, or a place that is no more.

    Args:
        root: the folder that holds our packages; None: where this one lies.
    """
    root = Path(__file__).resolve().parents[1] if root is None else root
    if (root / "pyproject.toml").is_file():  # a checkout, however its packages came on the path
        return Source(_shortest(root), editable=True)
    return _recorded()


def _shortest(folder: Path) -> str:
    """Return a folder as pip needs it: relative where it is the current one or near, else absolute."""
    here = Path.cwd().resolve()
    if folder == here:
        return "."
    return os.path.join(".", folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)  # noqa: PTH118


def _recorded() -> Source | None:
    """Read what pip noted (PEP 610, direct_url.json)."""
    try:
        text = importlib.metadata.distribution(NAME).read_text("direct_url.json")
        noted: dict[str, Any] = json.loads(text or "{}")
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError):
        return None
    url = noted.get("url")
    if not isinstance(url, str):
        return None
    inside = f"#subdirectory={noted['subdirectory']}" if noted.get("subdirectory") else ""
    if vcs := noted.get("vcs_info"):
        return Source(f"{vcs['vcs']}+{url}@{vcs['commit_id']}{inside}")
    if not url.startswith("file:"):
        return Source(f"{url}{inside}")
    place = Path(unquote(urlsplit(url).path))
    if not place.exists():
        return None
    return Source(_shortest(place), editable=bool(noted.get("dir_info", {}).get("editable")))


def _requirements(extra: str) -> list[str]:
    """Return what the extra asks for: it can be installed wherever optbench itself came from."""
    try:
        listed = importlib.metadata.requires(NAME) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = (line.partition(";") for line in listed)
    return [
        name.strip()
        for name, _, marker in found
        if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", marker)
    ]
