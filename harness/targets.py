"""Code that a user names: ``package.module:Class`` or ``./file.py:Class``. Found, read and imported here."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TextIO

SUFFIX = ".py"

KEPT = 600
"""Characters that are kept of what a module prints before it ends the process."""


INSTALL_IT = "start from the folder that holds the module, or install its package"

NAME_IT = f"name its file (./file.py:Class), {INSTALL_IT}"
"""What to do about a module that is not found."""


class Target(NamedTuple):
    """What a user's word names.

    Attributes:
        module: the dotted name of a module, or the path of a file.
        attribute: of the module: ``Class``, or ``Outer.Inner``.
    """

    module: str
    attribute: str

    @property
    def file(self) -> Path | None:
        """The file, where one is named."""
        return Path(self.module) if self.module.endswith(SUFFIX) else None


def split(target: str) -> Target:
    """Return module, or file, and attribute; a file may have a colon in its path."""
    module, _, attribute = target.rpartition(":")
    return Target(module, attribute)


def is_target(name: str) -> bool:
    """Say whether ``name`` is written as out-of-tree code: ``package.module:Class`` or ``file.py:Class``."""
    module, attribute = split(name)
    if not all(part.isidentifier() for part in attribute.split(".")):
        return False
    return is_file(name) or all(part.isidentifier() for part in module.split("."))


def is_file(name: str) -> bool:
    """Say whether ``name`` names a file: ``./mine.py:Class``, or, incomplete, ``./mine.py``."""
    return name.endswith(SUFFIX) or split(name).module.endswith(SUFFIX)


def located(name: str, *folders: Path) -> str:
    """Return a name with its file's path made absolute; any other name as it is.

    Args:
        name: as the user wrote it.
        folders: where a relative path may begin: the first that has the file counts, else the first.
    """
    if not is_file(name):
        return name
    module, colon, attribute = (name, "", "") if name.endswith(SUFFIX) else name.rpartition(":")
    with contextlib.suppress(RuntimeError):  # the home of a user who is none here
        module = str(Path(module).expanduser())
    places = [Path(os.path.abspath(folder / module)) for folder in folders or (Path.cwd(),)]  # noqa: PTH100  # keeps links
    found = next((place for place in places if place.is_file()), places[0])
    return f"{found}{colon}{attribute}"


def moved(name: str, folder: Path, root: Path | None = None) -> str:
    """Return the name of the same file below another folder, where it has it; any other name as it is.

    Args:
        name: with an absolute path.
        folder: another checkout, say.
        root: below which the file lies; None: the current folder.
    """
    named, root = split(name), root or Path.cwd()
    if named.file is None or not named.file.is_relative_to(root):
        return name
    other = folder / named.file.relative_to(root)
    return f"{other}:{named.attribute}" if other.is_file() else name


def short(name: str, others: Iterable[str] = ()) -> str:
    """Return a name as a table shows it: of a file's path as much as tells it from the others."""
    if not is_file(name):
        return name
    parts, ends = Path(name).parts, [Path(each).parts for each in others if each != name]
    count = next((n for n in range(1, len(parts)) if all(end[-n:] != parts[-n:] for end in ends)), len(parts))
    return str(Path(*parts[-count:]))


def load(target: str) -> Any:
    """Import ``module:attribute`` or ``file.py:attribute``.

    Raises:
        ImportError, AttributeError: as importing raised it, or because the module ends the process.
    """
    named = split(target)
    found: Any = import_module(named.module)
    for part in named.attribute.split("."):
        found = getattr(found, part)
    return found


def import_module(module: str) -> types.ModuleType:
    """Import a module by its dotted name, or a file by its path.

    Raises:
        ImportError: as importing raised it, or because the module ends the process.
    """
    with _kept_from_exiting(module):
        return _import_file(Path(module)) if module.endswith(SUFFIX) else importlib.import_module(module)


def source(target: str) -> Path | None:
    """Return the source file of a target's module, importing nothing; None: it has none, or cannot be found."""
    named = split(target)
    if named.file is not None:
        return named.file if named.file.is_file() else None
    top, *rest = named.module.split(".")
    try:
        found = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        return None
    name = top
    for part in rest:
        if found is None or found.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        found = importlib.machinery.PathFinder.find_spec(name, list(found.submodule_search_locations))
    origin = None if found is None else found.origin
    return Path(origin) if origin is not None and origin.endswith(SUFFIX) else None


