"""Every optimizer of the package pytorch_optimizer, as ``pytorch_optimizer:lion``: its name, in small letters.

Names and classes are read from the package's source, so that listing them imports neither it nor torch. Where it
is not installed, the names of `KNOWN` stand for it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from harness.interfaces import OptimizerTraits
from harness.optimizers.custom import Custom
from harness.optimizers.implementation import has_sparse_gradients
from harness.optimizers.third_party import absent, import_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from harness.interfaces import WorkloadTraits
    from harness.machine import Machine
    from harness.spec import RunSpec

    Granularity = Literal["element", "tensor", "matrix", "model"]

PREFIX = "pytorch_optimizer:"

KNOWN: Mapping[str, tuple[Granularity, float]] = MappingProxyType(
    {
        "adabelief": ("element", 2),
        "adabound": ("element", 2),
        "adam": ("element", 2),
        "adamw": ("element", 2),
        "adamax": ("element", 2),
        "adan": ("element", 4),
        "ademamix": ("element", 3),
        "adopt": ("element", 2),
        "aggmo": ("element", 3),
        "diffgrad": ("element", 3),
        "laprop": ("element", 2),
        "lion": ("element", 1),
        "madgrad": ("element", 3),
        "nadam": ("element", 2),
        "padam": ("element", 2),
        "qhadam": ("element", 2),
        "qhm": ("element", 1),
        "radam": ("element", 2),
        "rmsprop": ("element", 1),
        "sgd": ("element", 0),
        "sgdw": ("element", 1),
        "signsgd": ("element", 1),
        "tiger": ("element", 1),
        "yogi": ("element", 2),
        "adafactor": ("tensor", 1.05),
        "adamp": ("tensor", 2),
        "came": ("tensor", 1.1),
        "fromage": ("tensor", 0),
        "lamb": ("tensor", 2),
        "lars": ("tensor", 1),
        "nero": ("tensor", 0.05),
        "novograd": ("tensor", 1),
        "sgdp": ("tensor", 1),
        "sm3": ("tensor", 0.05),
        "stableadamw": ("tensor", 2),
        "galore": ("matrix", 2),
        "kron": ("matrix", 2),
        "scalableshampoo": ("matrix", 6),
        "adago": ("matrix", 2),
        "adamuon": ("matrix", 2),
        "muon": ("matrix", 2),
        "normuon": ("matrix", 2),
        "spectralsphere": ("matrix", 2),
        "scion": ("matrix", 1),
        "scionlight": ("matrix", 0),
        "shampoo": ("matrix", 4),
        "soap": ("matrix", 6),
        "splus": ("matrix", 6),
        "dadaptadam": ("model", 3),
        "dadaptsgd": ("model", 3),
        "prodigy": ("model", 4),
    }
)
"""What an update depends on under default options, and the state in multiples of the parameters' elements, as read
in the package's source (4.1.0); of the others the granularity is undeclared."""

WHOLE_MODEL = ("max_grad_norm",)
"""Options that make an element-wise update depend on all gradients (Adan's)."""

FLAGGED = ("adago", "adamuon", "muon", "normuon")
"""Want to be told in their groups which tensors are matrices, and take the rest by AdamW."""

SWITCHED = ("schedulefreeadamw", "schedulefreeradam", "schedulefreesgd", "splus", "spectralsphere")
"""Have ``train()`` and ``eval()``."""

_CLOSURE = "its step needs the loss as well as gradients"
_MODEL = "its constructor wants the model instead of parameters"
_HESSIAN = "it differentiates gradients once more, and loss.backward() keeps no graph for that here"

