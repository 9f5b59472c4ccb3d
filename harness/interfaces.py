"""The protocols that workloads, optimizers, strategies and collectors fulfil, and the types they exchange.

Nothing here imports torch, so that a plan can be made and traits be read without it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, JsonValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor, nn

    from harness.machine import Machine
    from harness.record import MetricInfo
    from harness.spec import RunSpec

    Batch = Mapping[str, Tensor]
    """One micro-batch of one rank; dimension 0 of every tensor is the sample. Tensors are on the CPU until
    the loop moves them to the device."""


class Target(BaseModel):
    """When a workload counts as trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    metric: str
    """A key of what `Workload.evaluate` returns."""
    value: float
    better: Literal["higher", "lower"]


class WorkloadSize(BaseModel):
    """One named size of a workload, as literals: they are read from the source without importing torch."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    parameters: int
    """Trainable parameters, each shared tensor counted once."""
    global_batch: int
    """Default samples a step over all ranks."""
    tokens_per_sample: int | None = None
    target: Target | None = None
    """None: throughput only, as for synthetic data."""
    activation_bytes_per_sample: int = 0
    """Rough bytes that one sample holds at most in forward and backward in fp32, for the memory estimate. The
    parameters' gradients are not among them."""
    recomputed_bytes_per_sample: int | None = None
    """The same where the option ``activation_checkpointing`` is true; None: there is no such option."""
    batch_coupled: bool = False
    """The loss depends on how the batch is split (BatchNorm): exempt from equality over world sizes."""
    synthetic: bool = False


class WorkloadTraits(BaseModel):
    """What a plan needs to know of a workload. Write it as literals in the class body."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    summary: str
    source: str
    """Where data and architecture come from."""
    sizes: dict[str, WorkloadSize]
    default_size: str
    metrics: dict[str, Literal["higher", "lower", "neither"]] = Field(default_factory=dict)
    """The keys that `Workload.evaluate` returns, and which direction of each is better."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the constructor beside ``size`` and ``data``, with their defaults."""
    reads_data_file: bool = False
    """Accepts ``data``."""
    blocks: tuple[str, ...] = ()
    """fnmatch patterns of the submodule names to shard one by one, ``blocks.*`` say; ``*`` does not match a dot.
    None that match: the model's repeated layers. ``("",)``: the whole model is one unit, on purpose."""
    embeddings: tuple[str, ...] = ()
    """fnmatch patterns of parameter names whose role is embedding."""
    heads: tuple[str, ...] = ()
    """fnmatch patterns of parameter names whose role is head (the output layer)."""
    sparse_parameters: tuple[str, ...] = ()
    """fnmatch patterns of parameter names whose gradients are sparse tensors."""
    optimizer_only: bool = False
    """No forward or backward: `OptimizerOnlyWorkload.gradients` sets gradients instead."""

    def size(self, name: str | None) -> WorkloadSize:
        """Return the named size, or the default one."""
        return self.sizes[name or self.default_size]


@dataclass(frozen=True)
class DataShard:
    """Which samples of each global batch one rank reads.

    A global batch has positions 0 … global_batch - 1. Micro-batch m of rank r takes the contiguous slice
    number ``m * world_size + r`` of ``micro_batch`` positions, so that the union over ranks and micro-batches
    is the same global batch at any world size.
    """

    rank: int
    world_size: int
    global_batch: int
    accumulation: int
    seed: int

    @property
    def micro_batch(self) -> int:
        """Samples of one micro-batch of one rank."""
        return self.global_batch // (self.world_size * self.accumulation)

    def positions(self, micro: int) -> range:
        """Return this rank's positions in micro-batch number ``micro`` (0 … accumulation - 1)."""
        first = (micro * self.world_size + self.rank) * self.micro_batch
        return range(first, first + self.micro_batch)


@runtime_checkable
class Workload(Protocol):
    """A model, its data, its loss, its evaluation. Constructed as ``Class(size=…, data=…, **options)``."""

    traits: WorkloadTraits

    def build(self) -> nn.Module:
        """Return the model; must work under ``torch.device("meta")`` too."""
        ...

    def initialise(self, name: str, tensor: Tensor, seed: int) -> None:
        """Fill the named parameter or persistent buffer in place, from seed and name alone."""
        ...

    def batches(self, shard: DataShard) -> Iterator[Batch]:
        """Yield this rank's micro-batches without end, ``shard.accumulation`` of them a step."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss, shape (), the mean over the micro-batch."""
        ...

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return metrics on held-out data. Called on every rank, in eval mode and without gradients."""
        ...


@runtime_checkable
class OptimizerOnlyWorkload(Workload, Protocol):
    """A workload whose traits say ``optimizer_only``."""

    def gradients(self, model: nn.Module, batch: Batch) -> None:
        """Set a fresh ``.grad`` on every parameter."""
        ...


Role = Literal["matrix", "embedding", "head", "vector", "sparse"]


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that an optimizer treats alike.

    Attributes:
        names: fully qualified, without wrappers' prefixes.
        parameters: the tensors, in the order of names.
        role: ``matrix``: 2-D or more, inside the model; ``vector``: scalars, biases, norms; and so on.
        decay: whether weight decay applies.
        lr_scale: factor on the run's learning rate.
    """

    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    role: Role
    decay: bool = True
    lr_scale: float = 1.0


