"""Comparisons made by hand, for the tests of what is shown of them."""

from __future__ import annotations

from harness.comparison.model import Analysis, Arm, Comparison, Design, Estimate, Launch, Pair, Turn, WarmUp
from harness.spec import RunSpec

NAMES = ("adamw/foreach", "adamw/fused")


def spec(optimizer: str, **more) -> RunSpec:
    base = {"workload": "gpt", "size": "nano", "strategy": "ddp", "world_size": 2, "global_batch": 16}
    return RunSpec.model_validate({**base, "optimizer": optimizer, **more})


def design(**more) -> Design:
    base = {"looks": (4, 6, 8), "margin": 0.025, "rounds": 20, "turn_steps": 3, "budget_s": 120.0, "seed": 0}
    return Design.model_validate({**base, **more})


def launch(number: int, arms: int = 2, **more) -> Launch:
    turns = tuple(
        Turn(arm=arm, round=round_, position=arm, started_s=0.1 * round_, step_time_s=(0.0712 / (arm + 1), 0.07))
        for round_ in range(2)
        for arm in range(arms)
    )
    warm_up = WarmUp(step_time_s=(0.2, 0.07, 0.07), steady_from=1, build_s=1.5)
    base = {
        "number": number, "kind": "forked", "warm_ups": (warm_up,) * arms, "turns": turns,
        "peak_memory_bytes": (434_000_000,) * arms, "took_s": 12.0,
    }  # fmt: skip
    return Launch.model_validate({**base, **more})


def comparison(names=NAMES, launches=None, **more) -> Comparison:
    optimizers = [name if "/" in name and len(name) < 30 else "adamw/fused" for name in names]
    base = {
        "arms": tuple(Arm(name=name, spec=spec(opt)) for name, opt in zip(names, optimizers, strict=True)),
        "design": design(),
        "launches": tuple(launch(n, len(names)) for n in range(6)) if launches is None else launches,
        "started_unix_s": 1795413600.0,
        "spent_s": 73.2,
    }
    return Comparison.model_validate({**base, **more})


def estimate(ratio, low, high, verdict, smallest=0.012, **more) -> Estimate:
    return Estimate(ratio=ratio, low=low, high=high, verdict=verdict, smallest_effect=smallest, **more)


def metrics(verdict="faster") -> dict[str, Estimate]:
    return {
        "peak_memory_bytes": estimate(0.81, 0.808, 0.812, "faster", 0.003),
        "step_time_s": estimate(0.923, 0.913, 0.934, verdict, stalls=(3, 1), p99_s=(0.121, 0.103)),
        "optimizer_s": estimate(0.523, 0.503, 0.544, "faster", 0.04),
        "forward_s": estimate(1.001, 0.996, 1.006, "equivalent", 0.005),
        "backward_s": estimate(1.01, 0.97, 1.05, "inconclusive", 0.04),
        "data_s": estimate(None, None, None, "inconclusive", None),
        "cpu_time_s": estimate(1.082, 1.061, 1.103, "slower", 0.02),
    }


def pair(names=NAMES, verdict="faster", **more) -> Pair:
    base = {"arms": names, "verdict": verdict, "metrics": metrics(verdict), "launches": 6, "decided_at": 6}
    return Pair.model_validate({**base, **more})


def analysis(*pairs: Pair, **more) -> Analysis:
    return Analysis.model_validate({"pairs": pairs or (pair(),), "spent_s": 73.2, **more})


AMDAHL = "the optimizer is 1.91x faster, the step 1.08x"

PLAIN = (analysis(pair(amdahl=AMDAHL, payback_steps=1234)), comparison())

FOUR = ("adamw/foreach", "adamw/fused", "adamw/compiled", "adamw/foreach again")

TROUBLED = (
    analysis(
        pair(FOUR[:2]),
        pair((FOUR[0], FOUR[2]), "inconclusive", decided_at=None, metrics={
            "step_time_s": estimate(0.99, 0.94, 1.04, "inconclusive", 0.05)}),
        pair((FOUR[0], FOUR[3]), "slower", is_self_check=True, metrics={
            "step_time_s": estimate(1.04, 1.03, 1.05, "slower", 0.012)}),
        comparison="comparison-20261123T060000-0a1b2c3d4e5f6g7h",
    ),
    comparison(
        FOUR,
        (
            launch(0, 4, invalid="steal took 12 % of the cores"),
            launch(1, 4, resident=False),
            launch(2, 4, warm_ups=(WarmUp(step_time_s=(0.2, 0.1), steady_from=None, build_s=2.0),) * 4),
            launch(3, 4, notes=("3 stalls in adamw/compiled",)),
            launch(4, 4, invalid="steal took 12 % of the cores"),
        ),
        outcome="interrupted",
        reason="stopped by the user",
    ),
)  # fmt: skip
