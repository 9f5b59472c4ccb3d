"""What a live comparison needs before it starts, and what it leaves in the store."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from harness import installing
from harness.comparison.model import COMPARISON_VERSION, Arm, Comparison
from harness.errors import CorruptFileError, InvalidInputError, OptbenchError, Problem
from harness.invocation import command
from harness.run_ids import ANY_ID, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

    from harness.plan import Cell, Plan
    from harness.store import Store
    from harness.verbs.arm_plans import ArmPlans
    from launch.building import Kernels

KIND = "comparison"

WITHIN_A_WORLD = "it steps within a world only, where verify with --strategy proves it"
NOT_ASKED = "nobody asked (--no-verify)"


def planned(arms: Sequence[Arm], found: Plan) -> list[Arm]:
    """Return the arms with specs resolved.

    Raises:
        InvalidInputError: an arm cannot run here, or they differ in what they train.
    """
    problems = [
        Problem(f"arm {arm.name}", f"is unsupported: {cell.unsupported}")
        for arm, cell in zip(arms, found.cells, strict=True)
        if cell.unsupported is not None
    ]
    worlds = {(cell.spec.workload, cell.spec.global_batch, cell.spec.device) for cell in found.cells}
    if len(worlds) > 1:
        remedy = "arms must share workload, batch and device"
        problems.append(Problem("arms", f"differ in what they train: {sorted(map(str, worlds))}", remedy))
    if problems:
        raise InvalidInputError(problems)
    return [arm.model_copy(update={"spec": cell.spec}) for arm, cell in zip(arms, found.cells, strict=True)]


def alike(arms: Sequence[Arm]) -> list[str]:
    """Say which arms are the same in all but the name."""
    told, seen = [], list[Arm]()
    for arm in arms:
        twin = next((each for each in seen if each.model_copy(update={"name": arm.name}) == arm), None)
        if twin is not None:
            told.append(f"{arm.name} and {twin.name} are the same: a comparison of code with itself")
        seen.append(arm)
    return told


def refuse_places(arms: Sequence[Arm]) -> None:
    """Refuse arms whose interpreter or path is not what it should be.

    Raises:
        InvalidInputError: with each.
    """
    problems = [problem for arm in arms for problem in _place_problems(arm)]
    if problems:
        raise InvalidInputError(problems)


def _place_problems(arm: Arm) -> list[Problem]:
    where, found = f"arm {arm.name}", []
    if arm.path is not None and not Path(arm.path).is_dir():
        remedy = "name the folder that holds the packages to be imported: of optbench, or of the arm's own code"
        found.append(Problem(f"{where}: path", f"there is no folder {arm.path}", remedy))
    if arm.python is None:
        return found
    if shutil.which(arm.python) is None:
        return [*found, Problem(f"{where}: python", f"{arm.python} is no program", "name an interpreter")]
    missing = _missing_packages(arm)
    if missing:
        own = installing.source()
        remedy = f"{arm.python} -m pip install {shlex.quote('optbench' if own is None else own.place)}"
        if missing == ["harness"]:
            remedy += ", or give the arm the path of a checkout of optbench"
        told = ", ".join("optbench" if each == "harness" else each for each in missing)
        found.append(Problem(f"{where}: python", f"{arm.python} lacks {told}", remedy))
    return found


def _missing_packages(arm: Arm) -> list[str]:
    """Return which of the packages that an arm needs its interpreter cannot find."""
    brings_its_own = arm.path is not None and (Path(arm.path) / "harness").is_dir()
    names = ["torch", "pydantic", *([] if brings_its_own else ["harness"])]
    code = (
        "import importlib.util as u, pathlib, sys; "
        f"missing = [n for n in {names!r} if u.find_spec(n) is None]; "
        "pathlib.Path(sys.argv[1]).write_text(' '.join(missing))"
    )
    with tempfile.TemporaryDirectory(prefix="optbench-arm-") as folder:
        answer = Path(folder) / "missing"
        try:
            words = [str(arm.python), "-P", "-c", code, str(answer)]
            subprocess.run(words, capture_output=True, timeout=60, check=True)
            return answer.read_text(encoding="utf-8").split()
        except (OSError, subprocess.SubprocessError):
            return ["a working Python 3.11 or later"]


def build_kernels(cells: Sequence[Cell], built: Kernels) -> None:
    """Compile what the cells need before their ranks start.

    Raises:
        OptbenchError: a build failed.
    """
    failed = [reason for reason in built.build_planned(cells) if reason is not None]
    if failed:
        raise OptbenchError("; ".join(dict.fromkeys(failed)))


class Kept:
    """A comparison in the store, written anew after every launch: a driver that is killed loses only the last one.

    Args:
        store: where.
        told: hears, once a reason, that it cannot be written.

    Attributes:
        name: of its folder; None until there is something.
        unwritten: why what was kept last is not in the store; None: it is.
    """

    def __init__(self, store: Store, told: Callable[[str], None] = lambda _: None) -> None:
        self._store, self._told = store, told
        self.name: str | None = None
        self.unwritten: str | None = None

    def keep(self, comparison: Comparison) -> None:
        """Write what there is, or tell why not and go on: what was measured is worth more than its copy."""
        before, self.unwritten = self.unwritten, None
        try:
            self.write(comparison)
        except OSError as error:
            self.unwritten = f"{error.filename or self._store.root}: {error.strerror or error}"
            if before is None:
                self._told(f"cannot be stored, goes on without: {self.unwritten}")

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
        InvalidInputError: there is none, or there are several.
        OptbenchError: it was written by a newer optbench.
        CorruptFileError: it is damaged.
    """
    from harness.manifest import read_sealed

    store.check_readable()
    names = sorted(path.name for path in store.root.glob(f"{KIND}-*") if path.is_dir())
    wanted = word if word.startswith(KIND) else f"{KIND}-{word}"
    matching = names[-1:] if word == "latest" else [name for name in names if name.startswith(wanted)]
    if len(matching) != 1:
        raise InvalidInputError([_not_one(f"--from {word}", word, matching, names, store)])
    file = store.root / matching[0] / "manifest.json"
    try:
        document = read_sealed(file)
    except FileNotFoundError:
        raise CorruptFileError(f"{file}: is missing, so that there is nothing to show; name another") from None
    document.pop("schema_version", None)
    if isinstance(version := document.get("version"), int) and version > COMPARISON_VERSION:
        raise OptbenchError(f"{file}: written by a newer optbench (comparison version {version}); update optbench")
    try:
        return matching[0], Comparison.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        told = ": ".join(filter(None, (place, first["msg"].removeprefix("Value error, "))))
        raise CorruptFileError(f"{file}: no comparison: {told}") from None