class OptimizerTraits(BaseModel):
    """What a plan needs to know of an implementation."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    algorithm: str
    """``adamw``; implementations of one algorithm must give the same losses. Out of tree: the class's name."""
    granularity: Literal["element", "tensor", "matrix", "model", "undeclared"]
    """The unit that an update depends on: what a strategy may split."""
    closure: bool = False
    """``step`` takes a closure that clears gradients, computes the loss and its gradients and returns the loss. It
    finds no gradients on entry, which is torch's convention (`harness.stepping`)."""
    gradients_on_entry: bool | None = None
    """With ``closure``: ``step`` uses the gradients that it finds on entry, as after ``loss.backward()``; the
    closure is evaluated once before it. False: it needs none, though it uses what it finds. None: tried, and
    refused where it uses them."""
    loss: bool = False
    """``step`` takes the batch's loss, the mean over all ranks, as ``loss``."""
    matrices_only: bool | None = None
    """The class takes the 2-D weights inside the model only, and ``rest`` the others; None: tried, where its
    constructor raises over all of them."""
    rest: str = "adamw/fused"
    """The optimizer of what is no such matrix."""
    rest_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Its options, and ``lr``; without that it has the run's, else its own."""
    group_flags: dict[str, Role] = Field(default_factory=dict)
    """Keys of the parameter groups that say whether their tensors are of a role: ``{"use_muon": "matrix"}``."""
    takes: Literal["groups", "named_parameters", "model"] | None = None
    """What the constructor is given first; None: as the name of its first parameter says. Of ``model`` it gets a
    module that holds the parameters under their names, and nothing else."""
    sparse_gradients: Literal["no", "yes", "only", "undeclared"] = "no"
    owns_reduction: bool = False
    """Averages gradients over ranks itself: no DDP around it."""
    takes_grad_scaler: bool = False
    """Its step is handed fp16's gradient scaler and divides by the scale itself, after the engine has done so."""
    gradients_in_backward: bool = False
    """Takes gradients by hooks while backward runs: a step on gradients that were set otherwise does nothing."""
    default_lr: float | None = None
    """Peak learning rate unless the run names one: the algorithm's own; None: the constructor's."""
    state_dtypes: tuple[str, ...] = ("float32",)
    """Of the state over fp32 parameters; a narrower one than float32 means that updates are rounded to it."""
    state_tensors: float = 0.0
    """Optimizer state in multiples of the parameters' elements, for the memory estimate: AdamW 2."""
    state_bytes: float | None = None
    """State in bytes a parameter's element where it is no float32: 2 for two moments in 8 bits. None: 4 for each
    of ``state_tensors``, or as wide as the parameters where ``state_follows_parameters``."""
    state_follows_parameters: bool = True
    """Over bf16 parameters the state is bf16 too, as in torch.optim."""
    parameter_dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Of parameters that it can step on."""
    dtensor: Literal["yes", "no", "undeclared"] = "yes"
    """Whether it steps on DTensors, the shards of fsdp2; kernels that read raw addresses don't."""
    own_initial_values: bool = False
    """The first step replaces the parameters by initial values of its own, drawn by each tensor's place in the
    list that it was given: right only where it is given the whole list of whole, plain tensors."""
    strides: Literal["any", "alike", "contiguous"] = "any"
    """How parameters and gradients must lie. ``alike``: a step reads each gradient by its parameter's strides,
    which are without gaps, as autograd leaves them. ``contiguous``: both must be. A run looks."""
    capturable: bool = False
    """The step can be captured in a CUDA graph (on CUDA)."""
    consumes_gradients: bool = False
    """``step`` takes ``.grad`` away: set to None afterwards, whoever else wants to read it."""
    compiled: bool = False
    """The step goes through torch.compile when it first runs."""
    evaluation_switch: bool = False
    """Has ``train()`` and ``eval()``: the parameters to evaluate are other than those to train (schedule-free)."""
    kernels: tuple[str, ...] = ()
    """Kernels compiled on first use, as ``harness.kernels`` names them; such cells run last."""


