"""Machine: what can run here, as data. Written by a probe on the machine, read anywhere, torch or not."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from harness.model_facts import ModelFacts  # noqa: TC001  # a field's type

MACHINE_SCHEMA_VERSION = 1


class Accelerator(BaseModel):
    """One device of torch.accelerator."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    index: int
    type: str
    """torch's device type: cuda (ROCm too), xpu, mps."""
    name: str
    memory_bytes: int | None = None
    capability: str | None = None
    """Compute capability such as 9.0, or the architecture's name."""


class Constructor(BaseModel):
    """How a class is constructed, or why it cannot be imported."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword name -> default. The parameters to optimise are left out."""
    required: tuple[str, ...] = ()
    """Keywords without a default, ``lr`` of Apex's FusedSGD say."""
    open_ended: bool = False
    """Takes ``**kwargs``: names cannot be checked beforehand."""
    error: str | None = None
    """Why it cannot be imported, or is no torch.optim.Optimizer; None: it can be used."""


class Machine(BaseModel):
    """What a probe found. ``plan`` decides from this alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    schema_version: int = MACHINE_SCHEMA_VERSION
    hostname: str
    system: str
    """Operating system, its release and the processor architecture."""
    cpu: str
    """The processor's model name."""
    cores: int
    """Cores this process may use: affinity and cgroup quota counted in, at least 1."""
    memory_bytes: int
    """Memory this process may use: the smaller of the machine's and the cgroup's limit."""
    python: str
    torch: str | None
    """torch's version with its build suffix; None: not installed."""
    torch_build: dict[str, JsonValue] = Field(default_factory=dict)
    """cuda, hip, xpu, abi, git version, distributed backends, cpu capability."""
    accelerators: tuple[Accelerator, ...] = ()
    compilers: dict[str, str | None] = Field(default_factory=dict)
    """c++, ninja, nvcc -> version; None: not found."""
    packages: dict[str, str | None] = Field(default_factory=dict)
    """Distribution -> version; None: not installed."""
    constructors: dict[str, Constructor] = Field(default_factory=dict)
    """``module:Class`` of every registered optimizer (and of those asked for) -> its constructor."""
    families: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """Family -> what its own ``probe()`` found: Apex's kernels, DeepSpeed's ops."""
    workloads: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """``module:Class`` of out-of-tree workloads asked for -> their traits, or ``{"error": …}``."""
    models: dict[str, ModelFacts] = Field(default_factory=dict)
    """`harness.model_facts.model_key` -> what was measured of the model."""

    @property
    def device_type(self) -> str:
        """The device that a run uses unless told otherwise."""
        return self.accelerators[0].type if self.accelerators else "cpu"
