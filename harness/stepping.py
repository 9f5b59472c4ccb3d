"""The driver of a step: the one place that calls ``step`` of an optimizer under test.

Runs, proofs, trials, counts, comparisons and the pytest plug-in all step through it, so that an optimizer meets
the same in each of them:

- Without a closure (`OptimizerTraits.closure` is off) every parameter holds the gradient of the step's batch.
- ``step(closure)`` finds no gradients on entry. That is torch's convention: the closure clears gradients, computes
  the loss and its gradients, and returns the loss; what was there before is not to be relied on.
- An optimizer that declares ``gradients_on_entry`` finds those of the step's batch, as after ``loss.backward()``:
  the closure has been evaluated once. Sharpness-aware minimisation is published in this form.
- One that declares ``loss`` gets the batch's loss, the mean over all ranks, as the argument ``loss``.

Arguments go the way that the signature takes them, by position or by keyword.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from harness.errors import OptbenchError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from harness.interfaces import OptimizerTraits

    Arguments = tuple[tuple[Any, ...], dict[str, Any]]
    """Positional and keyword arguments."""

CLOSURE, LOSS = "closure", "loss"
"""The arguments of ``step`` that a training loop knows."""

_VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


class Driver:
    """Steps one optimizer.

    Args:
        optimizer: to step; its ``step`` may be an attribute of the instance.
        name: as users write it, for messages.
        traits: what the optimizer declares.

    Raises:
        UnsupportedError: the signature of ``step`` demands what no training loop gives, or what the traits do not
            declare, or does not take what they declare.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, name: str, traits: OptimizerTraits) -> None:
        self._optimizer, self._name, self._traits = optimizer, name, traits
        self._parameters = step_parameters(optimizer.step)
        self._tried = False
        self.arguments(None, lambda: None)  # a call that cannot be made is told before the first step

    def step(self, loss: Tensor | None = None) -> None:
        """Step on the gradients that the parameters hold.

        Args:
            loss: of the batch, shape (); for an optimizer that declares ``loss``.

        Raises:
            UnsupportedError: it declares ``loss``, and there is none.
        """
        if self._traits.loss and loss is None:
            raise UnsupportedError(
                f"{self._name}.step takes the loss, and the workload has none; use another workload"
            )
        self._call(*self.arguments(loss))

    def evaluate(self, closure: Callable[[], Tensor]) -> None:
        """Step with a closure.

        Args:
            closure: clears gradients, computes the loss and its gradients, and returns the loss, shape ().

        Raises:
            UnsupportedError: the first step never called it, and found no gradients either.
        """
        evaluations = 0

        def counted() -> Tensor:
            nonlocal evaluations
            evaluations += 1
            return closure()

        forget_gradients(self._optimizer)
        loss = closure() if self._traits.gradients_on_entry else None
        first = not self._tried
        self._call(*self.arguments(loss, counted))
        if first and not evaluations and loss is None:
            raise UnsupportedError(
                f"{self._name}.step never calls its closure, without which there are no gradients; declare "
                "gradients_on_entry=True in its traits if it uses those of a backward pass before it, "
                "or leave closure=True out"
            )

    def arguments(self, loss: Tensor | None, closure: Callable[[], Any] | None = None) -> Arguments:
        """Return what ``step`` is to be called with.

        Args:
            loss: of the batch; passed where the optimizer declares ``loss``.
            closure: passed where the optimizer declares ``closure``.

        Raises:
            UnsupportedError: the signature does not take it, or demands more.
        """
        positional: list[Any] = []
        named: dict[str, Any] = {}
        if self._traits.closure and closure is not None:
            self._place(CLOSURE, closure, positional, named)
        if self._traits.loss:
            self._place(LOSS, loss, positional, named)
        self._check(positional, named)
        return tuple(positional), named

    def _place(self, word: str, value: object, positional: list[Any], named: dict[str, Any]) -> None:
        """Add an argument the way that the signature takes it."""
        found = _parameter(word, self._parameters)
        if self._parameters is None:
            positional.append(value)
        elif found is None:
            raise UnsupportedError(
                f"{self._name} declares {word}=True and its step takes no {word} "
                f"(it takes: {_listed(self._parameters)}); take {word}=True out of its traits"
            )
        elif found.kind is found.VAR_KEYWORD:
            named[word] = value
        elif found.kind is found.KEYWORD_ONLY or (
            found.kind is found.POSITIONAL_OR_KEYWORD and found is not self._parameters[0]
        ):
            named[found.name] = value
        else:
            positional.append(value)

    def _check(self, positional: list[Any], named: dict[str, Any]) -> None:
        """Say what the call would lack: a TypeError of our own making is no finding about the optimizer."""
        if self._parameters is None:
            return
        given = {each.name for each in self._parameters[: len(positional)]} | set(named)
        lacking = [each for each in required(self._parameters) if each not in given]
        if not lacking:
            return
        words = [word for word in (CLOSURE, LOSS) if any(word in each for each in lacking)]
        if words and len(words) == len(lacking):
            declared = ", ".join(f"{word}=True" for word in words)
            raise UnsupportedError(
                f"{self._name}.step needs {', '.join(lacking)}; declare {declared} in its traits"
            )
        raise UnsupportedError(
            f"{self._name}.step needs {', '.join(lacking)}, which no training loop knows; "
            "give such arguments defaults, or set them in the constructor"
        )

    def _call(self, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._tried:
            self._optimizer.step(*positional, **named)
            return
        try:
            self._optimizer.step(*positional, **named)
        except OptbenchError:
            raise
        except Exception as error:
            hint = self._hint()
            if hint is not None and hint not in getattr(error, "__notes__", ()):
                error.add_note(hint)
            raise
        self._tried = True

    def _hint(self) -> str | None:
        """Return what may be undeclared where the first step raises."""
        missing = undeclared(self._parameters, self._traits)
        if not missing:
            return None
        choices = " or ".join(", ".join(f"{word}=True" for word in each) for each in missing)
        return f"if its step needs more than gradients, declare {choices} in its traits"


def forget_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Clear every gradient; not by ``zero_grad``, which libraries override."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def step_parameters(step: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return the parameters of a bound ``step``; None: its signature cannot be read."""
    try:
        return list(inspect.signature(step).parameters.values())
    except (TypeError, ValueError):
        return None


def required(parameters: list[inspect.Parameter] | None) -> list[str]:
    """Return the names of those that have no default."""
    return [p.name for p in parameters or () if p.default is p.empty and p.kind not in _VARIADIC]


def undeclared(parameters: list[inspect.Parameter] | None, traits: OptimizerTraits) -> list[tuple[str, ...]]:
    """Return the declarations that a step which fails may be lacking, the simplest first.

    Args:
        parameters: of its signature.
        traits: what it declares.
    """
    on_entry = "gradients_on_entry"
    if traits.closure:
        return [(on_entry,)] if traits.gradients_on_entry is None else []
    found: list[tuple[str, ...]] = []
    if not traits.loss and _named(LOSS, parameters) is not None:
        found.append((LOSS,))
    if _named(CLOSURE, parameters) is not None:
        found += [(CLOSURE,), (CLOSURE, on_entry)]
    return found


def _named(word: str, parameters: list[inspect.Parameter] | None) -> inspect.Parameter | None:
    """Return the parameter of that name, else one whose name holds it: ``closure_fn``."""
    known = [each for each in parameters or () if each.kind not in _VARIADIC]
    exact = next((each for each in known if each.name == word), None)
    return exact or next((each for each in known if word in each.name), None)


def _parameter(word: str, parameters: list[inspect.Parameter] | None) -> inspect.Parameter | None:
    """Return where an argument goes: by name, to the first of any name for a closure, or to what takes any."""
    found = _named(word, parameters)
    if found is not None or not parameters:
        return found
    if word == CLOSURE and parameters[0].kind in {
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    }:
        return parameters[0]
    for kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
        variadic = next((each for each in parameters if each.kind is kind), None)
        if variadic is not None and (word == CLOSURE or kind is inspect.Parameter.VAR_KEYWORD):
            return variadic
    return None


def _listed(parameters: list[inspect.Parameter] | None) -> str:
    return ", ".join(each.name for each in parameters or ()) or "nothing"
