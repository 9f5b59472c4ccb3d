"""Arms of a live comparison, and how it is made, from words or a TOML file."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import launching
from harness.comparison.model import Arm
from harness.errors import InvalidInputError, Problem, gathered, refuse
from harness.gating.file import duration, fraction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from harness.spec import RunSpec

PLACE = ("name", "env", "python", "path")
"""Keys of an ``[[arm]]`` beside RunSpec's fields."""

KEYS = ("defaults", "arm", "margin", "budget", "self_check")
"""Of a file of arms."""

OFF = ("", "0", "f", "false", "n", "no", "off")
"""Values of the variable CI that say it is not set; services put other words than ``true`` there, too."""

LONGEST_TIMEOUT_S = 7 * 24 * 3600.0
"""More is a slip, and past 292 years a socket raises."""


def seconds(value: object, where: str = "--budget") -> float:
    """Return a budget: ``120``, ``120s``, ``2m``.

    Raises:
        InvalidInputError: it is none.
    """
    return _read(duration, value, where)


def margin(value: object, where: str = "--margin") -> float:
    """Return a margin: ``2.5%`` or ``0.025``.

    Raises:
        InvalidInputError: it is none.
    """
    return _read(fraction, value, where)


def _read(read: Callable[[Any], float], value: object, where: str) -> float:
    try:
        return read(value)
    except OverflowError:  # TOML's integers have no limit, floats have one
        raise InvalidInputError([Problem(where, "expected a number that a float can hold")]) from None
    except ValueError as error:
        raise InvalidInputError([Problem(where, f"{error}, found {value!r}")]) from None


def timeout(value: float) -> float:
    """Return the seconds that any one answer of an arm may take.

    Raises:
        InvalidInputError: they are none that can be waited for.
    """
    if math.isfinite(value) and 0 < value <= LONGEST_TIMEOUT_S:
        return value
    what = f"expected seconds above 0, at most {LONGEST_TIMEOUT_S:g}, found {value:g}"
    raise InvalidInputError([Problem("--timeout", what, "write --timeout 300")])


def rides_along(asked: Mapping[str, Any], ci: str | None, *, option: bool | None) -> bool:
    """Say whether the first arm's code rides along twice.

    Args:
        asked: of the file of arms.
        ci: the environment's CI, which decides where neither the option nor the file does.
        option: of the command line; None: not given.
    """
    if option is not None:
        return option
    return bool(asked.get("self_check", (ci or "").strip().lower() not in OFF))


class Asked(NamedTuple):
    """A live comparison as words and a file ask for it.

    Attributes:
        arms: two or more, names unique.
        margin: relative difference that does not matter.
        budget_s: of all of it.
        file: what else stands in the file of arms.
    """

    arms: list[Arm]
    margin: float
    budget_s: float
    file: dict[str, Any]


def asked(
    words: Sequence[str],
    sides: Sequence[str],
    given: Mapping[str, Any],
    settings: Sequence[str],
    share: str | None,
    budget: str | None,
) -> Asked:
    """Read a live comparison; options win over the file.

    Args:
        words: the file of arms, or nothing.
        sides: ``--arm``, each.
        given: fields that the command line gives every arm.
        settings: likewise, as ``key=value``.
        share: ``--margin``.
        budget: ``--budget``.

    Raises:
        InvalidInputError: with every problem.
    """
    problems: list[Problem] = []
    if sides and words:
        problems.append(Problem("--arm", f"beside {words[0]}", "name arms in the file or by --arm"))
    arms: list[Arm] = []
    file: dict[str, Any] = {}
    with gathered(problems):
        if sides:
            arms = from_words(sides, given, settings)
        else:
            arms, file = from_file(Path(words[0]), given, settings)
    with gathered(problems):
        allowed = margin(file.get("margin", "2.5%") if share is None else share)
    with gathered(problems):
        budget_s = seconds(file.get("budget", "120s") if budget is None else budget)
    refuse(problems)
    return Asked(arms, allowed, budget_s, file)


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
    _enough(len(tables), "--arm", "name two or more: --arm adamw/foreach --arm adamw/fused")
    names = [table["name"] for table in tables if "name" in table]
    problems: list[Problem] = [
        Problem(f"--arm {name}=…", "more than one arm is called so", "give each another name")
        for name in _repeated(names)
    ]
    arms: list[Arm] = []
    for number, table in enumerate(tables, 1):
        try:
            runs = options.read([], {**given, "optimizer": table["optimizer"]}, settings).runs
        except InvalidInputError as error:
            problems += (_as_arm(problem, words[number - 1]) for problem in error.problems)
            continue
        if len(runs) > 1:
            twice = [field for field, value in given.items() if isinstance(value, list) and len(value) > 1]
            where = ", ".join(options.OPTION_WORDS.get(field, f"--{field}") for field in twice)
            remedy = "give each option once, and one value; arms that differ in more stand in a file"
            problems.append(Problem(where or f"--arm {words[number - 1]}", "makes several runs of an arm", remedy))
            continue
        arms.append(_arm(runs[0], table))
    refuse(problems)
    return _named(arms)


