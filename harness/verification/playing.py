"""Plays a scenario with an implementation, and keeps what every step did to every tensor."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from harness.hyperparameters import held
from harness.precision import stepped_dtype
from harness.rates import peaks, set_lr
from harness.stepping import Driver
from harness.verification.layouts import laid_out
from harness.verification.stream import given, parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from harness.interfaces import Optimizer
    from harness.spec import RunSpec
    from harness.verification.scenarios import Scenario

WAIT_S = 0.05
"""So long after a step the parameters are read again: whatever still works on them then shows."""

_WAIT_AFTER = (2, 5)


@dataclass(frozen=True)
class Step:
    """One step as seen from outside; float64 copies on the CPU, by tensor.

    Attributes:
        number: from 1.
        factor: on the peak learning rate.
        before: parameters.
        gradients: as they were given, dense; None: none.
        after: parameters as soon as ``step`` has returned and the device is done.
    """

    number: int
    factor: float
    before: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor | None]
    after: Mapping[str, Tensor]

    def moved(self, name: str) -> Tensor:
        """Return the update."""
        return self.after[name] - self.before[name]


@dataclass
class Trace:
    """All steps of one scenario, and what else was seen.

    Attributes:
        scenario: that was played.
        steps: in order.
        gradients: what became of them: ``intact``, ``changed``, ``taken away``.
        moved_later: step and tensor that changed after the step was over.
        new_threads: that were there after the steps and not before.
        state_elements: of all state tensors, after each step.
        lr: peak rate of each tensor's group, as the optimizer has it.
        defaults: its hyperparameters, as the instance holds them.
        dtype: of the parameters.
    """

    scenario: Scenario
    steps: list[Step] = field(default_factory=list)
    gradients: set[str] = field(default_factory=set)
    moved_later: tuple[int, str] | None = None
    new_threads: tuple[str, ...] = ()
    state_elements: list[int] = field(default_factory=list)
    lr: dict[str, float | None] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


class RefusedError(Exception):
    """The implementation raised; ``step`` says in which step, 0: as it was constructed."""

    def __init__(self, error: Exception, step: int) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.step = step


class Player:
    """Holds one instance over its own parameters, and steps it.

    Args:
        optimizer: the implementation.
        spec: its hyperparameters and precision.
        scenario: to play.
    """

    def __init__(self, optimizer: Optimizer, spec: RunSpec, scenario: Scenario) -> None:
        self._optimizer, self._spec, self.scenario = optimizer, spec, scenario
        if optimizer.traits.compiled:  # past its limit of recompilations torch.compile runs a step eagerly
            torch.compiler.reset()
        self.device = device(spec)
        self.dtype = getattr(torch, stepped_dtype(spec.precision))
        self.parameters = parameters(scenario.stage, self.dtype, self.device)
        self._take(self._build())
        self._peaks = peaks(self.live)

    def _build(self) -> torch.optim.Optimizer:
        made = self._optimizer.build(self.scenario.stage.param_groups(self.parameters), self._spec)
        if self._optimizer.traits.evaluation_switch and hasattr(made, "train"):
            made.train()
        return made

    def _take(self, live: torch.optim.Optimizer) -> None:
        """Step this instance from now on."""
        self.live = live
        self._driver = Driver(live, self._optimizer.name, self._optimizer.traits)

    def gradients(self, number: int) -> dict[str, Tensor | None]:
        """Return the stream's gradients of a step."""
        members = self.scenario.stage.members
        return {each.name: given(each, number, self.parameters[each.name]) for each in members}

    def step(
        self, number: int, gradients: Mapping[str, Tensor | None] | None = None, *, rate: float = 1.0
    ) -> set[str]:
        """Do one step; return what became of the gradients.

        Args:
            number: from 1.
            gradients: instead of the stream's.
            rate: a further factor on the learning rate.
        """
        self.set_lr(self.scenario.factor(number) * rate)
        if gradients is None:
            gradients = self.gradients(number)
        kept = {name: None if g is None else g.clone() for name, g in gradients.items()}
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        if self._optimizer.traits.closure:
            self.minimise(self._linear(kept))
        else:
            self._driver.step(self._loss(kept) if self._optimizer.traits.loss else None)
        synchronise(self.device)
        return {_fate(parameter.grad, kept[name]) for name, parameter in self.parameters.items()} - {""}

    def _loss(self, gradients: Mapping[str, Tensor | None]) -> Tensor:
        """Return the loss <p, g>, linear in p, whose gradient is g wherever it is asked for."""
        loss = torch.zeros((), device=self.device)
        for name, parameter in self.parameters.items():
            gradient = gradients[name]
            if gradient is not None:
                loss = loss + (parameter.detach().float() * gradient.to_dense().float()).sum()
        return loss

    def _linear(self, gradients: Mapping[str, Tensor | None]) -> Callable[[], Tensor]:
        """Return the closure of that loss."""

        def closure() -> Tensor:
            for name, parameter in self.parameters.items():
                gradient = gradients[name]
                parameter.grad = None if gradient is None else gradient.clone()
            return self._loss(gradients)

        return closure

    def minimise(self, closure: Callable[[], Tensor]) -> None:
        """Do one step that evaluates the loss itself."""
        self._driver.evaluate(closure)
        synchronise(self.device)

    def set_lr(self, factor: float) -> None:
        """Set every group's rate as the engines do."""
        set_lr(self.live, factor)

    def resume(self) -> None:
        """Save state, load it into a fresh instance over copies of the parameters, and go on with that."""
        state = self.live.state_dict()  # what holds it is dropped: nothing else writes to it
        stage = self.scenario.stage
        self.parameters = {
            name: laid_out(parameter.detach(), stage.member(name).layout).requires_grad_()
            for name, parameter in self.parameters.items()
        }
        self._take(self._build())
        self.live.load_state_dict(state)

    def values(self) -> dict[str, Tensor]:
        """Return the parameters now."""
        return {name: each.detach().to("cpu", torch.float64, copy=True) for name, each in self.parameters.items()}

    def peak_rates(self) -> dict[str, float | None]:
        """Return the peak rate of every tensor's group."""
        by_id = {id(parameter): name for name, parameter in self.parameters.items()}
        return {
            by_id[id(parameter)]: peak
            for group, peak in zip(self.live.param_groups, self._peaks, strict=True)
            for parameter in group["params"]
            if id(parameter) in by_id
        }

    def state_elements(self) -> int:
        """Return how many numbers the state's tensors hold."""
        return sum(
            held.numel()
            for kept in self.live.state.values()
            if isinstance(kept, dict)
            for held in kept.values()
            if isinstance(held, torch.Tensor)
        )