class Optimizer(Protocol):
    """One implementation of one algorithm."""

    name: str
    """``algorithm/implementation``, or ``package.module:Class``."""
    target: str
    """``module:Class`` that is constructed; the probe reads its signature."""
    traits: OptimizerTraits

    def unsupported(self, spec: RunSpec, workload: WorkloadTraits, machine: Machine) -> str | None:
        """Return why this cannot run on that machine and what to do about it, or None."""
        ...

    def options(self, machine: Machine) -> Mapping[str, JsonValue] | None:
        """Return the hyperparameters that `RunSpec.optimizer_options` may name, with defaults; None: any."""
        ...

    def build(self, groups: Sequence[ParamGroup], spec: RunSpec) -> torch.optim.Optimizer:
        """Construct it over the groups, every flag explicit."""
        ...

    def deepspeed_config(self, spec: RunSpec) -> Mapping[str, JsonValue] | None:
        """Return the ``optimizer`` section of a DeepSpeed config that makes DeepSpeed construct this very code.

        None: the strategy builds it and passes it in as a client optimizer. Where the method is absent: None.
        """
        ...

    def disproved(self, optimizer: torch.optim.Optimizer) -> str | None:
        """After the warm-up: why what ran is not what the name says (nothing was compiled, say), or None."""
        ...


class Phase(enum.Enum):
    """What begins at a mark. A phase lasts until the next mark; a step's phases of one name add up."""

    DATA = "data"
    FORWARD = "forward"
    BACKWARD = "backward"
    """Gradient reduction included, where it overlaps."""
    OPTIMIZER = "optimizer"
    """Clipping and update."""
    WORK = "work"
    """Forward, backward and update that the engine cannot separate."""
    END = "end"
    """Nothing: the step is over."""


Category = Literal["parameters", "gradients", "master", "state", "buffers", "communication"]
"""What an engine can claim for its tensors. Of memory that several claim, the first named in this order counts."""

