"""Names to code, imported on demand; an unknown name lists the known ones."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from harness.errors import InvalidInputError, Problem
from harness.spec import suggest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.interfaces import Optimizer, Strategy

FEW = 12
"""So many names are listed where none is near; of more, the word is given that lists them."""

Model = TypeVar("Model", bound=BaseModel)


def is_target(name: str) -> bool:
    """Say whether ``name`` is written as out-of-tree code: ``package.module:Class``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])


def load(target: str) -> Any:
    """Import ``module:attribute``.

    Raises:
        ImportError, AttributeError: as importing raised it.
    """
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


@functools.cache
def _installed(group: str, path: tuple[str, ...]) -> Mapping[str, str]:
    """Return the entry points of a group; reading every installed package's takes milliseconds, hence once."""
    del path  # where packages are looked for: a key of the cache only
    return {point.name: point.value for point in importlib.metadata.entry_points(group=group)}


class Registry:
    """Names of one kind of plug-in: our own, then those of installed entry points.

    Args:
        kind: ``workload``, ``collector`` …
        plural: the word of ``optbench list``; installed packages add names with the entry-point group
            ``optbench.<plural>``.
        package: whose ``REGISTRY`` maps name to ``module:attribute``.
    """

    def __init__(self, kind: str, plural: str, package: str) -> None:
        self.kind = kind
        self.plural = plural
        self._package = package

    def targets(self) -> dict[str, str]:
        """Return every name with its ``module:attribute``, ours first."""
        own: Mapping[str, str] = load(f"{self._package}:REGISTRY")
        return {**_installed(f"optbench.{self.plural}", tuple(sys.path)), **own}

    def names(self) -> list[str]:
        """Return the registered names."""
        return list(self.targets())

    def remedy(self, name: str) -> str | None:
        """Return what to write instead of an unknown name; None: the name is fine."""
        names = self.names()
        if name in names or is_target(name):
            return None
        near = suggest(name, names) or ""
        few = near if len(names) <= FEW or near.startswith("did you mean") else ""
        return f"{few}  (yours: package.module:Class; all: optbench list {self.plural})".lstrip()

    def target(self, name: str) -> str:
        """Return ``module:attribute`` for a name, or for out-of-tree code the name itself.

        Raises:
            InvalidInputError: naming the near or known names.
        """
        remedy = self.remedy(name)
        if remedy is not None:
            raise InvalidInputError([Problem(self.kind, f"unknown name {name!r}", remedy)])
        return self.targets().get(name, name)

    def get(self, name: str) -> Any:
        """Import what a name stands for."""
        return load(self.target(name))


WORKLOADS = Registry("workload", "workloads", "workloads")
COLLECTORS = Registry("collector", "collectors", "harness.collectors")
REPORTS = Registry("report", "reports", "harness.reports")
STRATEGIES = Registry("strategy", "strategies", "harness.strategies")


def strategy(name: str) -> Strategy:
    """Return the strategy, constructed; one out of tree is imported, hence should import torch in ``start`` only.

    Raises:
        InvalidInputError: the name is unknown, or its class cannot be imported or constructed.
    """
    try:
        found: Strategy = STRATEGIES.get(name)()
    except InvalidInputError:
        raise
    except Exception as error:
        what = f"cannot be used: {type(error).__name__}: {error}"
        remedy = "check module and class; start from the folder that holds the module, or install its package"
        raise InvalidInputError([Problem(f"strategy {name}", what, remedy)]) from error
    lacking = [each for each in ("options", "one_rank", "unsupported", "start") if not hasattr(found, each)]
    if lacking:
        what = f"lacks {', '.join(lacking)}: it is no strategy"
        raise InvalidInputError([Problem(f"strategy {name}", what, "see Strategy in harness/interfaces.py")])
    return found


