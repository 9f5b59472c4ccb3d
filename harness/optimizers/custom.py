"""A class of the user's, any torch.optim.Optimizer subclass: ``package.module:Class`` or ``file.py:Class``."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any

from harness.errors import InvalidInputError, OptbenchError, Problem, UnsupportedError
from harness.interfaces import OptimizerTraits
from harness.optimizers.construct import construct, torch_groups
from harness.registry import static_traits
from harness.targets import class_definition, load, split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from harness.interfaces import ParamGroup, WorkloadTraits
    from harness.machine import Machine
    from harness.spec import RunSpec


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

    @functools.cached_property
    def traits(self) -> OptimizerTraits:
        """What the class declares, else what its source tells."""
        declared = static_traits(self.target, OptimizerTraits)
        if declared is not None:
            return declared
        if "torch" in sys.modules:  # in a rank and in a probe; a plan must not import what imports torch
            return self._live_traits()
        return self._undeclared(closure=_source_needs_closure(self.target))

    def _undeclared(self, *, closure: bool) -> OptimizerTraits:
        return OptimizerTraits(
            algorithm=split(self.target).attribute.rpartition(".")[2],
            granularity="undeclared",
            sparse_gradients="undeclared",
            dtensor="undeclared",
            closure=closure,
            state_tensors=2,  # a guess for the memory estimate: as much as Adam
        )

    def _live_traits(self) -> OptimizerTraits:
        cls = self._load()
        declared = getattr(cls, "traits", None)
        if isinstance(declared, OptimizerTraits):
            return declared
        return self._undeclared(closure=_needs_closure(cls))

    def unsupported(self, spec: RunSpec, workload: WorkloadTraits, machine: Machine) -> str | None:
        """Return why the class cannot be imported or constructed, or None."""
        del workload
        found = machine.constructors.get(self.target)
        if found is None:
            return None
        if found.error is not None:
            absent = found.error.startswith("ModuleNotFoundError")
            remedy = "; start from the folder that holds the module, or install its package" if absent else ""
            return f"{self.target} cannot be used: {found.error}{remedy}"
        given = {*spec.optimizer_options, *([] if spec.lr is None else ["lr"])}
        missing = [name for name in found.required if name not in given]
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
        return {
            name: default
            for name, default in {**dict.fromkeys(found.required), **found.parameters}.items()
            if name != "lr"
        }

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Construct it.

        Raises:
            InvalidInputError: for what cannot be imported, or is no torch.optim.Optimizer.
            UnsupportedError: where its step needs more than a closure.
            OptbenchError: where the constructor raises; names class and arguments.
        """
        cls = self._load()
        unknown = [name for name in _required_by_step(cls) if "closure" not in name]
        if unknown:
            raise UnsupportedError(
                f"{self.target}.step needs {', '.join(unknown)}, which no training loop knows; "
                "give such arguments defaults, or set them in the constructor"
            )
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.optimizer_options.items()}
        known, takes_any = _keywords(cls)
        if spec.lr is not None and ("lr" in known or takes_any):
            arguments["lr"] = spec.lr
        try:
            return construct(cls, _groups(groups, arguments, known), **arguments)
        except Exception as error:
            written = ", ".join(["groups", *(f"{key}={value!r}" for key, value in arguments.items())])
            raise OptbenchError(
                f"{self.target}({written}) raised {type(error).__name__}: {error}; "
                "set arguments with --lr and --set optimizer.NAME=…"
            ) from error

    def deepspeed_config(self, spec: RunSpec) -> Mapping[str, JsonValue] | None:
        """Return None: the strategy builds it and passes it in as a client optimizer."""
        del spec
        return None

    def disproved(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Return None: it claims nothing."""
        del optimizer
        return None

    def takes(self, option: str) -> bool:
        """Say whether the constructor has such a keyword, or takes any."""
        known, takes_any = _keywords(self._load())
        return takes_any or option in known

    def _load(self) -> type[torch.optim.Optimizer]:
        import torch

        where = f"optimizer {self.target}"
        try:
            found = load(self.target)
        except Exception as error:
            remedy = "check module and class; start from the folder that holds the module, or install its package"
            what = f"cannot be imported: {type(error).__name__}: {error}"
            raise InvalidInputError([Problem(where, what, remedy)]) from error
        if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
            what = f"is no torch.optim.Optimizer subclass but {found!r}"
            raise InvalidInputError([Problem(where, what, "name a class that derives from torch.optim.Optimizer")])
        return found


def _groups(
    groups: Sequence[ParamGroup], arguments: Mapping[str, Any], known: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return torch's groups; rate and decay stand in them only where the class knows such words."""
    lr = arguments.get("lr", known.get("lr"))
    decay = arguments.get("weight_decay", known.get("weight_decay"))
    listed = torch_groups(groups, _number(lr, 1.0), None if "weight_decay" not in known else _number(decay, 0.0))
    return [
        {key: value for key, value in group.items() if key != "lr" or isinstance(lr, (int, float))}
        for group in listed
    ]


def _number(value: object, otherwise: float) -> float:
    return float(value) if isinstance(value, (int, float)) else otherwise


def _keywords(cls: type) -> tuple[dict[str, Any], bool]:
    """Return the constructor's keywords with their defaults (None without one), and whether it takes any other."""
    try:
        parameters = list(inspect.signature(cls).parameters.values())[1:]
    except (TypeError, ValueError):
        return {}, True
    named = {p.name: None if p.default is p.empty else p.default for p in parameters if p.kind != p.VAR_KEYWORD}
    return named, any(p.kind == p.VAR_KEYWORD for p in parameters)


def _needs_closure(cls: type[torch.optim.Optimizer]) -> bool:
    """Say whether ``step`` has a required argument."""
    return bool(_required_by_step(cls))


def _required_by_step(cls: type[torch.optim.Optimizer]) -> list[str]:
    """Return the names of ``step``'s arguments that have no default."""
    try:
        parameters = list(inspect.signature(cls.step).parameters.values())[1:]
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]


def _source_needs_closure(target: str) -> bool:
    """Answer the same from the source, where it lies in the module itself; importing could import torch."""
    written = class_definition(target)
    for step in () if written is None else written.body:
        if isinstance(step, ast.FunctionDef) and step.name == "step":
            arguments = [*step.args.posonlyargs, *step.args.args]
            return len(arguments) - len(step.args.defaults) > 1
    return False