UNFIT: Mapping[str, str] = MappingProxyType(
    {
        "adahessian": f"{_HESSIAN}; use adamw/foreach",
        "adalomo": f"{_MODEL} and it steps during backward; use adafactor/forloop",
        "alig": f"{_CLOSURE}; use sgd/foreach",
        "bsam": f"{_CLOSURE}; use adamw/foreach",
        "demo": "it exchanges gradients between ranks itself; use adamw/foreach",
        "distributedmuon": "it spreads its groups over ranks itself; use muon/forloop",
        "lbfgs": f"{_CLOSURE}; use lbfgs/forloop",
        "lomo": f"{_MODEL} and it steps during backward; use sgd/foreach",
        "lorarite": "it takes the pairs of factors of LoRA; use adamw/foreach",
        "muonclip": "its step clips by attention logits, which no training loop knows; use muon/forloop",
        "sophiah": f"{_HESSIAN}; use adamw/foreach",
    }
)
"""Names that this harness cannot drive, as found with 4.1.0."""


class PytorchOptimizer(Custom):
    """One class of the package, with the options of its constructor.

    Args:
        short: its name in the package.
        class_name: as written there.
    """

    def __init__(self, short: str, class_name: str) -> None:
        super().__init__(f"pytorch_optimizer:{class_name}")
        self.name = f"{PREFIX}{short}"
        self.short = short

    @functools.cached_property
    def traits(self) -> OptimizerTraits:
        """What `KNOWN` tells; undeclared, otherwise."""
        granularity, state = KNOWN.get(self.short, ("undeclared", 2))
        return OptimizerTraits(
            algorithm=self.name,
            granularity=granularity,
            dtensor="undeclared",
            state_tensors=state,
            evaluation_switch=self.short in SWITCHED,
            group_flags={"use_muon": "matrix"} if self.short in FLAGGED else {},
            matrices_only=True if self.short == "spectralsphere" else None,
        )

    def unsupported(self, spec: RunSpec, workload: WorkloadTraits, machine: Machine) -> str | None:
        """Return which package is missing, or what this class needs that a run does not give."""
        missing = absent("pytorch-optimizer", "pytorch_optimizer", machine)
        if missing is not None:
            return missing
        if self.short in UNFIT:
            return f"{self.name} cannot be driven here: {UNFIT[self.short]}"
        if has_sparse_gradients(spec, workload):
            return f"{self.name} takes dense gradients only; use --set workload.sparse=false, or adagrad/forloop"
        return self._whole_model(spec) or super().unsupported(spec, workload, machine)

    def _whole_model(self, spec: RunSpec) -> str | None:
        """Refuse what would make a lie of the declared granularity."""
        if self.traits.granularity == "element":
            for option in WHOLE_MODEL:
                if spec.optimizer_options.get(option):
                    return (
                        f"{option} makes {self.name} depend on all gradients, and strategies that split them "
                        "could not tell; use clip_norm instead"
                    )
        return None

    def options(self, machine: Machine) -> Mapping[str, JsonValue] | None:
        """Return the constructor's keywords beside lr, with defaults; None: it was not probed."""
        found = machine.constructors.get(self.target)
        if found is None or found.error is not None:
            return None
        named = {**dict.fromkeys(found.required), **found.parameters}
        return {name: default for name, default in named.items() if name != "lr"}


def _names() -> dict[str, str]:
    """Return the package's own list, small name -> class, from its source; `KNOWN`'s where it is not installed."""
    try:
        found = importlib.util.find_spec("pytorch_optimizer")  # a top-level module: nothing is imported
        folder = Path(found.origin or "").parent if found is not None else Path()
        tree = ast.parse((folder / "optimizer" / "__init__.py").read_text(encoding="utf-8"))
    except (ImportError, OSError, SyntaxError, ValueError):
        return {name: name for name in KNOWN}
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.List):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(each, ast.Name) and each.id == "OPTIMIZER_LIST" for each in targets):
                classes = [each.id for each in node.value.elts if isinstance(each, ast.Name)]
                return {name.lower(): name for name in sorted(classes, key=str.lower)}
    return {name: name for name in KNOWN}


_FOUND = _names()

OPTIMIZERS: Mapping[str, PytorchOptimizer] = MappingProxyType(
    {f"{PREFIX}{short}": PytorchOptimizer(short, class_name) for short, class_name in _FOUND.items()}
)
"""Every name that the package knows."""


def probe() -> dict[str, JsonValue]:
    """Return ``error``: why the package cannot be imported; None: it can."""
    return import_error("pytorch_optimizer")
