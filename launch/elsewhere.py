"""Runs a sweep with the code of another checkout or interpreter, through its command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness import launching, user_path
from harness.errors import OptbenchError
from harness.plan import name_checks
from harness.spec import OPTION_TABLES, multiplies
from harness.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from harness.plan import Names
    from harness.record import RunRecord
    from harness.spec import RunSpec

CLI = ("-P", "-m", "harness.cli")


def train(specs: Sequence[RunSpec], python: Path | None, path: Path | None) -> list[RunRecord]:
    """Train every spec, one after the other, and return the records in order.

    Args:
        specs: with every default resolved.
        python: interpreter; None: this one.
        path: checkout whose ``harness`` and ``workloads`` are imported; None: this one's.

    Raises:
        OptbenchError: that code cannot be started, or did not run them.
        KeyboardInterrupt: passed on; the other command ends its processes when it is interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="optbench-elsewhere-") as name:
        folder = Path(name)
        sweep, results = folder / "sweep.toml", folder / "results"
        sweep.write_text(written(specs), encoding="utf-8")
        words = [str(python or sys.executable), *CLI, "run", str(sweep), "--results", str(results), "--json"]
        try:
            done = subprocess.run(
                [*words, "--no-verify"], env=_settings(path), capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise OptbenchError(f"{python}: cannot be started: {error.strerror}") from error
        store = Store(results)
        ids = _run_ids(store)
        if len(ids) != len(specs):
            told = " | ".join(done.stderr.strip().splitlines()[-3:])
            raise OptbenchError(f"{path or python or 'this checkout'}: ended with code {done.returncode}: {told}")
        return [store.read(each) for each in ids]


def _settings(path: Path | None) -> dict[str, str]:
    """Return the environment in which that code is found before any that is installed."""
    found = user_path.roots(str(path or Path(__file__).resolve().parents[1]))
    rest = os.environ.get("PYTHONPATH")
    return {
        **launching.clean(os.environ),
        "PYTHONPATH": os.pathsep.join(filter(None, [*found, rest])),
        user_path.VARIABLE: os.environ.get(user_path.VARIABLE) or str(Path.cwd()),
        **({} if path is None else {user_path.PLACE: str(path.absolute())}),
    }


def _run_ids(store: Store) -> list[str]:
    """Return the runs of the only sweep in a store, in its order; what was printed may hold strangers' lines."""
    sweeps = store.sweep_ids()
    found = store.read_sweep(sweeps[-1]).run_ids if sweeps else ()
    return [each for each in found if each is not None]


def written(specs: Sequence[RunSpec]) -> str:
    """Return specs as a sweep file, without what is the default: an older checkout may not know it."""
    lines, names = ['name = "gate"'], name_checks()
    for spec in specs:
        fields = spec.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        fields |= {table: _as_one_value(spec, word, names) for word, table in OPTION_TABLES.items()}
        lines += ["", "[[runs]]", *(f"{key} = {_toml(value)}" for key, value in fields.items() if value != {})]
    return "\n".join(lines) + "\n"


def _as_one_value(spec: RunSpec, word: str, names: Names) -> dict[str, JsonValue]:
    """Return a table of options in which no list is read as several values: such a one stands in another list."""
    given: dict[str, JsonValue] = getattr(spec, OPTION_TABLES[word])
    lists = any(isinstance(value, list) for value in given.values())
    known = (names.defaults(word, getattr(spec, word)) or {}) if lists else {}

    def several(key: str, value: JsonValue) -> bool:
        return value == [] or multiplies(value, known.get(key))

    return {key: [value] if several(key, value) else value for key, value in given.items()}


def _toml(value: object) -> str:
    """Write a JSON value as TOML: they agree on strings, numbers, booleans and lists."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
