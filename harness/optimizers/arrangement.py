"""How parameters reach a class of the user's: which of them, with what in their groups, in what form."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from harness.interfaces import OptimizerTraits
from harness.optimizers.construct import torch_groups
from harness.rates import number
from harness.registry import OPTIMIZERS
from harness.spec import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from harness.interfaces import Optimizer, ParamGroup, Role
    from harness.spec import RunSpec

    Form = Literal["groups", "named_parameters", "model"]

OPTION = "groups"
"""Table of `RunSpec.optimizer_options` that holds the traits of `KEYS`: ``--set optimizer.groups.rest=…``."""

KEYS = ("matrices_only", "rest", "rest_options", "group_flags", "takes")

_FORMS: Mapping[str, Form] = {
    **dict.fromkeys(("named_parameters", "named_params"), "named_parameters"),
    **dict.fromkeys(("model", "module", "net", "network"), "model"),
}
"""Name of a constructor's parameter -> what it is given."""

HANDED = frozenset(_FORMS)
"""Names of a constructor's parameters that a run fills."""


def arranged(traits: OptimizerTraits, spec: RunSpec) -> OptimizerTraits:
    """Return the traits with what the run sets of them.

    Raises:
        ValueError: a key is unknown or its value is of another kind; the message is for the user.
    """
    asked = spec.optimizer_options.get(OPTION, {})
    if not isinstance(asked, dict):
        raise ValueError(f"optimizer.{OPTION} = {asked!r} is no table; set one of {_keys()}")  # noqa: TRY004
    for key in asked:
        if key not in KEYS:
            raise ValueError(f"optimizer.{OPTION}.{key} is unknown; {suggest(key, KEYS) or _keys()}")
    try:
        return OptimizerTraits.model_validate({**traits.model_dump(), **asked})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"optimizer.{OPTION}.{place}: {first['msg']}, found {first['input']!r}") from error


def _keys() -> str:
    return ", ".join(f"optimizer.{OPTION}.{key}" for key in KEYS)


def own_options(spec: RunSpec) -> dict[str, Any]:
    """Return the options that are for the constructor; JSON's lists become tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in spec.optimizer_options.items()
        if name != OPTION
    }


def rest(traits: OptimizerTraits, spec: RunSpec) -> tuple[Optimizer, RunSpec]:
    """Return the optimizer of what is no matrix, and its spec.

    Its rate is ``rest_options["lr"]``, else the run's ``--lr``, as for the AdamW beside ``muon/…``, else its own.

    Raises:
        InvalidInputError: the name is unknown.
    """
    options = dict(traits.rest_options)
    lr = options.pop("lr", spec.lr)
    changed = {"optimizer": traits.rest, "optimizer_options": options, "lr": lr}
    return OPTIMIZERS.get(traits.rest), spec.model_copy(update=changed)


STRIDES: tuple[Literal["contiguous", "alike", "any"], ...] = ("contiguous", "alike", "any")
"""Of `OptimizerTraits.strides`, the strictest first."""


def with_rest(traits: OptimizerTraits) -> OptimizerTraits:
    """Return the traits of a class and the optimizer of its rest together: the stricter of what each can read."""
    if traits.rest not in OPTIMIZERS.names():  # which is told where it is built
        return traits
    both = (traits.strides, OPTIMIZERS.get(traits.rest).traits.strides)
    return traits.model_copy(update={"strides": min(both, key=STRIDES.index)})


def flagged(
    groups: Sequence[ParamGroup], flags: Mapping[str, Role], lr: object, weight_decay: object
) -> list[dict[str, Any]]:
    """Return torch's groups, in each of which every flag says whether its tensors are of the flag's role.

    The rate is that of the flagged ones: published classes have another default for the rest.

    Args:
        groups: of the model.
        flags: key of the groups -> role; ``matrix`` means 2-D here, as for ``matrices_only``.
        lr: as for `torch_groups`.
        weight_decay: as for `torch_groups`.
    """
    parts: list[tuple[list[ParamGroup], dict[str, bool]]] = [(list(groups), {})]
    for name, role in flags.items():
        parts = [
            (side, {**said, name: answer})
            for members, said in parts
            for side, answer in zip(split(members, _of(role)), (True, False), strict=True)
            if side
        ]
    return [
        {**(_own_defaults(group) if said and not any(said.values()) else group), **said}
        for side, said in parts
        for group in torch_groups(side, lr, weight_decay)
    ]


def _own_defaults(group: dict[str, Any]) -> dict[str, Any]:
    """Leave rate and decay of unflagged tensors to the class, which has others for them; no decay stays none."""
    stays = {"params"} if number(group.get("weight_decay")) else {"params", "weight_decay"}
    return {name: value for name, value in group.items() if name in stays}


def is_matrix(group: ParamGroup, tensor: Tensor) -> bool:
    """Say whether a tensor is a 2-D weight inside the model, no embedding and no head."""
    return group.role == "matrix" and tensor.ndim == 2


def _of(role: Role) -> Callable[[ParamGroup, Tensor], bool]:
    return is_matrix if role == "matrix" else lambda group, _: group.role == role


def split(
    groups: Sequence[ParamGroup], wanted: Callable[[ParamGroup, Tensor], bool]
) -> tuple[list[ParamGroup], list[ParamGroup]]:
    """Part every group's parameters by a question; empty groups are left out."""
    sides: tuple[list[ParamGroup], list[ParamGroup]] = ([], [])
    for group in groups:
        for side, answer in zip(sides, (True, False), strict=True):
            picked = [
                (name, tensor)
                for name, tensor in zip(group.names, group.parameters, strict=True)
                if wanted(group, tensor) is answer
            ]
            if picked:
                names, tensors = zip(*picked, strict=True)
                side.append(replace(group, names=names, parameters=tensors))
    return sides


