"""A class of the user's, any torch.optim.Optimizer subclass: ``package.module:Class`` or ``file.py:Class``."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any

from harness.errors import InvalidInputError, OptbenchError, Problem, UnsupportedError
from harness.hyperparameters import held
from harness.interfaces import OptimizerTraits, ParamGroup
from harness.optimizers.arrangement import (
    HANDED,
    OPTION,
    arranged,
    flagged,
    form,
    handed,
    is_matrix,
    own_options,
    rest,
    split,
    with_rest,
)
from harness.optimizers.construct import called
from harness.registry import static_traits
from harness.seeding import generators_kept
from harness.stepping import CLOSURE, LOSS, required, step_parameters
from harness.targets import INSTALL_IT, NAME_IT, Target, class_definition, load
from harness.targets import split as split_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from harness.interfaces import WorkloadTraits
    from harness.machine import Constructor, Machine
    from harness.spec import RunSpec

    Maker = Callable[..., torch.optim.Optimizer]
    """A class, or a function that returns an instance of one."""


class Custom:
    """Constructs the class over parameter groups, with lr and the options that its signature takes.

    What it may assume of an update is unknown: its granularity is ``undeclared`` unless the class has an attribute
    ``traits = OptimizerTraits(…)``, written as literals or, where it is imported anyway, in any way.

    Args:
        target: ``package.module:Class``, or ``file.py:Class``.
    """

    def __init__(self, target: str) -> None:
        self.name = target
        self.target = target
        self._refused_others = False
        """Its constructor has raised over all parameters, and has taken the matrices."""

    @property
    def traits(self) -> OptimizerTraits:
        """What the class declares, else what its source tells; beside another optimizer, what both can read."""
        beside = self._own_traits.matrices_only or self._refused_others
        return with_rest(self._own_traits) if beside else self._own_traits

    @functools.cached_property
    def _own_traits(self) -> OptimizerTraits:
        declared = static_traits(self.target, OptimizerTraits)
        live = "torch" in sys.modules  # in a rank and in a probe; a plan must not import what imports torch
        if live and declared is None:
            attribute = getattr(self._load(), "traits", None)
            declared = attribute if isinstance(attribute, OptimizerTraits) else None
        needed = _needed_by_step(self._load()) if live else _needed_in_source(self.target)
        shown = {word: True for word in (CLOSURE, LOSS) if any(word in each for each in needed)}
        traits = (declared or self._undeclared()).model_copy(update=shown)
        return traits.model_copy(update={"takes": form(self._load())}) if live and traits.takes is None else traits

    def _undeclared(self) -> OptimizerTraits:
        return OptimizerTraits(
            algorithm=split_target(self.target).attribute.rpartition(".")[2],
            granularity="undeclared",
            sparse_gradients="undeclared",
            dtensor="undeclared",
            state_tensors=2,  # a guess for the memory estimate: as much as Adam
        )

    def unsupported(self, spec: RunSpec, workload: WorkloadTraits, machine: Machine) -> str | None:
        """Return why the class cannot be imported or constructed, or None."""
        found = machine.constructors.get(self.target)
        return (None if found is None else self._unfit(spec, found)) or self._unarranged(spec, workload, machine)

    def _unarranged(self, spec: RunSpec, workload: WorkloadTraits, machine: Machine) -> str | None:
        try:
            traits = arranged(self.traits, spec)
        except InvalidInputError:  # what cannot be imported is told by the probe, and where it is built
            return None
        except ValueError as error:
            return str(error)
        return _unfit_rest(traits, spec, workload, machine) if traits.matrices_only else None

    def _unfit(self, spec: RunSpec, found: Constructor) -> str | None:
        if found.error is not None:
            absent = found.error.startswith("ModuleNotFoundError")
            remedy = f"; {NAME_IT if split_target(self.target).file is None else INSTALL_IT}" if absent else ""
            return f"{self.target} cannot be used: {found.error}{remedy}"
        given = {*spec.optimizer_options, *([] if spec.lr is None else ["lr"])}
        missing = [name for name in found.required if name not in {*given, *HANDED}]
        if missing:
            words = " ".join("--lr …" if name == "lr" else f"--set optimizer.{name}=…" for name in missing)
            return f"the constructor of {self.target} needs {', '.join(missing)}; add {words}"
        if spec.lr is not None and not found.open_ended and "lr" not in {*found.required, *found.parameters}:
            takes = ", ".join([*found.required, *found.parameters]) or "none"
            return (
                f"the constructor of {self.target} takes no lr (it takes: {takes}); "
                "leave --lr out, and use --set optimizer.NAME=… for what it calls its learning rate"
            )
        return None

    def options(self, machine: Machine) -> Mapping[str, JsonValue] | None:
        """Return the constructor's keywords beside lr, with defaults; None: it takes any, or was not probed."""
        found = machine.constructors.get(self.target)
        if found is None or found.open_ended:
            return None
        named = {**dict.fromkeys(found.required), **found.parameters, OPTION: None}
        return {name: default for name, default in named.items() if name != "lr"}

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Construct it.

        Raises:
            InvalidInputError: for what cannot be imported, or is no torch.optim.Optimizer.
            UnsupportedError: it takes matrices only, and the model has none.
            OptbenchError: where the constructor raises; names class and arguments.
        """
        cls = self._load()
        try:
            traits = arranged(self.traits, spec)
        except ValueError as error:
            raise InvalidInputError([Problem(f"optimizer {self.target}", str(error))]) from error
        arguments = own_options(spec)
        known, takes_any = _keywords(cls)
        if spec.lr is not None and ("lr" in known or takes_any):
            arguments["lr"] = spec.lr
        if traits.matrices_only or (traits.matrices_only is None and self._refused_others):
            return self._beside_rest(cls, groups, arguments, traits, spec)
        try:
            return _made(cls, groups, arguments, traits)
        except Exception as error:
            if traits.matrices_only is None and _has_both(groups):
                with contextlib.suppress(Exception):  # not for matrices either: the first error is the one to tell
                    found = self._beside_rest(cls, groups, arguments, traits, spec)
                    self._refused_others = True
                    return found
            raise self._unconstructed(error, groups, arguments, traits) from error

    def _beside_rest(
        self,
        cls: Maker,
        groups: Sequence[ParamGroup],
        arguments: Mapping[str, Any],
        traits: OptimizerTraits,
        spec: RunSpec,
    ) -> torch.optim.Optimizer:
        """Construct it over the matrices, and another optimizer over the rest."""
        from harness.optimizers.composite import Composite

        matrices, others = split(groups, is_matrix)
        if not matrices and all(group.parameters for group in groups):  # an empty group's are on another rank
            raise UnsupportedError(f"the model has no 2-D weight inside it for {self.target}; use {traits.rest}")
        if traits.closure or traits.loss:
            raise UnsupportedError(
                f"{self.target} takes matrices only and evaluates the loss in its step, of which {traits.rest} "
                "beside it would not know; leave matrices_only or closure out"
            )
        parts = []
        if matrices:
            try:
                parts.append(_made(cls, matrices, arguments, traits))
            except Exception as error:
                raise self._unconstructed(error, matrices, arguments, traits) from error
        if others:
            entry, its_own = rest(traits, spec)
            parts.append(entry.build(others, its_own))
        return Composite(parts)

    def _unconstructed(
        self,
        error: Exception,
        groups: Sequence[ParamGroup],
        arguments: Mapping[str, Any],
        traits: OptimizerTraits,
    ) -> OptbenchError:
        """Return what is to be told of a constructor that raised."""
        handed_over = traits.takes or "groups"
        written = ", ".join([handed_over, *(f"{key}={value!r}" for key, value in arguments.items())])
        remedy = "set arguments with --lr and --set optimizer.NAME=…"
        if handed_over == "model":
            remedy += "; its model is a module that holds the parameters under their names, and nothing else"
        elif traits.matrices_only is None and not _has_both(groups):
            remedy += f"; if it takes matrices only, --set optimizer.{OPTION}.matrices_only=true"
        elif not traits.group_flags:
            remedy += (
                f"; if it wants flags in its groups, --set optimizer.{OPTION}.group_flags.NAME=matrix "
                "(or group_flags in its traits)"
            )
        return OptbenchError(f"{self.target}({written}) raised {type(error).__name__}: {error}; {remedy}")

    def deepspeed_config(self, spec: RunSpec) -> Mapping[str, JsonValue] | None:
        """Return None: the strategy builds it and passes it in as a client optimizer."""
        del spec
        return None

    def disproved(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Return None: it claims nothing."""
        del optimizer
        return None

    def takes(self, option: str) -> bool:
        """Say whether the constructor has such a keyword, or passes it on: then it shows in an instance."""
        made_by = self._load()
        known, takes_any = _keywords(made_by)
        if option in known or not takes_any:
            return option in known
        usual = _shown(made_by, self.traits, {}).get(option)
        other = not usual if isinstance(usual, bool) else 0.125
        return option == "lr" or (
            usual is not None and _shown(made_by, self.traits, {option: other}).get(option) == other
        )

    def settings(self, spec: RunSpec) -> Mapping[str, Any]:
        """Return the hyperparameters of an instance, as it holds them; none where none can be made."""
        import torch

        weight = torch.zeros(2, 2, requires_grad=True)
        with contextlib.suppress(Exception), generators_kept():  # building the real one tells why
            return held(self.build([ParamGroup(("weight",), (weight,), "matrix")], spec))
        return {}

    def _load(self) -> Maker:
        """Return the class, or the function that makes an instance of one."""
        import torch

        where = f"optimizer {self.target}"
        try:
            found = load(self.target)
        except Exception as error:
            remedy = f"check module and class; {NAME_IT}"
            what = f"cannot be imported: {type(error).__name__}: {error}"
            raise InvalidInputError([Problem(where, what, remedy)]) from error
        is_class = isinstance(found, type)
        if (is_class and not issubclass(found, torch.optim.Optimizer)) or not callable(found):
            what = f"is no torch.optim.Optimizer subclass but {found!r}"
            remedy = (
                "name a class that derives from torch.optim.Optimizer, or a function that returns an optimizer"
            )
            raise InvalidInputError([Problem(where, what, remedy)])
        made_by: Maker = found
        return made_by