Collective = Literal["all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "reduce"]


@dataclass(frozen=True)
class StepResult:
    """What one step left behind.

    Attributes:
        loss: mean over this rank's micro-batches, shape (), detached, still on the device; None without a loss.
        grad_norm: global L2 norm before clipping, shape (), on the device; None where it was not computed.
        skipped: the update was left out (an overflow under loss scaling).
    """

    loss: Tensor | None
    grad_norm: Tensor | None = None
    skipped: bool = False


@dataclass(frozen=True)
class World:
    """This process among the ranks.

    Attributes:
        rank: 0 … size - 1.
        size: number of ranks.
        local_rank: number on this node.
        device: where this rank computes.
        backend: of torch.distributed; None: one rank without a process group.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    backend: str | None


class Engine(Protocol):
    """A model and its optimizer under one strategy. It owns a whole step."""

    def train_step(self, micro_batches: Sequence[Batch], mark: Callable[[Phase], None]) -> StepResult:
        """Do one optimizer step over the micro-batches (on the device), marking each phase as it begins."""
        ...

    def set_lr(self, factor: float) -> None:
        """Set every group's learning rate to ``factor`` times its peak."""
        ...

    def evaluating(self) -> AbstractContextManager[nn.Module]:
        """Lend the model for evaluation: eval mode, no gradients."""
        ...

    def tensors(self) -> Iterable[tuple[Category, Tensor]]:
        """Yield this rank's live tensors by category."""
        ...

    def facts(self) -> dict[str, JsonValue]:
        """Return classes, flags and arguments that really ran."""
        ...

    def verify_claims(self) -> None:
        """Raise UnsupportedError where what ran is not what the optimizer's name says."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Return model and optimizer state."""
        ...

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` returned."""
        ...

    def close(self) -> None:
        """Release what the engine holds."""
        ...


@dataclass(frozen=True)
class Part:
    """What one rank holds of one parameter.

    Attributes:
        name: as in the model.
        tensor: the live elements, plain, without padding; none of them: empty.
        start: number of the first of them in the whole parameter, flattened.
        total: elements of the whole parameter.
    """

    name: str
    tensor: Tensor
    start: int
    total: int


@runtime_checkable
class HoldsParts(Protocol):
    """An engine that can tell which part of each parameter is here; the checks inside a run ask."""

    def parts(self) -> Iterable[Part]:
        """Yield every parameter of the model, in its order, the same one on every rank."""
        ...


@runtime_checkable
class Remarks(Protocol):
    """An engine that knows what a reader should know before trusting its numbers."""

    def remarks(self) -> Iterable[str]:
        """Return a sentence for each; they become notes of the run."""
        ...


@runtime_checkable
class HasModules(Protocol):
    """An engine that can tell which modules are the model's; what hangs on them is no optimizer's."""

    def modules(self) -> Iterable[nn.Module]:
        """Return the model and every module in it and around it."""
        ...


class Strategy(Protocol):
    """How a model is spread over ranks.

    One that also has ``partitioned``, a tuple of categories, holds a share of those on each rank: the memory
    estimate knows. One that also has ``kernels(spec)`` needs those compiled, beside the optimizer's. One that also
    has ``packages`` runs their code: a proof holds for their versions. One that also has a true ``offload`` keeps
    what the optimizer steps on in host memory. One that also has ``units(name, traits, facts)`` tells of the
    submodules that it shards one by one what a reader should know, or None; ``facts`` were measured of the model
    (`harness.model_facts`), if it was.
    """

    name: str
    options: Mapping[str, JsonValue]
    """What `RunSpec.strategy_options` may name, with defaults."""
    one_rank: bool
    """Runs on one rank only; a spec without a world size then gets 1."""

    def unsupported(
        self, spec: RunSpec, workload: WorkloadTraits, optimizer: OptimizerTraits, machine: Machine
    ) -> str | None:
        """Return why this cell cannot run and what would fix it, or None.

        The precision is among what it decides; what no strategy can do on that device (fp16 on a CPU) or the
        optimizer cannot step on is refused before it is asked (`harness.precision`).
        """
        ...

    def start(self, workload: Workload, optimizer: Optimizer, spec: RunSpec, world: World) -> Engine:
        """Build, initialise and wrap the model and its optimizer."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What theory says of one rank's step, to stand beside what was measured.

    Attributes:
        held_bytes: the largest number of bytes of each category at any time of a step. A category that is left out
            is not predicted.
        payload_bytes: bytes of the tensors handed to each collective in one step: of the whole (unsharded) tensor
            for all-reduce, broadcast, all-gather (its output) and reduce-scatter (its input).
    """

    held_bytes: Mapping[Category, float]
    payload_bytes: Mapping[Collective, float]


@runtime_checkable
class Predicts(Protocol):
    """A strategy that knows its own partition rule."""

    def predict(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        spec: RunSpec,
        optimizer: OptimizerTraits,
        world: World,
        blocks: tuple[str, ...],
    ) -> Prediction:
        """Return what rank ``world.rank`` holds and sends.

        Args:
            shapes: of the trainable parameters, by name, in the model's order.
            spec: with every default resolved.
            optimizer: for its state.
            world: the rank, and how many there are.
            blocks: names of the submodules that are sharded one by one.
        """
        ...


@dataclass(frozen=True)
class Reading:
    """What a collector reports: one number, or the series of samples since its last report.

    Attributes:
        info: what the metric means.
        value: of the whole run; unused when ``series`` is given.
        series: one sample a step in order, or one for each of ``steps``.
        steps: the step counts after which the samples were taken; None: consecutive steps.
    """

    info: MetricInfo
    value: float | int | None = None
    series: Sequence[float | int | None] | None = None
    steps: Sequence[int] | None = None


@dataclass(frozen=True)
class Observed:
    """What collectors are told about the run that they observe.

    Attributes:
        spec: with every default resolved.
        workload: its traits.
        engine: for walking tensors; never called during a step.
        world: this rank.
        process_started_unix_s: when the launcher started this world; None: unknown.
        flops_per_step: of the whole job, counted once; None: unknown.
    """

    spec: RunSpec
    workload: WorkloadTraits
    engine: Engine
    world: World
    process_started_unix_s: float | None = None
    flops_per_step: int | None = None


class Collector(Protocol):
    """Observes a run. Constructed without arguments.

    What it cannot find out it reports as None. An exception of its own ends the run as failed, and no other run:
    numbers taken beside a broken observer are not to be trusted. One that also has `MarksPhases.mark` or
    `ObservesSteps.observe` is called within steps; the others cost a step nothing.
    """

    def start(self, observed: Observed) -> None:
        """Begin; called once, before the first step."""
        ...

    def turn(self) -> Iterable[Reading]:
        """Report what came since the last turn; the device has been synchronised."""
        ...

    def evaluated(self, step: int, train_time_s: float, values: Mapping[str, float]) -> None:
        """Take an evaluation made after ``step`` steps and ``train_time_s`` of training."""
        ...

    def stop(self) -> Iterable[Reading]:
        """Report what is known once the last step is done."""
        ...


@runtime_checkable
class MarksPhases(Protocol):
    """A collector that looks at the clock within steps."""

    def mark(self, phase: Phase, step: int) -> None:
        """Note that ``phase`` begins in step number ``step`` (from 0). Never synchronises, reads no file."""
        ...


@runtime_checkable
class ObservesSteps(Protocol):
    """A collector that looks at what each step leaves behind."""

    def observe(self, step: int, result: StepResult) -> None:
        """Take it, without touching the device."""
        ...
