"""What theory says a rank holds and sends under PyTorch's strategies, by each one's own partition rule.

Imports no torch. Counts are of trainable parameters; persistent buffers, which DDP broadcasts from rank 0 in every
forward pass, are not among them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness import precision
from harness.interfaces import Prediction
from harness.precision import BYTES, state_bytes_per_element

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.interfaces import Category, Collective, OptimizerTraits, World
    from harness.spec import RunSpec

    Shape = tuple[int, ...]

NORM_BYTES = 4
"""Of the squared norm that shards add up to clip by."""


def replicated(
    shapes: Mapping[str, Shape], spec: RunSpec, optimizer: OptimizerTraits, *, payload: bool
) -> Prediction:
    """Return what a whole replica holds; with ``payload``, DDP's buckets and its all-reduce of every gradient.

    Under bf16-master the fp32 masters have gradients of their own beside the model's.
    """
    elements = sum(math.prod(shape) for shape in shapes.values())
    width = BYTES[precision.model_dtype(spec.precision)]
    master = 4 if spec.precision == "bf16-master" else 0
    held: dict[Category, float] = {
        "parameters": elements * width,
        "gradients": elements * (width + master),
        "master": elements * master,
        "state": elements * state_bytes_per_element(spec, optimizer),
    }
    if spec.strategy_options.get("optimizer_in_backward"):
        del held["gradients"]  # as many as lie between two updates: the model's order decides
    if not payload:
        return Prediction(held, {})
    if not spec.strategy_options.get("gradient_as_bucket_view"):
        held["communication"] = elements * width
    return Prediction(held, {"all_reduce": _reduced_bytes(shapes, spec, width)})


def _reduced_bytes(shapes: Mapping[str, Shape], spec: RunSpec, width: int) -> float:
    """Return the bytes of DDP's all-reduces in one step, after its communication hook."""
    hook = spec.strategy_options.get("comm_hook")
    if hook == "powersgd":
        rank = spec.strategy_options.get("powersgd_rank", 1)
        return width * sum(
            _power_sgd_elements(shape, rank if isinstance(rank, int) else 1) for shape in shapes.values()
        )
    return sum(math.prod(shape) for shape in shapes.values()) * (width if hook is None else 2)


def _power_sgd_elements(shape: Shape, rank: int, min_compression_rate: int = 2) -> int:
    """Return what PowerSGD sends of a tensor: P and Q, or all of it where that saves too little.

    A tensor is the matrix of shape (first dimension, product of the others) (Vogels et al. 2019, algorithm 1);
    the rule for what is worth compressing is PowerSGDState's.
    """
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (math.prod(shape), 1)
    rank = min(rank, rows, columns)
    compressed = (rows + columns) * rank
    if len(shape) > 1 and compressed * min_compression_rate < rows * columns:
        return compressed
    return rows * columns


def zero_redundancy(
    shapes: Mapping[str, Shape], spec: RunSpec, optimizer: OptimizerTraits, world: World
) -> Prediction:
    """Return DDP's replica with this rank's state, and a broadcast of every tensor beside the all-reduce."""
    whole = replicated(shapes, spec, optimizer, payload=True)
    elements = sum(math.prod(shape) for shape in shapes.values())
    mine = sum(math.prod(shapes[name]) for name in whole_tensor_shares(shapes, world.size)[world.rank])
    stepped = BYTES[precision.stepped_dtype(spec.precision)]
    return Prediction(
        {**whole.held_bytes, "state": mine * state_bytes_per_element(spec, optimizer)},
        {**whole.payload_bytes, "broadcast": float(elements * stepped)},
    )


def whole_tensor_shares(shapes: Mapping[str, Shape], ranks: int) -> list[list[str]]:
    """Return each rank's tensors: largest first, each to the rank with the fewest elements so far.

    ZeroRedundancyOptimizer's rule; ties go to the lower rank and, in order, to the model's earlier tensor.
    """
    shares: list[list[str]] = [[] for _ in range(ranks)]
    filled = [0] * ranks
    for name in sorted(shapes, key=lambda each: math.prod(shapes[each]), reverse=True):
        rank = filled.index(min(filled))
        shares[rank].append(name)
        filled[rank] += math.prod(shapes[name])
    return shares