def _made(
    cls: Maker,
    groups: Sequence[ParamGroup],
    arguments: Mapping[str, Any],
    traits: OptimizerTraits,
) -> torch.optim.Optimizer:
    """Construct the class; rate and decay stand in its groups only where it knows such words.

    What the signature does not show (options that it passes on, or that another object holds) is seen in the
    groups of an instance over a tensor of its own.
    """
    known, _ = _keywords(cls)
    asked = {**known, **{name: value for name, value in arguments.items() if name in known}}
    if not {"lr", "weight_decay"} <= known.keys():
        asked = {**_shown(cls, traits, arguments, groups), **asked}
    lr, decay = asked.get("lr"), asked.get("weight_decay")
    listed = flagged(groups, traits.group_flags, lr, decay)
    positional, named = handed(cls, traits.takes, groups, listed)
    return called(cls, positional, {**named, **arguments})


def _shown(
    cls: Maker,
    traits: OptimizerTraits,
    arguments: Mapping[str, Any],
    groups: Sequence[ParamGroup] = (),
) -> dict[str, Any]:
    """Return the settings in the group of an instance over one small matrix; none where it can't be made.

    Args:
        cls: the class.
        traits: of it.
        arguments: of the constructor.
        groups: of the model; the matrix is of their device and dtype.
    """
    import torch

    if (traits.takes or form(cls)) != "groups":  # then there are no groups whose settings could differ
        return {}
    real = next((tensor for group in groups for tensor in group.parameters), None)
    weight = torch.zeros(2, 2)
    weight = (weight if real is None else weight.to(real.device, real.dtype)).requires_grad_()
    matrix = ParamGroup(("weight",), (weight,), "matrix")
    listed = flagged([matrix], traits.group_flags, None, None)
    positional, named = handed(cls, traits.takes, [matrix], listed)
    with contextlib.suppress(Exception), generators_kept():  # constructing the real one tells why
        return dict(called(cls, positional, {**named, **arguments}).param_groups[0])
    return {}


