"""Facts of the CUDA path that no CPU shows, a JSON line each: ``python facts.py OUT``. A failure is a line too."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20
FACTS: list[Callable[[], dict[str, Any]]] = []
"""In the order in which they are looked at: the first one must run before anything uses the device."""


def fact(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    FACTS.append(function)
    return function


def main(out: Path) -> int:
    failed = False
    with out.open("w", encoding="utf-8") as lines:
        for each in FACTS:
            began = time.monotonic()
            try:
                found = each()
            except BaseException as error:  # noqa: BLE001  # SystemExit of a library's too: a line
                failed = True
                found = {"error": said(error), "at": traceback.format_exc().splitlines()[-3:]}
            line = json.dumps({"fact": each.__name__, "took_s": round(time.monotonic() - began, 2), **found})
            print(line, flush=True)
            print(line, file=lines, flush=True)
            gc.collect()
            with contextlib.suppress(Exception):
                torch.cuda.empty_cache()
    return int(failed)


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def device() -> torch.device:
    return torch.device("cuda", 0)


# --- processes ---


@fact
def a_fork_can_use_the_device_after_the_parents_imports() -> dict[str, Any]:
    """The parent of a comparison's ranks imports these and forks."""
    found = {"after import torch": _fork()}
    importlib.import_module("torch._dynamo")
    found["after import torch._dynamo"] = _fork()
    importlib.import_module("torch.distributed.fsdp")
    importlib.import_module("torch.distributed.optim")
    found["after import torch.distributed.fsdp and .optim"] = _fork()
    return found


def _fork() -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            total = float(torch.ones(3, device="cuda").sum())
            answer = f"bad_fork={torch.cuda._is_in_bad_fork()} sum={total}"
        except BaseException as error:  # noqa: BLE001  # this process ends here whatever happened
            answer = said(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return pipe.read()


# --- the card ---


@fact
def machine() -> dict[str, Any]:
    found = torch.cuda.get_device_properties(device())
    cards = Path("/proc/driver/nvidia/gpus").glob("*/information")
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": list(torch.cuda.nccl.version()),
        "python": sys.version.split()[0],
        "name": found.name,
        "uuid": str(found.uuid),
        "capability": f"{found.major}.{found.minor}",
        "l2_mib": found.L2_cache_size / MIB,
        "multiprocessors": found.multi_processor_count,
        "memory_gib": found.total_memory / 2**30,
        "nodes": sorted(str(each) for each in Path("/dev").glob("nvidia*")),
        "proc": [each.read_text(encoding="utf-8") for each in cards][:1],
    }


@fact
def nvml_finds_the_device_and_answers() -> dict[str, Any]:
    from harness import nvml
    from harness.collectors.nvml import Gauge

    library = nvml.load()
    if library is None:
        return {"library": None}
    handle = library.device(device())
    gauge = Gauge(library, handle)
    uuid = torch.cuda.get_device_properties(device()).uuid
    energy, began = gauge.energy(), time.perf_counter()
    square = torch.randn(8192, 8192, device=device(), dtype=torch.bfloat16)
    while time.perf_counter() - began < 1.0:
        square @ square
        torch.cuda.synchronize()
    spent = gauge.energy()
    return {
        "handle": handle is not None,
        "by_prefix": {
            each: library.ask("DeviceGetHandleByUUID", f"{each}{uuid}") is not None
            for each in ("GPU-", "MIG-", "")
        },
        "series": gauge.series(),
        "reasons": gauge.reasons(),
        "energy_of_one_busy_second_joules": None if spent is None or energy is None else spent - energy,
    }


