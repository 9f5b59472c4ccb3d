"""Names to code, imported on demand; an unknown name lists the known ones."""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel

from harness import entry_points, plugin_checks, targets, user_path
from harness.errors import Interruption, InvalidInputError, Problem
from harness.spec import suggest
from harness.targets import is_target, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from harness.entry_points import EntryPoint, Fault
    from harness.interfaces import Optimizer, Strategy

__all__ = ["COLLECTORS", "OPTIMIZERS", "STRATEGIES", "WORKLOADS", "Registry", "is_target", "load", "strategy"]

FEW = 12
"""So many names are listed where none is near; of more, the word is given that lists them."""

YOURS = "yours: package.module:Class, or ./file.py:Class"

Model = TypeVar("Model", bound=BaseModel)


@contextlib.contextmanager
def output_kept() -> Iterator[None]:
    """Send what strangers' code prints on standard output to standard error: our own output is parsed."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # it is closed: nothing to keep
        yield
        return
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def guarded(look: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what strangers' code gives, or why it gives nothing, whatever it raises."""
    try:
        with output_kept():
            return look(), None
    except Interruption:
        raise
    except BaseException as error:  # noqa: BLE001  # sys.exit() in a module, say
        return None, plugin_checks.explain(error)


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

    def own(self) -> Mapping[str, str]:
        """Return our own names with their ``module:attribute``."""
        found: Mapping[str, str] = load(f"{self._package}:REGISTRY")
        return found

    def installed(self) -> list[EntryPoint]:
        """Return the entry points of installed packages that can be used; each is imported in another process."""
        return self._looked_at()[0]

    def faults(self) -> list[Fault]:
        """Return what is wrong with the others."""
        return self._looked_at()[1]

    def _looked_at(self) -> tuple[list[EntryPoint], list[Fault]]:
        declared = entry_points.find(self.plural, self.own())
        unusable = entry_points.unusable(tuple(declared.sound.values()), tuple(sys.path))
        broken = {each.name for each in unusable}
        usable = [point for name, point in declared.sound.items() if name not in broken]
        return usable, [*declared.faults, *unusable]

    def targets(self) -> dict[str, str]:
        """Return every name that can be used with its ``module:attribute``, ours first."""
        return {**self.own(), **{point.name: point.target for point in self.installed()}}

    def names(self) -> list[str]:
        """Return the registered names."""
        return list(self.targets())

    def is_own(self, name: str) -> bool:
        """Say whether a name is of optbench itself, not of an installed package or out of tree."""
        return name in load(f"{self._package}:REGISTRY")

    def remedy(self, name: str) -> str | None:
        """Return what to write instead of an unknown name; None: the name is fine."""
        names = self.names()
        if name in names:
            return None
        if targets.is_file(name):
            return _no_file(name)
        if is_target(name):
            return targets.taken(name, user_path.folder(), user_path.place())
        near = suggest(name, names) or ""
        few = near if len(names) <= FEW or near.startswith("did you mean") else ""
        told = f"{few}  ({YOURS}; all: optbench list {self.plural})".lstrip()
        return "; ".join([told, *self._why_not(name)])

    def _why_not(self, name: str) -> list[str]:
        """Return why an installed name cannot be used, or what is wrong with any: the name may be one of those."""
        faults = self.faults()
        return [str(each) for each in faults if each.name == name] or [str(each) for each in faults]

    def target(self, name: str) -> str:
        """Return ``module:attribute`` for a name, or for out-of-tree code the name itself.

        Raises:
            InvalidInputError: naming the near or known names.
        """
        found = self.own().get(name)
        if found is not None:
            return found  # whatever is installed
        remedy = self.remedy(name)
        if remedy is not None:
            raise InvalidInputError([Problem(self.kind, f"unknown name {name!r}", remedy)])
        return self.targets().get(name, name)

    def get(self, name: str) -> Any:
        """Import what a name stands for."""
        return load(self.target(name))


def _no_file(name: str) -> str | None:
    """Return what is wrong with a name of a file; None: the file is there and a class is named."""
    file = Path(name if name.endswith(targets.SUFFIX) else targets.split(name).module)
    if not file.is_file():
        return f"there is no file {file}"
    if is_target(name):
        return None
    known = targets.classes_in(file)
    return f"name a class of it: {name.removesuffix(':')}:{known[0] if known else 'Class'}" + (
        f"  (it has {', '.join(known)})" if len(known) > 1 else ""
    )


WORKLOADS = Registry("workload", "workloads", "workloads")
COLLECTORS = Registry("collector", "collectors", "harness.collectors")
STRATEGIES = Registry("strategy", "strategies", "harness.strategies")


def strategy(name: str) -> Strategy:
    """Return the strategy, constructed; one out of tree is imported, hence should import torch in ``start`` only.

    Raises:
        InvalidInputError: the name is unknown, or its class cannot be imported or constructed.
    """
    target = STRATEGIES.target(name)
    if target == STRATEGIES.own().get(name):
        found: Strategy = load(target)()
        return found
    loaded, reason = guarded(functools.partial(_constructed, target))
    if reason is not None:
        remedy = f"check module and class; {targets.NAME_IT}"
        raise InvalidInputError([Problem(f"strategy {name}", f"cannot be used: {reason}", remedy)])
    lacking = plugin_checks.strategy_problem(loaded)
    if lacking is not None:
        raise InvalidInputError([Problem(f"strategy {name}", lacking)])
    return cast("Strategy", loaded)