def class_definition(target: str) -> ast.ClassDef | None:
    """Return a class from its module's source, importing nothing; None: it cannot be found or parsed there."""
    tree = _parsed(source(target))
    name = split(target).attribute
    classes = (
        node for node in (tree.body if tree else ()) if isinstance(node, ast.ClassDef) and node.name == name
    )
    return next(classes, None)


def constructor_defaults(target: str) -> dict[str, Any] | None:
    """Return the keywords of a class, or of a function that makes an instance, with their defaults.

    They are read from its source, and nothing is imported. Sequences are lists. None: it is not in that file, or
    takes any keyword.
    """
    written = class_definition(target)
    if written is not None:
        found, handed = _function(written.body, "__init__"), 2  # the instance, and its parameters
    else:
        tree = _parsed(source(target))
        found, handed = _function(tree.body if tree else (), split(target).attribute), 1
    if found is None or found.args.kwarg is not None:
        return None
    positional = [*found.args.posonlyargs, *found.args.args][handed:]
    given = [None] * (len(positional) - len(found.args.defaults)) + found.args.defaults
    named = [*zip(positional, given[-len(positional) :], strict=True)] if positional else []
    named += zip(found.args.kwonlyargs, found.args.kw_defaults, strict=True)
    return {argument.arg: None if value is None else _literal(value) for argument, value in named}


def _function(body: Iterable[ast.stmt], name: str) -> ast.FunctionDef | None:
    return next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def _literal(value: ast.expr) -> Any:
    try:
        found = ast.literal_eval(value)
    except ValueError:
        return None
    return _listed(found)


def _listed(value: Any) -> Any:
    return [_listed(each) for each in value] if isinstance(value, (list, tuple)) else value


def classes_in(file: Path) -> list[str]:
    """Return the names of the classes at the top of a file."""
    tree = _parsed(file)
    return [node.name for node in (tree.body if tree else ()) if isinstance(node, ast.ClassDef)]


def taken(target: str, folder: Path, meant: Sequence[str] = ()) -> str | None:
    """Return who has taken a module's name, where the user's folder holds a module of that name that is not found.

    Args:
        target: ``package.module:Class``.
        folder: the user's.
        meant: folders in which the module may be found all the same.
    """
    named = split(target)
    if named.file is not None:
        return None
    place = folder.joinpath(*named.module.split("."))
    own = next((each for each in (place.with_suffix(SUFFIX), place / "__init__.py") if each.is_file()), None)
    found = source(target)
    if own is None or (found is not None and (_same(found, own) or _within(found, meant))):
        return None
    top = named.module.partition(".")[0]
    shown = os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)
    file = shown if os.sep in shown else os.path.join(os.curdir, shown)  # noqa: PTH118  # Path drops the dot
    return f"the name {top} is taken by {_owner(top)}, which hides {file}; name the file: {file}:{named.attribute}"


def _owner(top: str) -> str:
    """Say whose a top-level module is."""
    if top in sys.stdlib_module_names:
        return "Python's standard library"
    found = _specification(top)
    place = None if found is None else found.origin or next(iter(found.submodule_search_locations or ()), None)
    ours = Path(__file__).resolve().parents[1]
    if place is not None and Path(place).resolve().is_relative_to(ours / top):
        return "optbench's own package"
    return f"the installed {place}" if place else "another module"


def _specification(top: str) -> importlib.machinery.ModuleSpec | None:
    with contextlib.suppress(ImportError, ValueError):
        return importlib.util.find_spec(top)
    return None


def _within(file: Path, folders: Sequence[str]) -> bool:
    return any(file.resolve().is_relative_to(Path(each).resolve()) for each in folders)


