"""One line a run, certificate and comparison of a check's stores: ``python summary.py WORK``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MIB = 2**20
ADAMW_BYTES = 28
"""What AdamW in fp32 moves an element: parameter and two moments in and out, the gradient in."""


def main(work: Path) -> None:
    for store in sorted(work.glob("results-*")):
        print(f"== {store.name}")
        for file in sorted(store.glob("*/manifest.json")):
            try:
                for line in lines(json.loads(file.read_text(encoding="utf-8"))):
                    print(f"  {line}")
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"  {file}: {type(error).__name__}: {error}")


def lines(record: dict[str, Any]) -> list[str]:
    kinds = {"certificate": certificate, "run": run, "comparison": comparison}
    write = kinds.get(record.get("kind", ""))
    return [] if write is None else write(record)


def certificate(record: dict[str, Any]) -> list[str]:
    ratios = [((each.get("error") or 0) / (each.get("bound") or 1e9), each["name"]) for each in record["checks"]]
    worst, check = max(ratios, default=(0.0, ""))
    reason = record.get("cause") or record.get("reason") or ""
    named = f"{record['optimizer']:28s} {record['strategy']:8s} {record['outcome']:11s}"
    return [f"{named} error/bound {worst:.2f} {check:24.24s} {reason[:150]}"]


def run(record: dict[str, Any]) -> list[str]:
    spec, metrics = record["spec"], record.get("metrics", {})

    def value(name: str) -> float | None:
        found = metrics.get(name)
        return found.get("value") if isinstance(found, dict) else None

    named = f"{spec['workload']} {spec['size'] or ''} {spec['optimizer']} {spec['strategy']} {spec['precision']}"
    said = [f"{named}: {record['outcome']}"]
    if record.get("reason"):
        said.append(record["reason"][:200])
    said.append(f"step {_ms(value('step_time_s'))}, optimizer {_ms(value('optimizer_time_s'))}")
    elements, took = (value("parameter_bytes") or 0) / 4, value("optimizer_time_s")
    if spec["workload"] == "parameters" and spec["precision"] == "fp32" and took:
        said.append(f"{ADAMW_BYTES * elements / took / 1e9:.0f} GB/s")
    sizes = {
        "peak": "peak_allocated_bytes",
        "parameters": "parameter_bytes",
        "state": "optimizer_state_bytes",
        "ledger": "ledger_peak_bytes",
        "allocator": "ledger_allocator_peak_bytes",
        "unattributed": "ledger_unattributed_bytes",
    }
    said.append("MiB: " + ", ".join(f"{name} {_mib(value(metric))}" for name, metric in sizes.items()))
    others = ("mfu", "energy_joules", "gpu_power_watts", "train_loss")
    said.append(", ".join(f"{name} {value(name):.4g}" for name in others if value(name) is not None))
    checks = ((record.get("facts") or {}).get("checks") or {}).items()
    wrong = [
        f"wrong: {name}: {found['detail'][:120]}" for name, found in checks if found.get("verdict") == "wrong"
    ]
    notes = [f"note: {str(note)[:200]}" for note in (record.get("notes") or [])[:3]]
    return [" | ".join(each for each in said if each), *(f"  {each}" for each in (*wrong, *notes))]


def comparison(record: dict[str, Any]) -> list[str]:
    outcome = f"comparison {record['outcome']} {record.get('reason') or ''}".rstrip()
    found = [f"{outcome}: {len(record['launches'])} launches, {record['spent_s']:.0f} s"]
    for launch in record["launches"]:
        steps: dict[int, list[float]] = {}
        for turn in launch["turns"]:
            steps.setdefault(turn["arm"], []).append(sum(turn["step_time_s"]) / len(turn["step_time_s"]))
        times = ", ".join(
            f"{record['arms'][arm]['name']} {_ms(sum(all_) / len(all_))}" for arm, all_ in sorted(steps.items())
        )
        peaks = ", ".join(_mib(peak) for peak in launch["peak_memory_bytes"])
        verdict = f"invalid: {launch['invalid']}" if launch["invalid"] else "valid"
        how = "resident" if launch["resident"] else "one at a time"
        found.append(f"  {launch['kind']}, {how}, {verdict}: {times}; peaks {peaks} MiB; {launch['took_s']:.1f} s")
    return found


def _mib(size: float | None) -> str:
    return "-" if size is None else f"{size / MIB:.0f}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f} ms"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
