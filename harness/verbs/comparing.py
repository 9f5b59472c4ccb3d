"""Arms from words or a TOML file, and what a live comparison leaves in the store."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from harness.comparison.model import COMPARISON_VERSION, Arm, Comparison
from harness.errors import CorruptFileError, InvalidInputError, OptbenchError, Problem
from harness.gating.file import duration, fraction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.machine import Machine
    from harness.plan import Plan
    from harness.spec import RunSpec
    from harness.store import Store

KIND = "comparison"

PLACE = ("name", "env", "python", "path")
"""Keys of an ``[[arm]]`` beside RunSpec's fields."""


def seconds(text: object) -> float:
    """Return a budget: ``120``, ``120s``, ``2m``.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        return duration(text)
    except ValueError as error:
        raise InvalidInputError([Problem("budget", str(error))]) from None


def margin(text: object) -> float:
    """Return a margin: ``2.5%`` or ``0.025``.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        return fraction(text)
    except ValueError as error:
        raise InvalidInputError([Problem("margin", str(error))]) from None


def from_words(words: Sequence[str], given: Mapping[str, Any], settings: Sequence[str]) -> list[Arm]:
    """Return arms that differ in the optimizer: ``adamw/fused``, or ``NAME=adamw/fused``.

    Raises:
        InvalidInputError: with every problem.
    """
    from harness.verbs import specs as options

    tables = []
    for word in words:
        name, equals, optimizer = word.rpartition("=")
        tables.append({"optimizer": optimizer, **({"name": name} if equals else {})})
    _enough(len(tables), "--arm")
    problems: list[Problem] = []
    arms: list[Arm] = []
    for number, table in enumerate(tables, 1):
        try:
            runs = options.read([], {**given, "optimizer": table["optimizer"]}, settings).runs
        except InvalidInputError as error:
            problems += error.problems
            continue
        if len(runs) > 1:
            problems.append(Problem(f"--arm {words[number - 1]}", "is several runs", "give each option once"))
            continue
        arms.append(_arm(runs[0], table))
    if problems:
        raise InvalidInputError(list(dict.fromkeys(problems)))
    return _named(arms)


def from_file(path: Path) -> tuple[list[Arm], dict[str, Any]]:
    """Read ``[defaults]`` and ``[[arm]]`` tables of RunSpec's fields, and what else stands in the file.

    Returns:
        The arms, and ``margin``, ``budget``, ``self_check`` where the file has them.

    Raises:
        InvalidInputError: with every problem of the file and its place.
    """
    import tomllib

    from harness.plan import name_checks
    from harness.spec import expand, suggest

    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError([Problem(str(path), f"cannot be read: {error}")]) from None
    known = ["defaults", "arm", "margin", "budget", "self_check"]
    problems = [
        Problem(f"{path}: {key}", "unknown key", suggest(key, known)) for key in document if key not in known
    ]
    tables = document.get("arm", [])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        problems.append(Problem(f"{path}: arm", "expected tables", "write [[arm]] for each"))
        tables = []
    defaults = document.get("defaults", {})
    arms = []
    for index, table in enumerate(tables):
        where = f"{path}: arm[{index}]"
        fields = {**(defaults if isinstance(defaults, dict) else {}), **table}
        try:
            (spec,) = expand([(where, {k: v for k, v in fields.items() if k not in PLACE})], name_checks())
            arms.append(_arm(spec, table, path.parent))
        except InvalidInputError as error:
            problems += error.problems
        except ValueError:
            problems.append(Problem(where, "is several runs or has a wrong name, env, python or path"))
    if not problems:
        _enough(len(tables), str(path))
    if problems:
        raise InvalidInputError(problems)
    return _named(arms), {key: document[key] for key in ("margin", "budget", "self_check") if key in document}


def _arm(spec: RunSpec, table: Mapping[str, Any], folder: Path | None = None) -> Arm:
    """Return an arm; its interpreter and checkout are looked for beside the file that names them."""
    place = {key: table[key] for key in PLACE if key in table}
    for key in ("python", "path"):
        if key in place and folder is not None and ("/" in place[key] or key == "path"):
            place[key] = str((folder / Path(place[key]).expanduser()).absolute())
    return Arm.model_validate({"name": spec.optimizer, "spec": spec, **place})


def _enough(count: int, where: str) -> None:
    if count < 2:
        remedy = "name two or more: --arm adamw/foreach --arm adamw/fused"
        raise InvalidInputError([Problem(where, f"{count} arm{'' if count == 1 else 's'}", remedy)])