def fully_sharded(
    shapes: Mapping[str, Shape],
    spec: RunSpec,
    optimizer: OptimizerTraits,
    world: World,
    blocks: Sequence[str],
    options: Mapping[str, object],
) -> Prediction:
    """Return a rank's chunks along dimension 0, and FSDP2's collectives over padded chunks.

    Payload counts include that padding: ranks x ceil(rows / ranks) rows of every tensor. Each micro-batch gathers
    every group once, and once more in backward where it was freed after forward; gradients are scattered once.
    Parameters and gradients are the shards: what was gathered, and the whole gradients that wait for a step's last
    micro-batch, are FSDP2's working memory.

    Args:
        shapes: of the trainable parameters, by name.
        spec: with every default resolved.
        optimizer: for its state.
        world: the rank, and how many there are.
        blocks: names of the submodules that are groups of their own; the root takes what is left.
        options: fsdp2's or hsdp's, with defaults.
    """
    replicas = options.get("replicas")
    copies = replicas if isinstance(replicas, int) else 1
    ranks = world.size // copies
    own = sum(_chunk(shape, ranks, world.rank % ranks) for shape in shapes.values())
    stored = BYTES[precision.stepped_dtype(spec.precision)]
    default = "bfloat16" if spec.precision == "bf16-master" else None
    gathered = _width(options.get("param_dtype") or default, stored)
    reduced = _width(options.get("reduce_dtype") or ("float32" if default else None), gathered)
    groups = _groups(shapes, blocks)
    padded = {name: ranks * sum(_chunk(shapes[p], ranks, 0) for p in members) for name, members in groups.items()}
    freed = options.get("reshard_after_forward")
    gathers = sum(
        elements * (2 if (freed if freed is not None else name != "") else 1) for name, elements in padded.items()
    )
    total = sum(padded.values())
    shared = ranks > 1  # a rank that has all of a replica exchanges no shards
    norm = NORM_BYTES if shared and spec.clip_norm is not None else 0
    payload: dict[Collective, float] = {
        "all_gather": float(gathers * gathered * spec.accumulation * shared),
        "reduce_scatter": float(total * reduced * shared),
        "all_reduce": float(norm + (total // ranks * reduced if copies > 1 else 0)),
    }
    held: dict[Category, float] = {
        "parameters": own * stored,
        "gradients": own * stored,
        "master": 0.0,
        "state": own * state_bytes_per_element(spec, optimizer),
    }
    if options.get("optimizer_in_backward"):
        del held["gradients"]
    return Prediction(held, payload)


def apex_distributed(
    shapes: Mapping[str, Shape], spec: RunSpec, world: World, options: Mapping[str, object]
) -> Prediction:
    """Return DistributedFusedAdam's flat shards: two moments, a gradient and, where stored, the parameters.

    One reduce-scatter of all gradients and one all-gather of all parameters a step, whatever the accumulation.
    """
    elements = sum(math.prod(shape) for shape in shapes.values())
    width = BYTES[precision.model_dtype(spec.precision)]
    stepped = BYTES[precision.stepped_dtype(spec.precision)]
    mine = elements / world.size
    held: dict[Category, float] = {
        "parameters": elements * width,
        "gradients": mine * width,
        "master": mine * stepped if options.get("store_params") else 0,
        "state": 2 * mine * stepped,
    }
    payload: dict[Collective, float] = {
        "reduce_scatter": float(elements * width),
        "all_gather": float(elements * width),
    }
    if spec.clip_norm is not None:
        payload["all_reduce"] = float(NORM_BYTES)
    return Prediction(held, payload)


def _width(dtype: object, otherwise: int) -> int:
    return BYTES[dtype] if isinstance(dtype, str) else otherwise


def _chunk(shape: Shape, ranks: int, rank: int) -> int:
    """Return the elements of a rank's chunk as torch.chunk cuts dimension 0: ceil(rows / ranks) rows, or less."""
    rows = shape[0] if shape else 1
    step = math.ceil(rows / ranks)
    mine = max(0, min(step, rows - rank * step))
    return mine * math.prod(shape[1:])


def _groups(shapes: Iterable[str], blocks: Sequence[str]) -> dict[str, list[str]]:
    """Return group -> parameters; each goes to the innermost block that holds it, else to the root, ``""``."""
    found: dict[str, list[str]] = {}
    for name in shapes:
        holders = [block for block in blocks if name.startswith(f"{block}.")]
        found.setdefault(max(holders, key=len, default=""), []).append(name)
    return found
