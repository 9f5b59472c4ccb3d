"""Certificates in ``results/``: a folder each, found again by what they hold for."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pydantic import ValidationError

from harness.verification.certificate import Certificate
from harness.verification.identity import still_holds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.store import Store

KIND = "certificate"

BELIEFS = ("passed", "wrong")
"""Outcomes that say something of the optimizer. Why a proof could not be made may lie in the machine, and end."""


def save(store: Store, certificate: Certificate) -> str:
    """Write a certificate; return the name of its folder.

    Raises:
        OSError: it cannot be written.
    """
    return store.new_document(KIND, certificate.model_dump(mode="json"))


def find(store: Store, keys: Iterable[str]) -> dict[str, tuple[str, Certificate]]:
    """Return, for each key that has one, the latest certificate that still holds, and its folder's name."""
    wanted = set(keys)
    found: dict[str, tuple[str, Certificate]] = {}
    if not wanted:
        return found
    for name, document in store.documents(KIND):
        key = document.get("key")
        if isinstance(key, str) and key in wanted and key not in found:
            with contextlib.suppress(ValidationError):
                certificate = Certificate.model_validate(document)
                if certificate.outcome in BELIEFS and still_holds(certificate):
                    found[key] = (name, certificate)
        if len(found) == len(wanted):
            break
    return found