def play(
    optimizer: Optimizer, spec: RunSpec, scenario: Scenario, see: Callable[[Player, int], None] | None = None
) -> Trace:
    """Play a scenario to its end.

    Args:
        optimizer: the implementation.
        spec: as the scenario wants it (`Scenario.spec`).
        scenario: to play.
        see: called after each step.

    Raises:
        RefusedError: the implementation raised.
        UnsupportedError: it cannot be built over such parameters.
    """
    before_all = {thread.ident for thread in threading.enumerate()}
    player = Player(optimizer, spec, scenario)
    hyperparameters = {**held(player.live), **player.live.defaults}
    trace = Trace(scenario, lr=player.peak_rates(), defaults=hyperparameters, dtype=player.dtype)
    for number in range(1, scenario.steps + 1):
        try:
            _step(player, trace, number)
            if number == scenario.saved_at:
                player.resume()
        except Exception as error:
            raise RefusedError(error, number) from error
        if see is not None:
            see(player, number)
    trace.new_threads = tuple(t.name for t in threading.enumerate() if t.ident not in before_all)
    return trace


def _step(player: Player, trace: Trace, number: int) -> None:
    before = player.values()
    if trace.steps and trace.moved_later is None:
        trace.moved_later = _moved(number - 1, trace.steps[-1].after, before)
    given_now = {each.name: each.gradient(number) for each in player.scenario.stage.members}
    dtype = {name: parameter.dtype for name, parameter in player.parameters.items()}
    trace.gradients |= player.step(number)
    after = player.values()
    if number in _WAIT_AFTER and trace.scenario.saved_at is not None:  # once an implementation is enough
        time.sleep(WAIT_S)
        trace.moved_later = trace.moved_later or _moved(number, after, player.values())
    seen = {n: None if g is None else g.to(dtype[n]).to(torch.float64) for n, g in given_now.items()}
    trace.steps.append(Step(number, player.scenario.factor(number), before, seen, after))
    trace.state_elements.append(player.state_elements())


def stands_still(trace: Trace) -> bool:
    """Say whether no step moved any element."""
    return all(not bool(step.moved(name).any()) for step in trace.steps for name in step.before)


def _moved(number: int, earlier: Mapping[str, Tensor], later: Mapping[str, Tensor]) -> tuple[int, str] | None:
    for name, value in earlier.items():
        if not torch.equal(value, later[name]) and not bool(value.isnan().any()):
            return number, name
    return None


def _fate(now: Tensor | None, was: Tensor | None) -> str:
    if was is None:
        return ""
    if now is None:
        return "taken away"
    return "intact" if torch.equal(now.to_dense(), was.to_dense()) else "changed"


def device(spec: RunSpec) -> torch.device:
    """Return where a spec computes: the accelerator unless there is none or the CPU was asked for."""
    if spec.device != "cpu" and torch.accelerator.is_available():
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device("cpu")


def synchronise(where: torch.device) -> None:
    """Wait until the device has done all its work."""
    if where.type != "cpu":
        torch.accelerator.synchronize()
