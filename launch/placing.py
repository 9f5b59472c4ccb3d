"""The place of an arm's code (its path, interpreter and environment), and the processes that plan it there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness import launching, user_path
from harness.errors import InvalidInputError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.comparison.model import Arm

PLANNER = "harness.verbs.placed"
"""The module that plans an arm; it does not exist in older checkouts."""

UNREAD = 65
"""Its exit code where it cannot read what it is asked: it is of another version."""

LIMIT_S = 300.0
"""A plan imports torch and the arm's modules, from a cold network file system perhaps."""


def has_own(arm: Arm) -> bool:
    """Say whether an arm's code runs anywhere else than the driver's."""
    return bool(arm.path or arm.python or arm.env)


def python(arm: Arm) -> str:
    """Return the arm's interpreter."""
    return arm.python or sys.executable


def settings(arm: Arm, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which an arm's modules are found as its ranks find them.

    Its path comes first. The driver's own checkout comes last, for an arm that brings no optbench.

    Args:
        arm: whose place it is.
        base: the driver's environment.
    """
    ours = [] if arm.python else [str(Path(__file__).resolve().parents[1])]
    folders = [*(user_path.roots(arm.path) if arm.path else ()), base.get("PYTHONPATH"), *ours]
    return {
        **launching.clean(base),
        **arm.env,
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "PYTHONSAFEPATH": "1",
        user_path.VARIABLE: base.get(user_path.VARIABLE) or str(Path.cwd()),
        **({user_path.PLACE: arm.path} if arm.path else {}),
    }


def planned(arm: Arm, machine: str | None) -> bytes | None:
    """Return what the arm's own place says of it, a `harness.verbs.placed.Placed` as JSON.

    Args:
        arm: with its spec as asked for.
        machine: the driver's, as JSON; None: the arm's interpreter looks for itself.

    Returns:
        None: the arm's optbench is of another version and cannot be asked.

    Raises:
        InvalidInputError: the process could not be started, or failed.
    """
    if not _brings(arm, "verbs/placed.py"):
        return None  # and an editable install of this one would lend it the missing module
    with tempfile.TemporaryDirectory(prefix="optbench-place-") as name:
        asked, out = Path(name) / "asked.json", Path(name) / "placed.json"
        known = None if machine is None else json.loads(machine)
        fields = arm.spec.model_dump(mode="json", exclude_defaults=True)
        asked.write_text(json.dumps({"spec": fields, "machine": known}), encoding="utf-8")
        words = [python(arm), "-m", PLANNER, str(asked), str(out)]
        try:
            done = subprocess.run(
                words,
                env=settings(arm, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=LIMIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InvalidInputError([Problem(f"arm {arm.name}", f"cannot be planned: {error}")]) from error
        if out.exists():
            return out.read_bytes()
        if done.returncode == UNREAD:
            return None
        said = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        if any(f"No module named {PLANNER}" in line or "No module named 'harness.verbs'" in line for line in said):
            return None
        what = f"cannot be planned: {' | '.join(said[-3:]) or f'its process ended with code {done.returncode}'}"
        raise InvalidInputError([Problem(f"arm {arm.name}", what, "its interpreter must be able to import it")])


def proves(arm: Arm) -> bool:
    """Say whether the optbench that an arm's path brings, if any, makes proofs."""
    return _brings(arm, "verification/prove.py")


def _brings(arm: Arm, file: str) -> bool:
    """Say whether the optbench that an arm's path brings has a file; True: it brings none, and runs this one's."""
    roots = user_path.roots(arm.path) if arm.path else []
    own = [Path(root) / "harness" for root in roots if (Path(root) / "harness").is_dir()]
    return not own or (own[0] / file).is_file()


def key(arm: Arm, of_code: str) -> str:
    """Return what a certificate of an arm's code holds for, its place included."""
    facts = [of_code, arm.path, arm.python, sorted(arm.env.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