def _constructed(target: str) -> Any:
    return load(target)()


class OptimizerRegistry(Registry):
    """Optimizers come in families: ``REGISTRY`` maps a family to ``module:OPTIMIZERS``, a mapping by name.

    Family modules import torch only inside ``build``, so that names and traits are read without it.
    """

    def __init__(self, kind: str, plural: str, package: str) -> None:
        super().__init__(kind, plural, package)
        self._known: dict[Any, tuple[dict[str, Optimizer], list[Fault]]] = {}

    def faults(self) -> list[Fault]:
        """Return what is wrong with installed families, and with single names of theirs."""
        return [*super().faults(), *self._foreign()[1]]

    def own_names(self) -> list[str]:
        """Return the names of our own optimizers."""
        return list(self._own())

    def _own(self) -> dict[str, Optimizer]:
        found: dict[str, Optimizer] = {}
        for target in self.own().values():
            found.update(load(target))
        return found

    def _foreign(self) -> tuple[dict[str, Optimizer], list[Fault]]:
        """Return the optimizers of installed families by name, and what is wrong with the others."""
        key = (tuple(self.installed()), tuple(sys.path))
        if key not in self._known:
            self._known[key] = self._families(key[0])
        return self._known[key]

    def _families(self, points: Sequence[EntryPoint]) -> tuple[dict[str, Optimizer], list[Fault]]:
        own = self._own()
        found: dict[str, Optimizer] = {}
        faults: list[Fault] = []
        giver: dict[str, EntryPoint] = {}
        for point in points:
            family, reason = guarded(functools.partial(_mapping, point.target))
            if reason is not None:  # it could be imported when it was checked
                faults.append(entry_points.fault(point, f"cannot be imported: {reason}"))
                continue
            for name, optimizer in family.items():
                wrong = _wrong_optimizer(point, name, optimizer, own, giver)
                if wrong is None:
                    found[name], giver[name] = optimizer, point
                else:
                    faults.append(entry_points.fault(point, *wrong, name=str(name)))
        return found, faults

    def _all(self) -> dict[str, Optimizer]:
        return {**self._own(), **self._foreign()[0]}

    def remedy(self, name: str) -> str | None:
        """Return what to write instead of an unknown name."""
        if name in self._own():
            return None
        return super().remedy(name) or self._misspelt(name)

    def _misspelt(self, name: str) -> str | None:
        """Return the near names where a family has many of that prefix, ``pytorch_optimizer:``, but not this."""
        prefix = name.partition(":")[0] + ":"
        known = [each for each in self.names() if each.startswith(prefix)]
        return suggest(name, known) if known and name not in known else None

    def target(self, name: str) -> str:
        """Return the class that a name constructs, or for out-of-tree code the name itself."""
        own = self._own().get(name)
        return own.target if own is not None else super().target(name)

    def targets(self) -> dict[str, str]:
        """Return every name with the class that it constructs."""
        return {name: optimizer.target for name, optimizer in self._all().items()}

    def family_targets(self) -> dict[str, str]:
        """Return family -> ``module:OPTIMIZERS``, ours first."""
        return super().targets()

    def families(self) -> dict[str, str]:
        """Return family -> module."""
        return {name: target.partition(":")[0] for name, target in self.family_targets().items()}

    def get(self, name: str) -> Optimizer:
        """Return the registered optimizer, or wrap a class of the user's."""
        own = self._own().get(name)
        if own is not None:
            return own  # whatever is installed
        self.target(name)  # raises for an unknown name
        found = self._all().get(name)
        if found is not None:
            return found
        custom: Optimizer = load("harness.optimizers.custom:Custom")(name)
        return custom


def _mapping(target: str) -> dict[Any, Any]:
    return dict(load(target))


def _wrong_optimizer(
    point: EntryPoint, name: Any, optimizer: Any, own: Mapping[str, Any], giver: Mapping[str, EntryPoint]
) -> tuple[str, str] | None:
    """Return what is wrong with one optimizer of an installed family, and what to do; None: nothing."""
    told, reason = guarded(lambda: plugin_checks.optimizer_problem(point.name, name, optimizer))
    if told or reason:
        return told or f"cannot be used: {reason}", entry_points.REPORT_IT
    if name in own:
        return f"has {name}, a name of optbench's own, which is used", "the package should use another name"
    if name in giver:
        return f"has {name}, a name of {giver[name].package}, which is used", "uninstall one of the two packages"
    return None


OPTIMIZERS = OptimizerRegistry("optimizer", "optimizers", "harness.optimizers")

REGISTRIES = (WORKLOADS, OPTIMIZERS, STRATEGIES, COLLECTORS)


def faults() -> list[Fault]:
    """Return what is wrong with the entry points of installed packages, of every kind."""
    return [each for registry in REGISTRIES for each in registry.faults()]


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
    written = targets.class_definition(target)
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
    written = targets.class_definition(target)
    told = ast.get_docstring(written) if written is not None else None
    return told.partition("\n")[0] if told else None


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
