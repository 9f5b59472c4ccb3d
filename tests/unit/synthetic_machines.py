"""Machines that nobody has probed: written by hand from the libraries' sources, until a real one has been seen."""

from __future__ import annotations

import json
from pathlib import Path

from harness.machine import Machine

FOLDER = Path(__file__).parent.parent / "data" / "synthetic"
NAMES = ("h100", "h100x8", "mi300x")


def read(name: str) -> Machine:
    return Machine.model_validate({**_document(name)["machine"], **_of("constructors")})


def _of(key: str) -> dict:
    return {key: _document(key)[key]}


def _document(name: str) -> dict:
    found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert found["synthetic"] is True
    assert found["follows"]
    return found