def _named(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms with unique names: a second one of a name gets a number."""
    seen: dict[str, int] = {}
    named = []
    for arm in arms:
        seen[arm.name] = seen.get(arm.name, 0) + 1
        name = arm.name if seen[arm.name] == 1 else f"{arm.name} ({seen[arm.name]})"
        named.append(arm.model_copy(update={"name": name}))
    return named


def planned(arms: Sequence[Arm], found: Plan) -> list[Arm]:
    """Return the arms with specs resolved.

    Raises:
        InvalidInputError: an arm cannot run here, or its interpreter or checkout is not what it should be.
    """
    problems = [
        Problem(f"arm {arm.name}", f"is unsupported: {cell.unsupported}")
        for arm, cell in zip(arms, found.cells, strict=True)
        if cell.unsupported is not None
    ]
    problems += [problem for arm in arms for problem in _place_problems(arm)]
    worlds = {(cell.spec.workload, cell.spec.global_batch, cell.spec.device) for cell in found.cells}
    if len(worlds) > 1:
        remedy = "arms must share workload, batch and device"
        problems.append(Problem("arms", f"differ in what they train: {sorted(map(str, worlds))}", remedy))
    if problems:
        raise InvalidInputError(problems)
    return [arm.model_copy(update={"spec": cell.spec}) for arm, cell in zip(arms, found.cells, strict=True)]


def _place_problems(arm: Arm) -> list[Problem]:
    where, found = f"arm {arm.name}", []
    if arm.path is not None and not (Path(arm.path) / "harness" / "worker.py").is_file():
        found.append(Problem(f"{where}: path", f"{arm.path} is no checkout of optbench", "name its root folder"))
    if arm.python is None:
        return found
    if shutil.which(arm.python) is None:
        return [*found, Problem(f"{where}: python", f"{arm.python} is no program", "name an interpreter")]
    missing = _missing_packages(arm)
    if missing:
        remedy = f"{arm.python} -m pip install optbench, or give the arm a path"
        found.append(Problem(f"{where}: python", f"{arm.python} lacks {', '.join(missing)}", remedy))
    return found


def _missing_packages(arm: Arm) -> list[str]:
    """Return which of the packages that an arm needs its interpreter cannot find."""
    names = ["torch", "pydantic", *([] if arm.path is not None else ["harness"])]
    code = f"import importlib.util as u; print(*[n for n in {names!r} if u.find_spec(n) is None])"
    try:
        done = subprocess.run(
            [str(arm.python), "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ["a working Python 3.11 or later"]
    return done.stdout.split()


class Kept:
    """A comparison in the store, written anew after every launch: a driver that is killed loses only the last one.

    Attributes:
        name: of its folder; None until there is something.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name: str | None = None

    def write(self, comparison: Comparison) -> str:
        """Write what there is, raw turns included; return the name of its folder.

        Raises:
            OSError: it cannot be written.
        """
        document = comparison.model_dump(mode="json")
        if self.name is None:
            self.name = self._store.new_document(KIND, document)
        else:
            self._store.replace_document(self.name, document)
        return self.name


def save(store: Store, comparison: Comparison) -> str:
    """Write a comparison that has ended; return the name of its folder.

    Raises:
        OSError: it cannot be written.
    """
    return Kept(store).write(comparison)


def load(store: Store, word: str) -> tuple[str, Comparison]:
    """Return the comparison that a word means: its id, a unique beginning, or ``latest``.

    Raises:
        OptbenchError: there is none, or it was written by a newer optbench.
        CorruptFileError: it is damaged.
    """
    from harness.manifest import read_sealed

    names = sorted(path.name for path in store.root.glob(f"{KIND}-*") if path.is_dir())
    wanted = word if word.startswith(KIND) else f"{KIND}-{word}"
    matching = names[-1:] if word == "latest" else [name for name in names if name.startswith(wanted)]
    if len(matching) != 1:
        told = ", ".join(matching or names[-3:]) or "none"
        raise OptbenchError(
            f"--from {word}: {len(matching)} comparisons are called so in {store.root}; there is {told}"
        )
    file = store.root / matching[0] / "manifest.json"
    document = read_sealed(file)
    document.pop("schema_version", None)
    if isinstance(version := document.get("version"), int) and version > COMPARISON_VERSION:
        raise OptbenchError(f"{file}: written by a newer optbench (comparison version {version}); update optbench")
    try:
        return matching[0], Comparison.model_validate(document)
    except ValidationError as error:
        raise CorruptFileError(f"{file}: no comparison: {error.errors()[0]['msg']}") from None


def refuse_wrong(
    arms: Sequence[Arm], found: Plan, machine: Machine, store: Store, told: Callable[[str], None]
) -> str | None:
    """Return what is wrong with an arm whose optimizer was proved wrong, or None: no speed is shown of those."""
    from harness.verbs import verifying

    proofs = verifying.for_runs(found, range(len(arms)), machine, store, told)
    wrong = [
        f"{arms[index].name}: {each.get('reason')}"
        for index, each in proofs.items()
        if each.get("outcome") == "wrong"
    ]
    return "; ".join(wrong) or None