def _has_both(groups: Sequence[ParamGroup]) -> bool:
    """Say whether there are matrices and others."""
    return all(split(groups, is_matrix))


def _unfit_rest(traits: OptimizerTraits, spec: RunSpec, workload: WorkloadTraits, machine: Machine) -> str | None:
    """Return why the optimizer of the rest cannot run beside it."""
    try:
        entry, its_own = rest(traits, spec)
    except InvalidInputError as error:
        return f"optimizer.{OPTION}.rest: {error}"
    if entry.traits.closure or entry.traits.compiled or entry.traits.owns_reduction:
        return f"optimizer.{OPTION}.rest = {traits.rest!r} cannot step beside another; use adamw/fused"
    return entry.unsupported(its_own, workload, machine)


def _keywords(cls: Maker) -> tuple[dict[str, Any], bool]:
    """Return the constructor's keywords with their defaults (None without one), and whether it takes any other."""
    try:
        parameters = list(inspect.signature(cls).parameters.values())[1:]
    except (TypeError, ValueError):
        return {}, True
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    named = {p.name: None if p.default is p.empty else p.default for p in parameters if p.kind not in variadic}
    return named, any(p.kind == p.VAR_KEYWORD for p in parameters)


def _needed_by_step(cls: Maker) -> list[str]:
    """Return the names of ``step``'s arguments that have no default; of a function none is known."""
    step = getattr(cls, "step", None) if isinstance(cls, type) else None
    return [] if step is None else required(step_parameters(step))[1:]


def _needed_in_source(target: str) -> list[str]:
    """Answer the same from the source, where it lies in the module itself; importing could import torch."""
    named = split_target(target)
    step = _inherited_step(named, named.attribute, set())
    return [] if step is None else _without_default(step.args)[1:]


def _inherited_step(named: Target, name: str, seen: set[str]) -> ast.FunctionDef | None:
    """Return ``step`` of a class or of the nearest base in the same module."""
    written = None if name in seen else class_definition(f"{named.module}:{name}")
    if written is None:
        return None
    seen.add(name)
    own = (each for each in written.body if isinstance(each, ast.FunctionDef) and each.name == "step")
    bases = (each.id for each in written.bases if isinstance(each, ast.Name))
    return next(own, None) or next(filter(None, (_inherited_step(named, each, seen) for each in bases)), None)


def _without_default(arguments: ast.arguments) -> list[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [
        *(each.arg for each in positional[: len(positional) - len(arguments.defaults)]),
        *(each.arg for each, default in named if default is None),
    ]
