"""What a proof found: checks, their errors beside their bounds, and for what exactly they hold."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

CERTIFICATE_VERSION = 2
"""Raised whenever trials, bounds or references change what they would find: older certificates then expire."""

AMPLIFIED = "rounding is amplified"
"""Name of the check that records what a change of the gradients' last bits makes of an update."""

Verdict = Literal["passed", "wrong", "recorded", "not applicable"]


class Check(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str
    """``update``, ``resumed from a saved state``, ``every gradient is used``, …"""
    verdict: Verdict
    error: float | None = None
    """Largest difference from the reference relative to the size of the update, 1 = the update itself."""
    bound: float | None = None
    step: int | None = None
    """Of the largest error, from 1."""
    tensor: str | None = None
    """Of the largest error."""
    detail: str | None = None
    """What was found, in words."""
    remedy: str | None = None
    """What the user may do about it."""


class Certificate(BaseModel):
    """What was proved of one optimizer over one kind of parameter container in one precision."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, ser_json_inf_nan="strings")

    kind: Literal["certificate"] = "certificate"
    version: int = CERTIFICATE_VERSION
    optimizer: str
    strategy: str
    """``single`` is plain tensors; ``fsdp2`` DTensors; ``zero1`` flat partitions, through the real engines."""
    precision: str
    world_size: int = 1
    options: dict[str, JsonValue] = Field(default_factory=dict)
    like: str | None = None
    """The algorithm it was held to by ``--like``."""
    reference: str | None
    """Source of the reference it was held to; None: only the checks that need none were made."""
    variants: dict[str, JsonValue] = Field(default_factory=dict)
    key: str = ""
    """Hash of all that it holds for: see `harness.verification.identity`."""
    outcome: Literal["passed", "wrong", "unsupported", "failed"]
    reason: str | None = None
    """Unless passed: what is wrong, can't be, or went wrong."""
    undeclared: bool = False
    """Of ``unsupported``: its traits leave out what its step needs, so that a run would train something else."""
    cause: str | None = None
    """Of ``wrong``: the mistake that reproduces what was seen, if one does."""
    checks: tuple[Check, ...] = ()
    subject: dict[str, JsonValue] = Field(default_factory=dict)
    """Class, version and source hash of the implementation, torch build, device."""
    took_s: float | None = None
    made_unix_s: float | None = None

    @property
    def amplification(self) -> float | None:
        """What a change of the gradients' last bits makes of an update, relative to it; None: not measured."""
        return next((check.error for check in self.checks if check.name == AMPLIFIED), None)

    @property
    def worst(self) -> Check | None:
        """The judged check whose error comes closest to its bound, or exceeds it most."""
        judged = [check for check in self.checks if check.verdict in {"passed", "wrong"}]
        measured = [check for check in judged if check.error is not None and check.bound]
        return max(measured, key=lambda check: check.error / check.bound, default=None)  # type: ignore[operator]
