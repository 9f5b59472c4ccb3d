"""Versions of stored files: which this optbench reads, and how old ones become today's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import CorruptFileError
from harness.record import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""schema_version -> how a document of it becomes one of the next version."""


class FutureVersionError(CorruptFileError):
    """A file was written by a newer optbench; the message names it and both versions."""


def check_version(document: Mapping[str, Any], where: Path | str) -> int:
    """Return a document's schema_version.

    Raises:
        FutureVersionError: it is newer than this optbench.
        CorruptFileError: it has none.
    """
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise CorruptFileError(f"{where}: has no schema_version, so it is not a file of optbench's")
    if version > SCHEMA_VERSION:
        raise FutureVersionError(
            f"{where}: has schema_version {version}, this optbench reads up to {SCHEMA_VERSION}; "
            "upgrade optbench to read it"
        )
    return version


def upgrade(document: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """Return a stored document in the form of today's ``SCHEMA_VERSION``.

    Args:
        document: of any version up to today's.
        where: its file, and line if there are several, for messages.

    Raises:
        FutureVersionError: it is newer.
        CorruptFileError: it has no version.
    """
    for version in range(check_version(document, where), SCHEMA_VERSION):
        document = {**UPGRADES[version](document), "schema_version": version + 1}
    return document