def _as_arm(problem: Problem, word: str) -> Problem:
    """Let a problem of the optimizer name the option that gave it."""
    if problem.where.partition(".")[0] != "--optimizer":
        return problem
    return replace(problem, where=f"--arm {word}")


def from_file(path: Path, given: Mapping[str, Any], settings: Sequence[str]) -> tuple[list[Arm], dict[str, Any]]:
    """Read ``[defaults]`` and ``[[arm]]`` tables of RunSpec's fields, and what else stands in the file.

    Args:
        path: the TOML file.
        given: fields that the command line gives every arm; they win over the file.
        settings: likewise, as ``key=value``.

    Returns:
        The arms, and ``margin``, ``budget`` in seconds and ``self_check`` where the file has them.

    Raises:
        InvalidInputError: with every problem of the file and of the options, and its place.
    """
    from harness.spec import merge
    from harness.verbs import specs as options

    document = _document(path)
    problems = [_unknown(path, key) for key in document if key not in KEYS]
    asked = _asked(path, document, problems)
    overrides, typed = options.overrides(given, settings, problems)
    defaults, tables = _tables(path, document, problems)
    arms = []
    for index, table in enumerate(tables):
        where = f"{path}: arm[{index}]"
        try:
            arms.append(_arm_of(where, merge(defaults, table), overrides, path.parent))
        except InvalidInputError as error:
            told = (_as_typed(problem, where, typed) for problem in error.problems)
            problems += (_as_default(problem, where, table, path, defaults) for problem in told)
    problems += _twins(path, tables)
    with gathered(problems):
        _enough(len(tables), str(path), "add an [[arm]] table for each: two or more")
    refuse(problems)
    return _named(arms), asked


def _unknown(path: Path, key: str) -> Problem:
    """Return the problem of a key at the top of a file, which may be one of a table."""
    from harness.spec import RunSpec, suggest

    remedy = suggest(key, KEYS)
    if key in RunSpec.model_fields or key in PLACE:
        remedy = f"write {key} under [defaults], for all arms, or in an [[arm]]"
    return Problem(f"{path}: {key}", "unknown key", remedy)


def _as_default(
    problem: Problem, where: str, table: Mapping[str, Any], file: Path, defaults: Mapping[str, Any]
) -> Problem:
    """Let a problem of a key that the defaults gave say so, instead of blaming each arm for it."""
    path = problem.where.removeprefix(f"{where}.")
    key = path.partition(".")[0].partition("[")[0]
    if key in table or key not in defaults:
        return problem
    return replace(problem, where=f"{file}: defaults.{path}")