@fact
def the_energy_counter_moves_in_steps() -> dict[str, Any]:
    from harness import nvml
    from harness.collectors.nvml import Gauge

    library = nvml.load()
    if library is None:
        return {"library": None}
    gauge = Gauge(library, library.device(device()))
    seen, last, began = [], gauge.energy(), time.perf_counter()
    while time.perf_counter() - began < 1.5:
        now = gauge.energy()
        if now != last:
            seen.append(time.perf_counter() - began)
            last = now
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(seen))
    return {"changes": len(seen), "median_gap_s": gaps[len(gaps) // 2] if gaps else None}


# --- clocks and arithmetic ---


@fact
def events_agree_with_the_host() -> dict[str, Any]:
    from harness.collectors.timing import EventClock

    clock = EventClock("cuda")
    square = torch.randn(4096, 4096, device=device())
    square @ square
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(21):
        clock.note()
        square @ square
    clock.note()
    torch.cuda.synchronize()
    host = time.perf_counter() - began
    once = clock.distances()
    clock.note()
    torch.cuda._sleep(int(1e7))
    clock.note()
    torch.cuda.synchronize()
    return {"events_s": sum(once), "host_s": host, "again_s": clock.distances()}


@fact
def arithmetic_is_what_the_precision_says() -> dict[str, Any]:
    left, right = torch.randn(1024, 1024, dtype=torch.float64), torch.randn(1024, 1024, dtype=torch.float64)
    images, kernels = (
        torch.randn(8, 64, 32, 32, dtype=torch.float64),
        torch.randn(64, 64, 3, 3, dtype=torch.float64),
    )
    product = left @ right
    convolved = torch.nn.functional.conv2d(images, kernels, padding=1)
    found: dict[str, Any] = {}
    for precision in ("fp32", "tf32", "bf16", "fp32"):
        set_arithmetic(precision)
        there = (left.float().to(device()) @ right.float().to(device())).double().cpu()
        over = torch.nn.functional.conv2d(images.float().to(device()), kernels.float().to(device()), padding=1)
        found[precision] = {
            "matmul": float((there - product).norm() / product.norm()),
            "conv": float((over.double().cpu() - convolved).norm() / convolved.norm()),
            "flags": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        }
    return found


def set_arithmetic(precision: str) -> None:
    from harness import world
    from harness.spec import RunSpec

    world.arithmetic(RunSpec(workload="gpt", optimizer="adamw/fused", precision=precision))


@fact
def pageable_copies_hold_the_host_up() -> dict[str, Any]:
    pageable = torch.randn(32, 3, 224, 224)
    found = {}
    for name, source in (("pageable", pageable), ("pinned", pageable.pin_memory())):
        source.to(device(), non_blocking=True)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            source.to(device(), non_blocking=True)
        host = (time.perf_counter() - began) / 10
        torch.cuda.synchronize()
        found[name] = {"host_s": host, "all_s": (time.perf_counter() - began) / 10}
    return {"mib": pageable.nbytes / MIB, **found}


# --- memory ---


@fact
def blocks_are_larger_than_what_was_asked_for() -> dict[str, Any]:
    """A large block is split only where more than 1 MiB would be left."""
    torch.cuda.empty_cache()
    kept = [torch.empty(size, device=device(), dtype=torch.uint8) for size in range(1_100_000, 9_900_000, 333_333)]
    rest = [
        block["size"] - block["requested_size"]
        for segment in torch.cuda.memory_snapshot()
        for block in segment["blocks"]
        if block["state"] == "active_allocated" and block["requested_size"] >= 1_100_000
    ]
    return {
        "asked": len(kept),
        "blocks": len(rest),
        "over_512_bytes": sum(each >= 512 for each in rest),
        "largest_rest_kib": max(rest, default=0) / 1024,
        "sum_mib": sum(rest) / MIB,
    }


@fact
def workspaces_of_matrix_products_are_tensors_of_nobody() -> dict[str, Any]:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    square = torch.randn(256, 256, device=device(), requires_grad=True)
    (square @ square).sum().backward()
    torch.cuda.synchronize()
    return {"beyond_tensors_mib": (torch.cuda.memory_allocated() - before - 2 * square.nbytes) / MIB}


@fact
def what_the_bandwidth_check_allocates_and_reaches() -> dict[str, Any]:
    from harness.checks import bandwidth

    torch.cuda.empty_cache()
    torch.accelerator.reset_peak_memory_stats(device())
    before = torch.accelerator.max_memory_allocated(device())
    reached = bandwidth.copy_bytes_per_s(device(), bandwidth.last_level_bytes(device()))
    peak = torch.accelerator.max_memory_allocated(device())
    source = torch.ones(1 << 31, dtype=torch.uint8, device=device())
    target, best = torch.empty_like(source), float("inf")
    for _ in range(6):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return {
        "check_bytes_per_s": reached,
        "copy_of_2_gib_bytes_per_s": 2 * source.numel() / best,
        "peak_added_mib": (peak - before) / MIB,
    }


@fact
def ranges_stand_among_kernels_in_a_trace() -> dict[str, Any]:
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile, record_function

    model = torch.nn.Linear(512, 512, device=device())
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    batch = torch.randn(64, 512, device=device())

    def step() -> None:
        with record_function("FSDP::all_gather (a range as FSDP2 records it)"):
            loss = model(batch).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities, record_shapes=True, profile_memory=True, acc_events=False) as traced:
        step()
        torch.cuda.synchronize()
    found: dict[str, set[str]] = {}
    for event in traced.profiler.kineto_results.events():
        if event.device_type() == DeviceType.CUDA:
            kind = "annotation" if event.is_user_annotation() else "kernel"
            found.setdefault(kind, set()).add(event.name()[:50])
    return {kind: sorted(names)[:8] for kind, names in found.items()}


# --- optimizers ---

ADAMWS = ("adamw/fused", "adamw/foreach", "adamw/compiled", "adamw/bitsandbytes", "adamw/deepspeed", "adamw/apex")


@fact
def errors_of_the_first_steps() -> dict[str, Any]:
    """Bias corrections come from powers in float32, at times in fast math: the first steps feel it most."""
    return {
        f"{name} weight_decay={decay}": _tried(lambda name=name, decay=decay: _first_steps(name, decay))
        for name in ADAMWS
        for decay in (0.0, 0.1)
    }


def _tried(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # noqa: BLE001  # what the library raised is the answer
        return said(error)


def _first_steps(name: str, decay: float) -> list[str]:
    from harness.interfaces import ParamGroup
    from harness.references.adam import adam
    from harness.registry import OPTIMIZERS
    from harness.spec import RunSpec

    options = {"weight_decay": decay}
    spec = RunSpec(workload="linear_regression", optimizer=name, lr=1e-2, optimizer_options=options)
    parameter = torch.nn.Parameter(0.05 * torch.randn(64, 63, device=device()))
    optimizer = OPTIMIZERS.get(name).build(
        [ParamGroup(("w",), (parameter,), "matrix", decay=True, lr_scale=1.0)], spec
    )
    given = {
        "lr": 1e-2,
        "peak_lr": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": decay,
        "decoupled_weight_decay": True,
        "role": "matrix",
        "eps_at": "outside",
        "amsgrad": False,
        "maximize": False,
    }
    state: dict[str, Any] = {}
    errors = []
    for _ in range(4):
        before = parameter.detach().double().cpu()
        parameter.grad = torch.randn_like(parameter)
        update = adam(before, parameter.grad.double().cpu(), state, given) - before
        optimizer.step()
        done = parameter.detach().double().cpu() - before
        errors.append(f"{float((done - update).abs().max() / update.abs().max()):.1e}")
    return errors


@fact
def offload_paging_and_capturable_constructors() -> dict[str, Any]:
    cells = (
        ("adamw/apex", {"cuda_graph": True}),
        ("adamw/torchao-cpu-offload", {}),
        ("adamw/bitsandbytes-paged", {}),
    )
    return {name: _tried(lambda name=name, options=options: _kept(name, options)) for name, options in cells}


def _kept(name: str, options: dict[str, Any]) -> list[str]:
    from harness.interfaces import ParamGroup
    from harness.registry import OPTIMIZERS
    from harness.spec import RunSpec
    from harness.strategies.held import kept

    parameter = torch.nn.Parameter(torch.randn(1000, 400, device=device()))
    spec = RunSpec(workload="gpt", optimizer=name, lr=1e-3, strategy_options=options)
    optimizer = OPTIMIZERS.get(name).build(
        [ParamGroup(("w",), (parameter,), "matrix", decay=True, lr_scale=1.0)], spec
    )
    (parameter * parameter).sum().backward()
    optimizer.step()
    return sorted({key.rpartition(".")[2] for key, _ in kept(optimizer)})


@fact
def values_of_an_engines_trial_are_on_the_host() -> dict[str, Any]:
    from harness.interfaces import World
    from harness.registry import OPTIMIZERS
    from harness.spec import RunSpec
    from harness.verification import driving

    spec = RunSpec(
        workload="linear_regression", optimizer="adamw/fused", lr=1e-3, device="accelerator", world_size=1
    )
    world = World(0, 1, 0, device(), None)
    trial = driving.simple("update", OPTIMIZERS.get("adamw/fused"), driving.settled(spec, world), world)
    return {"devices": sorted({str(each.device) for values in trial.values for each in values.values()})}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
