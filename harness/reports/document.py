"""A comparison as one JSON document: every number finite or null."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.reports.beside import of_launches

if TYPE_CHECKING:
    from harness.comparison.model import Analysis, Comparison, Estimate, Pair


def document(analysis: Analysis, comparison: Comparison) -> dict[str, Any]:
    """Return what ``--json`` prints: an entry for each arm against the first, ratios as B/A."""
    design = comparison.design
    return {
        "kind": "comparison",
        "id": analysis.comparison,
        "outcome": comparison.outcome,
        "reason": comparison.reason,
        "margin": finite(design.margin),
        "alpha": finite(design.alpha),
        "spent_s": finite(analysis.spent_s),
        "budget_s": finite(design.budget_s),
        "arms": [_arm(comparison, index) for index in range(len(comparison.arms))],
        "comparisons": [_pair(pair, analysis) for pair in analysis.pairs],
        "invalid": [
            {"launch": launch.number, "reason": launch.invalid}
            for launch in comparison.launches
            if launch.invalid is not None
        ],
        "notes": [*analysis.notes, *of_launches(comparison)],
    }


def _arm(comparison: Comparison, index: int) -> dict[str, Any]:
    """Return what an arm is, where it ran, and what is proved of its optimizer (null: nobody has looked yet)."""
    arm = comparison.arms[index]
    facts = comparison.facts[index] if index < len(comparison.facts) else {}
    return {
        "name": arm.name,
        "env": dict(arm.env),
        "python": arm.python,
        "path": arm.path,
        "commit": facts.get("commit"),
        "path_commit": facts.get("path_commit"),
        "verification": facts.get("verification"),
    }


def finite(value: float | None) -> float | None:
    """Return the number, or None for what JSON has no word for."""
    return value if value is not None and math.isfinite(value) else None


def _pair(pair: Pair, analysis: Analysis) -> dict[str, Any]:
    return {
        "arms": list(pair.arms),
        "verdict": pair.verdict,
        "metrics": {name: _estimate(found) for name, found in pair.metrics.items()},
        "launches": pair.launches,
        "invalid_launches": pair.invalid_launches,
        "decided_at": pair.decided_at,
        "spent_s": finite(analysis.spent_s),
        "self_check": pair.is_self_check,
        "amdahl": pair.amdahl,
        "payback_steps": pair.payback_steps,
    }


def _estimate(found: Estimate) -> dict[str, Any]:
    return {
        "ratio": finite(found.ratio),
        "low": finite(found.low),
        "high": finite(found.high),
        "verdict": found.verdict,
        "smallest_effect": finite(found.smallest_effect),
        "launches": [finite(each) for each in found.launches],
        "stalls": list(found.stalls) if found.stalls is not None else None,
        "p99_s": [finite(each) for each in found.p99_s] if found.p99_s is not None else None,
    }
