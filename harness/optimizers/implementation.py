"""What every implementation shares: its name, traits and options, and the reasons why it cannot run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from harness.interfaces import OptimizerTraits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from harness.interfaces import ParamGroup, Role, WorkloadTraits
    from harness.machine import Machine
    from harness.optimizers.algorithms import Algorithm
    from harness.spec import RunSpec


class Implementation:
    """Code that computes an algorithm; a family derives from it and says how to construct.

    Args:
        algorithm: what it computes.
        word: the part of the name after the slash.
        target: ``module:Class`` that is constructed.
        fixed: options that this code knows one value of only, with that value.
        kernels: what must be compiled before it can run, as `harness.kernels` names them.
        sparse: whether it takes sparse gradients.
        state_tensors: where this code keeps more or less than the algorithm needs.
        traits: further fields of OptimizerTraits that differ from what the algorithm says.
        variants: choices in which this code documents another form than its algorithm's reference takes by
            default, by their names there (`harness.references.reference.Reference.variants`).
    """

    def __init__(  # noqa: PLR0913  # each is a fact of its own, given by its name
        self,
        algorithm: Algorithm,
        word: str,
        target: str,
        *,
        fixed: Mapping[str, JsonValue] | None = None,
        kernels: tuple[str, ...] = (),
        sparse: Literal["no", "yes", "only"] = "no",
        state_tensors: float | None = None,
        traits: Mapping[str, Any] | None = None,
        variants: Mapping[str, JsonValue] | None = None,
    ) -> None:
        self.name = f"{algorithm.name}/{word}"
        self.target = target
        self.algorithm = algorithm
        self.fixed = dict(fixed or {})
        self.variants = dict(variants or {})
        known: dict[str, Any] = {
            "algorithm": algorithm.name,
            "granularity": algorithm.granularity,
            "closure": algorithm.closure,
            "default_lr": algorithm.lr,
            "sparse_gradients": sparse,
            "state_tensors": algorithm.state_tensors if state_tensors is None else state_tensors,
            "kernels": kernels,
        }
        self.traits = OptimizerTraits(**{**known, **(traits or {})})

    def unsupported(self, spec: RunSpec, workload: WorkloadTraits, machine: Machine) -> str | None:
        """Return why this cannot run on that machine and what to do about it, or None."""
        return (
            self.unavailable(spec, machine)
            or self._unfit_gradients(spec, workload)
            or self._unknown_values(spec)
            or self._missing_class(machine)
        )

    def state_tensors(self, parameters: Sequence[tuple[Role, tuple[int, ...]]]) -> float:
        """Return the state in multiples of these parameters' elements, given by role and shape."""
        rule, elements = self.algorithm.state_elements, sum(math.prod(shape) for _, shape in parameters)
        if rule is None or not elements:
            return self.traits.state_tensors
        return sum(rule(role, shape) for role, shape in parameters) / elements

    def unavailable(self, spec: RunSpec, machine: Machine) -> str | None:
        """Return what the family lacks on this machine, or None; the first question that is asked."""
        del spec, machine
        return None

    def options(self, machine: Machine) -> Mapping[str, JsonValue] | None:
        """Return the algorithm's hyperparameters, with defaults, and what the class of this machine adds."""
        del machine
        return dict(self.algorithm.options)

    def hyperparameters(self, spec: RunSpec) -> dict[str, Any]:
        """Return lr and every option by its canonical name; JSON's lists become tuples."""
        chosen: dict[str, Any] = {**self.algorithm.options, **spec.optimizer_options}
        chosen["lr"] = self.algorithm.lr if spec.lr is None else spec.lr
        return {key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items()}

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Construct it over the groups, every flag explicit."""
        raise NotImplementedError

    def deepspeed_config(self, spec: RunSpec) -> Mapping[str, JsonValue] | None:
        """Return None: the strategy builds it and passes it in as a client optimizer."""
        del spec
        return None

    def disproved(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Return None: what ran is the class that was constructed."""
        del optimizer
        return None

    def _unfit_gradients(self, spec: RunSpec, workload: WorkloadTraits) -> str | None:
        sparse = has_sparse_gradients(spec, workload)
        if sparse and self.traits.sparse_gradients == "no":
            return (
                f"{self.name} takes dense gradients only, and {spec.workload} has sparse ones; "
                "use --set workload.sparse=false, or sgd/forloop, adagrad/forloop or sparseadam/forloop"
            )
        if not sparse and self.traits.sparse_gradients == "only":
            return (
                f"{self.name} is for sparse gradients, and {spec.workload} has none here; "
                "use adam, or a workload with sparse embeddings (recommender)"
            )
        return None

    def _unknown_values(self, spec: RunSpec) -> str | None:
        for option, value in self.fixed.items():
            chosen = spec.optimizer_options.get(option, self.algorithm.options[option])
            if chosen != value:
                return (
                    f"{self.name} knows {option} = {value!r} only, found {chosen!r}; "
                    f"use --set optimizer.{option}={_toml(value)}, or another implementation of "
                    f"{self.algorithm.name}"
                )
        return None

    def _missing_class(self, machine: Machine) -> str | None:
        found = machine.constructors.get(self.target)
        if found is None or found.error is None:
            return None
        return f"{self.target} cannot be used: {found.error}"


def has_sparse_gradients(spec: RunSpec, workload: WorkloadTraits) -> bool:
    """Say whether this run's workload produces sparse gradients: it declares some, and ``sparse`` is not off."""
    if not workload.sparse_parameters:
        return False
    return spec.workload_options.get("sparse", workload.options.get("sparse", True)) is not False


def device_type(spec: RunSpec, machine: Machine) -> str:
    """Return torch's device type that a run of this spec computes on."""
    return "cpu" if spec.device == "cpu" else machine.device_type


def _toml(value: JsonValue) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
