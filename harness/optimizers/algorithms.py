"""The algorithms: what each hyperparameter is called, its default, and what an update depends on.

Names and defaults are those of the algorithm's native class in torch.optim. Where torch has none (Lion, LAMB,
NovoGrad) they are those of the source named beside the entry. Every implementation of an algorithm takes these
names and must compute the same mathematics from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import JsonValue

    from harness.interfaces import Role


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    Attributes:
        name: as in ``algorithm/implementation``.
        lr: the default learning rate.
        options: the other hyperparameters, with defaults; a list stands for a tuple.
        granularity: the unit that an update depends on.
        state_tensors: state in multiples of the parameters' elements, under the default options.
        closure: a step evaluates the loss again.
        source: where the algorithm and its defaults are described.
        state_elements: (role, shape) -> elements of state for one parameter, where that is no fixed multiple.
    """

    name: str
    lr: float
    options: Mapping[str, JsonValue]
    granularity: Literal["element", "tensor", "matrix", "model"]
    state_tensors: float
    source: str
    closure: bool = False
    state_elements: Callable[[Role, tuple[int, ...]], float] | None = None


def _muon_state(role: Role, shape: tuple[int, ...]) -> float:
    """One momentum for a matrix inside the model, AdamW's two moments for the rest."""
    return math.prod(shape) * (1 if role == "matrix" and len(shape) == 2 else 2)


def _factored_state(_role: Role, shape: tuple[int, ...]) -> float:
    """A sum for each row and each column of the last two dimensions; the square of a vector's every element."""
    elements = math.prod(shape)
    return elements / shape[-1] + elements / shape[-2] if len(shape) > 1 and elements else elements


_ADAM: dict[str, JsonValue] = {
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.0,
    "amsgrad": False,
    "maximize": False,
}

_SGD: dict[str, JsonValue] = {
    "momentum": 0.0,
    "dampening": 0.0,
    "weight_decay": 0.0,
    "nesterov": False,
    "maximize": False,
}