def form(cls: Callable[..., Any]) -> Form:
    """Return what a constructor takes first, by that parameter's name."""
    first = next(iter(_parameters(cls)), None)
    return "groups" if first is None else _FORMS.get(first.name, "groups")


def _handed(cls: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    for place, each in enumerate(_parameters(cls)):
        if each.name in _FORMS and (place == 0 or each.default is each.empty):
            yield each


def _parameters(cls: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):  # a class written in C tells no signature
        return []


def handed(
    cls: Callable[..., Any], takes: Form | None, groups: Sequence[ParamGroup], listed: list[dict[str, Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that hand the parameters over: the first one's, and of any other that asks for them.

    Args:
        cls: the class.
        takes: what its first parameter is given; None: as its name says.
        groups: of the model.
        listed: the same as torch's groups.
    """
    parameters = _parameters(cls)
    named = {each.name: _made(_FORMS[each.name], groups, listed) for each in _handed(cls)}
    first = parameters[0] if parameters else None
    own = _made(takes or form(cls), groups, listed)
    if first is not None and first.kind is first.KEYWORD_ONLY:
        return (), {**named, first.name: own}
    return (own,), {name: value for name, value in named.items() if first is None or name != first.name}


def _made(kind: Form, groups: Sequence[ParamGroup], listed: list[dict[str, Any]]) -> Any:
    pairs = [pair for group in groups for pair in zip(group.names, group.parameters, strict=True)]
    if kind == "named_parameters":
        return pairs
    return stand_in(pairs) if kind == "model" else [dict(each) for each in listed]


def stand_in(named: Sequence[tuple[str, torch.Tensor]]) -> nn.Module:
    """Return a module that holds these parameters under their names, and nothing else.

    A proof has tensors and no model, and the rank of a run may hold shards: both hand over the same.
    """
    from torch import nn

    root = nn.Module()
    for name, tensor in named:
        *path, last = name.split(".")
        module = root
        for part in path:
            module = module._modules.setdefault(part, nn.Module()) or module  # noqa: SLF001
        module._parameters[last] = tensor  # type: ignore[assignment]  # noqa: SLF001  # leaves that are no nn.Parameter, too
    return root