def _same(one: Path | str, other: Path | str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _parsed(file: Path | None) -> ast.Module | None:
    """Return a file's syntax tree; None: importing it tells the user what is wrong."""
    try:
        written = None if file is None else file.stat()
    except (OSError, ValueError):
        return None
    return None if file is None or written is None else _parse(file, written.st_mtime_ns, written.st_size)


@functools.lru_cache(maxsize=256)
def _parse(file: Path, _written_ns: int, _size: int) -> ast.Module | None:
    """Return the syntax tree of a file as it was written last."""
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _import_file(file: Path) -> types.ModuleType:
    """Import a file with the packages that hold it, so that its relative imports work.

    It gets the name that ``import`` would give it, unless another module has that: then its packages are imported
    under a name that nobody else has, and hide nothing.
    """
    file = Path(os.path.abspath(file))  # noqa: PTH100  # keeps links
    if not file.is_file():
        raise ModuleNotFoundError(f"there is no file {file}")
    folders = _packages(file)
    beside = (folders[0] if folders else file).parent
    if str(beside) not in sys.path:
        sys.path.append(str(beside))  # last: it hides nothing
    chain = [folder / "__init__.py" for folder in folders] + ([] if file.name == "__init__.py" else [file])
    top, *parts = [each.parent.name if each.name == "__init__.py" else each.stem for each in chain]
    alias = top
    if not _is_free(top, chain[0]):
        alias = f"_optbench_{hashlib.sha256(str(chain[0]).encode()).hexdigest()[:12]}_{top}"
    try:
        module = _imported(alias, chain[0])
        for each, part in zip(chain[1:], parts, strict=True):
            module = _imported(f"{module.__name__}.{part}", each)
    except ImportError as error:
        if alias != top and error.name is not None and error.name.partition(".")[0] == top:
            told = f"{error}; the name {top} is taken by {_owner(top)}: import relatively, from . import …"
            raise ImportError(told, name=error.name) from error
        raise
    return module


def _packages(file: Path) -> list[Path]:
    """Return the file's packages, outermost first: regular ones, and folders that its relative imports reach."""
    folders: list[Path] = []
    folder, needed = file.parent, _dots(file)
    while folder.parent != folder and ((folder / "__init__.py").is_file() or len(folders) < needed):
        folders.insert(0, folder)
        folder = folder.parent
    return folders


def _dots(file: Path) -> int:
    """Return how many packages up the file's relative imports reach."""
    tree = _parsed(file)
    return (
        max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0) if tree else 0
    )


def _is_free(top: str, first: Path) -> bool:
    """Say whether importing ``top`` gives that very file."""
    if not top.isidentifier():
        return False
    loaded = sys.modules.get(top)
    found = (
        getattr(loaded, "__file__", None) if loaded is not None else getattr(_specification(top), "origin", None)
    )
    return isinstance(found, str) and _same(found, first)


def _imported(name: str, file: Path) -> types.ModuleType:
    """Import a file under a name; a folder without ``__init__.py`` becomes an empty package."""
    if name in sys.modules:
        return sys.modules[name]
    places = [str(file.parent)] if file.name == "__init__.py" else None
    if places is not None and not file.is_file():
        module = types.ModuleType(name)
        module.__path__ = places
        sys.modules[name] = module
        return module
    specification = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
    if specification is None or specification.loader is None:
        raise ImportError(f"{file} cannot be imported", name=name)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    return module


class _Copied:
    """A stream that keeps the end of what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.text = ""

    def write(self, text: str) -> int:
        self.text = (self.text + text)[-KEPT:]
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _kept_from_exiting(module: str) -> Iterator[None]:
    """Turn a module's exit while it is imported into an ImportError with what it printed.

    A script that parses its arguments on import does so; it finds none of ours.

    Raises:
        ImportError: the module called ``sys.exit``.
    """
    if module in sys.modules or module.partition(".")[0] == __name__.partition(".")[0]:
        yield
        return
    streams, words = (sys.stdout, sys.stderr), sys.argv
    copies = _Copied(sys.stdout), _Copied(sys.stderr)
    sys.stdout, sys.stderr = copies
    sys.argv = [module]
    try:
        yield
    except SystemExit as error:
        printed = " ".join(" ".join(copy.text for copy in copies).split())
        code = error.code if isinstance(error.code, str) else f"exit code {error.code}"
        told = f"{module} ends the process when it is imported ({code})"
        what = f"{told}, and printed: {printed}" if printed else told
        remedy = 'parse arguments below if __name__ == "__main__":'
        raise ImportError(f"{what}; {remedy}", name=module) from error
    finally:
        sys.stdout, sys.stderr = streams
        sys.argv = words
