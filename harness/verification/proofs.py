"""What a run's record says of the proof that it rests on."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from harness.interfaces import OptimizerTraits
    from harness.record import Outcome
    from harness.spec import RunSpec
    from harness.verification.certificate import Certificate

NOT_ASKED: Mapping[str, JsonValue] = MappingProxyType({"outcome": "not verified", "reason": "--no-verify"})
"""Of a run whose optimizer was not to be proved."""

NOT_PROVED: Mapping[str, JsonValue] = MappingProxyType(
    {"outcome": "not verified", "reason": "it steps within a world only, where verify with --strategy proves it"}
)
"""Of a run whose optimizer has no proof over plain tensors of one rank."""


def unprovable(spec: RunSpec, traits: OptimizerTraits) -> str | None:
    """Return why no trial can be made of an optimizer, or None."""
    if traits.gradients_in_backward:
        return (
            f"{spec.optimizer} takes gradients by hooks while backward runs, and trials over plain tensors have "
            "none; its loss curve beside another implementation's tells whether it is right"
        )
    return None


def of_run(name: str, made: Certificate) -> dict[str, JsonValue]:
    """Return what a run's record says of a certificate.

    Args:
        name: of its folder in the store; empty: it was not stored.
        made: the certificate.
    """
    return {
        "certificate": name or None,
        "outcome": made.outcome,
        "reason": made.reason,
        "cause": made.cause,
        "undeclared": made.undeclared,
        "reference": made.reference,
        "amplification": made.amplification,
    }


def barred(proof: Mapping[str, JsonValue]) -> tuple[Outcome, str] | None:
    """Return outcome and reason of a run that must not be started, or believed; None: nothing is found against it.

    Args:
        proof: as `of_run` returns it.
    """
    if proof.get("outcome") == "unsupported" and proof.get("undeclared"):
        return "unsupported", str(proof.get("reason"))
    if proof.get("outcome") != "wrong":
        return None
    cause = f"likely cause: {proof['cause']}; " if proof.get("cause") else ""
    return "wrong", (
        f"optbench verify found the optimizer wrong: {cause}{proof.get('reason')} "
        f"({proof.get('certificate')}); --no-verify runs it all the same"
    )