_TABLE = (
    Algorithm(
        "adadelta",
        1.0,
        {"rho": 0.9, "eps": 1e-6, "weight_decay": 0.0, "maximize": False},
        "element",
        2,
        "Zeiler 2012, arXiv:1212.5701; torch.optim.Adadelta",
    ),
    Algorithm(
        "adafactor",
        0.01,
        {"beta2_decay": -0.8, "eps": [None, 1e-3], "d": 1.0, "weight_decay": 0.0, "maximize": False},
        "tensor",  # row and column statistics, and the update's root mean square over the whole tensor
        0.05,
        "Shazeer and Stern 2018, arXiv:1804.04235; torch.optim.Adafactor",
        state_elements=_factored_state,
    ),
    Algorithm(
        "adagrad",
        0.01,
        {
            "lr_decay": 0.0,
            "weight_decay": 0.0,
            "initial_accumulator_value": 0.0,
            "eps": 1e-10,
            "maximize": False,
        },
        "element",
        1,
        "Duchi, Hazan and Singer 2011, JMLR 12; torch.optim.Adagrad",
    ),
    Algorithm(
        "adam",
        1e-3,
        {**_ADAM, "decoupled_weight_decay": False},
        "element",
        2,
        "Kingma and Ba 2015, arXiv:1412.6980; torch.optim.Adam",
    ),
    Algorithm(
        "adamw",
        1e-3,
        {**_ADAM, "weight_decay": 0.01},
        "element",
        2,
        "Loshchilov and Hutter 2019, arXiv:1711.05101; torch.optim.AdamW",
    ),
    Algorithm(
        "adamax",
        2e-3,
        {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "maximize": False},
        "element",
        2,
        "Kingma and Ba 2015, section 7.1; torch.optim.Adamax",
    ),
    Algorithm(
        "asgd",
        0.01,
        {"lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0.0, "maximize": False},
        "element",
        1,
        "Polyak and Juditsky 1992, doi:10.1137/0330046; torch.optim.ASGD",
    ),
    Algorithm(
        "lbfgs",
        1.0,
        {
            "max_iter": 20,
            "max_eval": None,
            "tolerance_grad": 1e-7,
            "tolerance_change": 1e-9,
            "history_size": 100,
            "line_search_fn": None,
        },
        "model",
        203,  # two vectors for each step of history_size, direction, previous gradient, previous point
        "Nocedal 1980, doi:10.2307/2006193; torch.optim.LBFGS",
        closure=True,
    ),
    Algorithm(
        "muon",
        1e-3,
        {
            "weight_decay": 0.1,
            "momentum": 0.95,
            "nesterov": True,
            "ns_coefficients": [3.4445, -4.775, 2.0315],
            "eps": 1e-7,
            "ns_steps": 5,
            "adjust_lr_fn": None,
            # Of the AdamW that takes what is no 2-D matrix inside the model.
            "adamw_lr": None,  # None: the same as Muon's
            "adamw_betas": [0.9, 0.999],
            "adamw_eps": 1e-8,
            "adamw_weight_decay": 0.01,
        },
        "matrix",
        2,  # one momentum for matrices, two moments for the rest: at most two
        "Jordan 2024, kellerjordan.github.io/posts/muon; torch.optim.Muon and torch.optim.AdamW",
        state_elements=_muon_state,
    ),
    Algorithm(
        "nadam",
        2e-3,
        {
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "weight_decay": 0.0,
            "momentum_decay": 4e-3,
            "decoupled_weight_decay": False,
            "maximize": False,
        },
        "element",
        2,
        "Dozat 2016, ICLR workshop; torch.optim.NAdam",
    ),
    Algorithm(
        "radam",
        1e-3,
        {
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "weight_decay": 0.0,
            "decoupled_weight_decay": False,
            "maximize": False,
        },
        "element",
        2,
        "Liu et al. 2020, arXiv:1908.03265; torch.optim.RAdam",
    ),
    Algorithm(
        "rmsprop",
        0.01,
        {
            "alpha": 0.99,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "momentum": 0.0,
            "centered": False,
            "maximize": False,
        },
        "element",
        1,
        "Hinton 2012, lecture 6e; torch.optim.RMSprop",
    ),
    Algorithm(
        "rprop",
        0.01,
        {"etas": [0.5, 1.2], "step_sizes": [1e-6, 50.0], "maximize": False},
        "element",
        2,
        "Riedmiller and Braun 1993, doi:10.1109/ICNN.1993.298623; torch.optim.Rprop",
    ),
    Algorithm(
        "sgd",
        1e-3,
        _SGD,
        "element",
        0,
        "Robbins and Monro 1951, doi:10.1214/aoms/1177729586; torch.optim.SGD",
    ),
    Algorithm(
        "sgd-momentum",
        1e-3,
        {**_SGD, "momentum": 0.9},
        "element",
        1,
        "Polyak 1964, as written in Sutskever et al. 2013; torch.optim.SGD, momentum 0.9",
    ),
    Algorithm(
        "sgd-nesterov",
        1e-3,
        {**_SGD, "momentum": 0.9, "nesterov": True},
        "element",
        1,
        "Sutskever et al. 2013, PMLR 28(3); torch.optim.SGD, momentum 0.9, nesterov",
    ),
    Algorithm(
        "sparseadam",
        1e-3,
        {"betas": [0.9, 0.999], "eps": 1e-8, "maximize": False},
        "element",
        2,
        "torch.optim.SparseAdam (Adam's moments, updated in the rows that have a gradient); Adam for the rest",
    ),
    Algorithm(
        # The published code's sign(0) is 0; DeepSpeed's kernels give +-1 there, so that an element whose
        # gradient and momentum are exactly zero moves by lr. Elements that take part in the loss agree.
        "lion",
        1e-4,
        {"betas": [0.9, 0.99], "weight_decay": 0.0},
        "element",
        1,
        "Chen et al. 2023, arXiv:2302.06675, Algorithm 2; defaults of the authors' published lion_pytorch.py",
    ),
    Algorithm(
        # phi is the identity and every tensor is adapted, weight decay or not; gradients are not clipped.
        "lamb",
        1e-3,
        {"betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01, "bias_correction": True},
        "tensor",
        2,
        "You et al. 2020, arXiv:1904.00962, Algorithm 2 and section 4; lr and decay of Apex's FusedLAMB",
    ),
    Algorithm(
        "novograd",
        1e-3,
        {
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "weight_decay": 0.0,
            "bias_correction": True,
            "reg_inside_moment": False,
            "grad_averaging": True,
            "norm_type": 2,
            "init_zero": False,
        },
        "tensor",
        1,
        "Ginsburg et al. 2019, arXiv:1905.11286; names and defaults of Apex's FusedNovoGrad",
    ),
    Algorithm(
        "ademamix",
        1e-3,
        {
            "betas": [0.9, 0.999, 0.9999],
            "alpha": 5.0,
            "t_alpha": None,
            "t_beta3": None,
            "eps": 1e-8,
            "weight_decay": 0.01,
        },
        "element",
        3,
        "Pagliardini et al. 2024, arXiv:2409.03137, Algorithm 1; names and defaults of bitsandbytes' AdEMAMix",
    ),
    Algorithm(
        "adamw-schedule-free",
        2.5e-3,
        {
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "weight_decay": 0.0,
            "warmup_steps": 0,
            "r": 0.0,
            "weight_lr_power": 2.0,
        },
        "element",
        2,  # z and the second moment
        "Defazio et al. 2024, arXiv:2405.15682; the authors' schedulefree.AdamWScheduleFree",
    ),
    Algorithm(
        "radam-schedule-free",
        2.5e-3,
        {
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "weight_decay": 0.0,
            "r": 0.0,
            "weight_lr_power": 2.0,
            "silent_sgd_phase": True,
        },
        "element",
        2,
        "Defazio et al. 2024, arXiv:2405.15682; the authors' schedulefree.RAdamScheduleFree",
    ),
    Algorithm(
        "sgd-schedule-free",
        1.0,
        {"momentum": 0.9, "weight_decay": 0.0, "warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0},
        "element",
        1,  # z
        "Defazio et al. 2024, arXiv:2405.15682; the authors' schedulefree.SGDScheduleFree",
    ),
    Algorithm(
        # AdamW, but the root of the second moment is held above eps instead of eps being added to it.
        "adamw-clamped",
        2.5e-3,
        {"betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.0},
        "element",
        2,
        "heavyball.AdamW; Loshchilov and Hutter 2019, arXiv:1711.05101",
    ),
    Algorithm(
        "laprop",
        2.5e-3,
        {"betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.0},
        "element",
        2,
        "Ziyin, Wang and Ueda 2020, arXiv:2002.04839; heavyball.LaProp",
    ),
    Algorithm(
        "adopt",
        2.5e-3,
        {"betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.0},
        "element",
        2,
        "Taniguchi et al. 2024, arXiv:2411.02853; heavyball.ADOPT",
    ),
    Algorithm(
        # An exponential average instead of a sum of gradients, and every tensor of two or more dimensions is
        # orthogonalised, embeddings too: not what torch.optim.Muon computes.
        "muon-ema",
        2.5e-3,
        {"betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.0, "nesterov": True},
        "matrix",
        1,
        "heavyball.Muon; Jordan 2024, kellerjordan.github.io/posts/muon",
    ),
    Algorithm(
        "scion",
        2.5e-3,
        {"betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.0, "scale": 1.0},
        "matrix",
        1,
        "Pethick et al. 2025, arXiv:2502.07529; heavyball.Scion",
    ),
    Algorithm(
        "soap",
        3e-3,
        {
            "betas": [0.9, 0.95],
            "shampoo_beta": 0.95,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "precondition_frequency": 2,
            "max_precond_dim": 2048,
            "merge_dims": True,
            "precondition_1d": False,
        },
        "matrix",
        6,  # two moments; of a square matrix two statistics and two bases as large as itself
        "Vyas et al. 2024, arXiv:2409.11321; heavyball.SOAP",
    ),
    Algorithm(
        "psgd-kron",
        1e-3,
        {
            "betas": [0.9, 0.999],
            "weight_decay": 0.0,
            "max_size_triangular": 2048,
            "min_ndim_triangular": 2,
            "precond_lr": 0.1,
        },
        "matrix",
        2,  # a moment; of a square matrix two triangular factors, each half as large as itself
        "Li 2015, arXiv:1512.04202; heavyball.PSGDKron",
    ),
)

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType({algorithm.name: algorithm for algorithm in _TABLE})
"""Every algorithm, by name."""
