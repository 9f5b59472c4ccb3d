"""Prints, as Markdown, what became of every planted fault: ``PYTHONPATH=tests/verification python -m table``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from faulty_optimizers import FAULTS, SOUND
from faulty_sizes import FAULTS as SIZED
from faulty_sizes import SOUND as SOUND_SIZED
from test_engine_trials import FAULTS as ENGINE_FAULTS
from test_engine_trials import proved
from test_plain_trials import Planted, spec_of, wrong

from harness.references.table import reference
from harness.verification.plain import trials


def main() -> None:
    """Run them all and print the table."""
    print("| planted | checks that failed | likely cause named |\n| --- | --- | --- |")
    for name, (cls, _) in FAULTS.items():
        checks, cause = trials(Planted(cls), spec_of("adamw/planted"), reference("adamw"))
        print(row(name, [check.name for check in wrong(checks)], cause))
    for name, (cls, _, _) in SIZED.items():
        checks, cause = trials(Planted(cls), spec_of("adamw/planted"), reference("adamw"))
        print(row(name, [check.name for check in wrong(checks)], cause))
    with tempfile.TemporaryDirectory() as folder:
        jobs = [{"optimizer": "adamw/foreach", "strategy": f"faulty_engines:{name}"} for name in ENGINE_FAULTS]
        made = proved(Path(folder), jobs)
    for name, each in zip(ENGINE_FAULTS, made, strict=True):
        found = [check["name"] for check in each["checks"] if check["verdict"] == "wrong"]
        print(row(f"engine: {name}", found, each["cause"]))
    for name, cls in {**SOUND, **SOUND_SIZED}.items():
        checks, cause = trials(Planted(cls), spec_of("adamw/planted"), reference("adamw"))
        print(row(f"sound: {name}", [check.name for check in wrong(checks)], cause))


def row(name: str, found: list[str], cause: str | None) -> str:
    """Return one line; a fault that nothing found says so."""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"| {name} | {found[0] + more if found else '**nothing**'} | {cause or ''} |"


if __name__ == "__main__":
    main()