class OptimizerRegistry(Registry):
    """Optimizers come in families: ``REGISTRY`` maps a family to ``module:OPTIMIZERS``, a mapping by name.

    Family modules import torch only inside ``build``, so that names and traits are read without it.
    """

    def __init__(self, kind: str, plural: str, package: str) -> None:
        super().__init__(kind, plural, package)
        self._broken: dict[str, str] = {}

    def _all(self) -> dict[str, Optimizer]:
        return {
            name: optimizer
            for family, target in super().targets().items()
            for name, optimizer in self._family(family, target).items()
        }

    def _family(self, family: str, target: str) -> Mapping[str, Optimizer]:
        """Return a family's optimizers; none where an installed package's cannot be imported (see `remedy`)."""
        try:
            found: Mapping[str, Optimizer] = load(target)
        except Exception as error:
            own: Mapping[str, str] = load(f"{self._package}:REGISTRY")
            if family in own:
                raise
            self._broken[family] = f"{target} cannot be imported: {type(error).__name__}: {error}"
            return {}
        return found

    def remedy(self, name: str) -> str | None:
        """Return what to write instead of an unknown name, and which installed families are broken."""
        told = super().remedy(name) or self._misspelt(name)
        if told is None or not self._broken:
            return told
        return f"{told}; broken entry points: " + "; ".join(f"{k}: {v}" for k, v in self._broken.items())

    def _misspelt(self, name: str) -> str | None:
        """Return the near names where a family has many of that prefix, ``pytorch_optimizer:``, but not this."""
        prefix = name.partition(":")[0] + ":"
        known = [each for each in self.names() if each.startswith(prefix)]
        return suggest(name, known) if known and name not in known else None

    def targets(self) -> dict[str, str]:
        """Return every name with the class that it constructs."""
        return {name: optimizer.target for name, optimizer in self._all().items()}

    def families(self) -> dict[str, str]:
        """Return family -> module."""
        return {name: target.partition(":")[0] for name, target in super().targets().items()}

    def get(self, name: str) -> Optimizer:
        """Return the registered optimizer, or wrap a class of the user's."""
        self.target(name)  # raises for an unknown name
        found = self._all().get(name)
        if found is not None:
            return found
        custom: Optimizer = load("harness.optimizers.custom:Custom")(name)
        return custom


OPTIMIZERS = OptimizerRegistry("optimizer", "optimizers", "harness.optimizers")


def static_traits(target: str, model: type[Model], inner: Sequence[type[BaseModel]] = ()) -> Model | None:
    """Read ``traits = Model(…)`` of a class from its source, importing neither module nor torch.

    Args:
        target: ``module:Class``.
        model: the traits' type.
        inner: types whose calls may stand among the arguments.

    Returns:
        The traits; None where they are not written as literals or the source cannot be found or parsed.
    """
    types: list[type[BaseModel]] = [model, *inner]
    known = {each.__name__: each for each in types}
    written = _class(target)
    for statement in written.body if written is not None else ():
        value = _assigned(statement, "traits")
        if value is not None:
            try:
                traits = _literal(value, known)
            except ValueError:
                return None
            return traits if isinstance(traits, model) else None
    return None


def summary(target: str) -> str | None:
    """Return the first line of a class's docstring, from its source as `static_traits` does; None: it has none."""
    written = _class(target)
    told = ast.get_docstring(written) if written is not None else None
    return told.partition("\n")[0] if told else None


def _class(target: str) -> ast.ClassDef | None:
    """Find ``module:Class`` in its source; None: it is not there, or cannot be found or parsed."""
    module, _, name = target.partition(":")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if found is None or not found.origin or not found.origin.endswith(".py"):
        return None
    try:
        source = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None  # importing it tells the user what is wrong
    classes = (node for node in source.body if isinstance(node, ast.ClassDef) and node.name == name)
    return next(classes, None)


def _assigned(statement: ast.stmt, name: str) -> ast.expr | None:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return statement.value if statement.target.id == name else None
    if isinstance(statement, ast.Assign) and any(
        isinstance(t, ast.Name) and t.id == name for t in statement.targets
    ):
        return statement.value
    return None


def _literal(node: ast.expr, known: Mapping[str, type[BaseModel]]) -> Any:
    """Evaluate literals, and calls of the known types with keyword arguments."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known and not node.args:
        arguments = {word.arg: _literal(word.value, known) for word in node.keywords if word.arg is not None}
        return known[node.func.id](**arguments)
    if isinstance(node, ast.Dict):
        keys = [_literal(key, known) for key in node.keys if key is not None]
        return dict(zip(keys, (_literal(value, known) for value in node.values), strict=True))
    return ast.literal_eval(node)