def _not_one(where: str, word: str, matching: Sequence[str], names: Sequence[str], store: Store) -> Problem:
    """Return the problem of a word that means no comparison, or several."""
    if matching:
        return Problem(where, f"{len(matching)} comparisons begin so", f"write more of one: {', '.join(matching)}")
    if ANY_ID.fullmatch(word) and kind_of(word) != KIND:
        return Problem(
            where,
            f"is a {kind_of(word)}, not a comparison",
            f"show it: {command('show', word, results=store.root)}",
        )
    if not names:
        remedy = "compare, with two --arm or more, makes one; --results names another store"
        return Problem(where, f"there is no comparison in {store.root}", remedy)
    return Problem(where, f"no comparison in {store.root} is called so", f"there is {', '.join(names[-3:])}")


def proved(
    arms: Sequence[Arm],
    plans: ArmPlans,
    store: Store,
    told: Callable[[str], None],
    *,
    asked: bool,
    timeout_s: float,
) -> tuple[list[dict[str, JsonValue]], str | None]:
    """Prove each arm's own code, if asked; what tells nothing for longer than the timeout is not proved.

    Returns:
        By arm what is proved of it; and what is wrong with those proved wrong, or that need what they do not
        declare, of which no speed is shown.
    """
    from harness.verbs import arm_plans, verifying
    from harness.verification import proofs
    from launch import placing
    from launch.arms import START_S

    if not asked:
        return [{"outcome": "none", "reason": NOT_ASKED} for _ in arms], None
    quiet_s = START_S + timeout_s
    ours = [index for index, arm in enumerate(arms) if not placing.has_own(arm)]
    made = verifying.for_runs(plans.plan, ours, plans.machine, store, told, quiet_s=quiet_s)
    made |= arm_plans.proofs_in_place(arms, plans, store, told, quiet_s)
    wrong = [
        f"{arms[index].name}: {each.get('reason')}"
        for index, each in made.items()
        if proofs.barred(each) is not None
    ]
    unproved: dict[str, JsonValue] = {"outcome": "unsupported", "reason": WITHIN_A_WORLD}
    return [made.get(index, unproved) for index in range(len(arms))], "; ".join(wrong) or None