def _twins(path: Path, tables: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """Yield each name that more than one arm was given: a report could not tell them apart."""
    names = [table["name"] for table in tables if isinstance(table.get("name"), str)]
    for name in _repeated(names):
        numbers = [f"arm[{number}]" for number, table in enumerate(tables) if table.get("name") == name]
        yield Problem(f"{path}: {' and '.join(numbers)}", f"are called {name}, each", "give each another name")


def _repeated(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(each for each in names if names.count(each) > 1))


def _document(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        remedy = "name a TOML file with an [[arm]] for each side, or give each by --arm"
        raise InvalidInputError([Problem(str(path), f"cannot be read: {error.strerror}", remedy)]) from None
    except ValueError as error:  # of TOML, of UTF-8, or an integer of more digits than Python reads
        remedy = 'a line is key = value, text in quotes, or a table\'s head: optimizer = "adamw/fused", [[arm]]'
        raise InvalidInputError([Problem(str(path), f"is not valid TOML: {error}", remedy)]) from None


def _asked(path: Path, document: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """Return margin, budget and self_check where the file has them."""
    asked = {}
    for key, read in (("margin", margin), ("budget", seconds), ("self_check", _switch)):
        if key in document:
            try:
                asked[key] = read(document[key], f"{path}: {key}")
            except InvalidInputError as error:
                problems += error.problems
    return asked


def _switch(value: object, where: str) -> bool:
    if isinstance(value, bool):
        return value
    what = f"expected true or false, found {value!r}"
    raise InvalidInputError([Problem(where, what, "write it without quotes")])


def _tables(
    path: Path, document: Mapping[str, Any], problems: list[Problem]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the defaults and the arms' tables."""
    defaults, tables = document.get("defaults", {}), document.get("arm", [])
    if not isinstance(defaults, dict):
        problems.append(Problem(f"{path}: defaults", f"expected a table, found {defaults!r}", "write [defaults]"))
        defaults = {}
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        problems.append(Problem(f"{path}: arm", f"expected tables, found {tables!r}", "write [[arm]] for each"))
        tables = []
    return defaults, tables


def _as_typed(problem: Problem, where: str, typed: Mapping[str, str]) -> Problem:
    """Let a problem of a field that the command line gave say so, instead of blaming each arm for it."""
    path = problem.where.removeprefix(f"{where}.")
    for field, words in typed.items():
        if path == field or path.startswith(f"{field}.") or field.startswith(f"{path}."):
            return replace(problem, where=words + path[len(field) :])
    return problem


def _arm_of(
    where: str,
    fields: Mapping[str, Any],
    overrides: Sequence[tuple[tuple[str, ...], JsonValue]],
    folder: Path,
) -> Arm:
    """Return the arm of a table, defaults laid under it.

    Raises:
        InvalidInputError: with every problem of it.
    """
    from harness.spec import expand, override
    from harness.verbs import specs as options

    problems, names = list(_wrong_places(where, fields)), options.names()
    place = fields.get("path")
    own = [Path(_from_folder(place, folder))] if isinstance(place, str) else []
    cell = names.locate({key: value for key, value in fields.items() if key not in PLACE}, *own, folder.absolute())
    for path, value in overrides:
        cell = override(cell, path, value)
    specs: tuple[RunSpec, ...] = ()
    try:
        specs = expand([(where, cell)], names)
    except InvalidInputError as error:
        problems += (_with_places(problem, where) for problem in error.problems)
    if len(specs) > 1:
        problems.append(Problem(where, f"is {len(specs)} runs", "give each field one value, each option once"))
    if problems:
        raise InvalidInputError(problems)
    return _arm(specs[0], fields, folder)


def _with_places(problem: Problem, where: str) -> Problem:
    """Let an unknown key of an arm be a slip in one that only arms have, too."""
    from harness.spec import RunSpec, suggest

    if problem.what != "unknown key" or (problem.remedy or "").startswith("did you mean"):
        return problem
    key = problem.where.removeprefix(f"{where}.")
    return replace(problem, remedy=suggest(key, [*PLACE, *RunSpec.model_fields]))


def _wrong_places(where: str, fields: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with the fields of an arm that say how it is called and where it runs."""
    for key in ("name", "python", "path"):
        if key in fields and not (isinstance(fields[key], str) and fields[key]):
            yield Problem(f"{where}.{key}", f"expected a string, found {fields[key]!r}", f'write {key} = "…"')
    env = fields.get("env", {})
    if not isinstance(env, dict):
        remedy = 'write env = { OMP_NUM_THREADS = "2" }'
        yield Problem(f"{where}.env", f"expected a table of strings, found {env!r}", remedy)
        return
    for name, value in env.items():
        if not name or not {"=", "\0"}.isdisjoint(name):
            yield Problem(f"{where}.env", f"{name!r} is no name of a variable", "use letters, digits and _")
        elif launching.steers(name):
            what = "steers the launcher, which optbench sets up itself"
            yield Problem(f"{where}.env.{name}", what, "leave it out; world_size sets the number of ranks")
        elif not isinstance(value, str) or "\0" in value:
            yield Problem(f"{where}.env.{name}", f"expected a string, found {value!r}", f'write {name} = "…"')


def _arm(spec: RunSpec, table: Mapping[str, Any], folder: Path | None = None) -> Arm:
    """Return an arm; its interpreter and checkout are looked for beside the file that names them."""
    place = {key: table[key] for key in PLACE if key in table}
    for key in ("python", "path"):
        if key in place and folder is not None and ("/" in place[key] or key == "path"):
            place[key] = _from_folder(place[key], folder)
    return Arm.model_validate({"name": spec.optimizer, "spec": spec, **place})


def _from_folder(path: str, folder: Path) -> str:
    """Return a path as a file in the folder means it."""
    try:
        found = (folder / Path(path).expanduser()).absolute()
        # Not the last name: an environment's interpreter is a link, and where it lies says which environment.
        return str(found.parent.resolve() / found.name if found.name != ".." else found.resolve())
    except RuntimeError:  # the home of a user who is none here: not found later, with its arm's name
        return path


def _enough(count: int, where: str, remedy: str) -> None:
    if count < 2:
        raise InvalidInputError([Problem(where, f"{count} arm{'' if count == 1 else 's'}", remedy)])


def _named(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms with unique names: a second one of a name gets a number."""
    taken: set[str] = set()
    named = []
    for arm in arms:
        names = itertools.chain([arm.name], (f"{arm.name} ({number})" for number in itertools.count(2)))
        name = next(each for each in names if each not in taken)
        taken.add(name)
        named.append(arm.model_copy(update={"name": name}))
    return named
