from __future__ import annotations

import pytest

from harness.errors import InvalidInputError
from harness.machine import Accelerator, Constructor, Machine
from harness.plan import Cell, optimizer_runs_here, plan, read_plan_file
from harness.registry import OPTIMIZERS
from harness.spec import RunSpec

GIB = 2**30


def machine(accelerators: int = 0, cores: int = 8, memory: int = 64 * GIB) -> Machine:
    adamw = Constructor(
        parameters={"lr": 0.001, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False}
        | dict.fromkeys(("maximize", "foreach", "capturable", "differentiable", "fused"))
    )
    return Machine(
        hostname="there",
        system="Linux 6 x86_64",
        cpu="some CPU",
        cores=cores,
        memory_bytes=memory,
        python="3.12.1",
        torch="2.13.0",
        accelerators=tuple(
            Accelerator(index=i, type="cuda", name="NVIDIA H100", memory_bytes=80 * GIB)
            for i in range(accelerators)
        ),
        constructors={OPTIMIZERS.get("adamw/foreach").target: adamw},
    )


def spec(**fields) -> RunSpec:
    return RunSpec(**{"workload": "gpt", "optimizer": "adamw/foreach", "strategy": "ddp", **fields})


def only(cells, **more) -> Cell:
    (cell,) = plan([cells], more.pop("machine", machine()), **more).cells
    return cell


def test_defaults_are_resolved_for_the_machine():
    on_cpu = only(spec()).spec
    assert (on_cpu.device, on_cpu.world_size, on_cpu.threads, on_cpu.size) == ("cpu", 2, 4, "nano")
    assert on_cpu.lr == 0.001
    assert on_cpu.global_batch
    on_gpus = only(spec(global_batch=32), machine=machine(accelerators=4)).spec
    assert (on_gpus.device, on_gpus.world_size) == ("accelerator", 4)
    assert only(spec(strategy="single"), machine=machine(accelerators=4)).spec.world_size == 1


def test_a_plan_for_another_machine_needs_neither_it_nor_its_devices():
    cell = only(spec(world_size=8, global_batch=32), machine=machine(accelerators=4))
    assert cell.unsupported == "needs 8 accelerators, 4 present; use --nproc 4, or --device cpu"


def test_one_rank_strategies_refuse_several_ranks_with_the_remedy():
    assert "--strategy ddp" in only(spec(strategy="single", world_size=2)).unsupported


@pytest.mark.parametrize(
    ("batch", "ranks", "accumulation", "nearest"), [(10, 4, 1, "8 or 12"), (10, 2, 4, "8 or 16"), (1, 2, 1, "2")]
)
def test_a_batch_that_cannot_be_divided_is_refused_with_the_nearest_sizes(batch, ranks, accumulation, nearest):
    with pytest.raises(InvalidInputError, match=f"nearest that can: global_batch = {nearest}$"):
        only(spec(global_batch=batch, world_size=ranks, accumulation=accumulation))


@pytest.mark.parametrize(
    ("fields", "place", "words"),
    [
        ({"size": "nanno"}, "size", "did you mean nano"),
        (
            {"optimizer_options": {"weight_deca": 0.1}},
            "optimizer_options.weight_deca",
            "did you mean weight_decay",
        ),
        ({"optimizer_options": {"weight_decay": "much"}}, "optimizer_options.weight_decay", "'much'"),
        ({"optimizer_options": {"betas": [0.9]}}, "optimizer_options.betas", "[0.9]"),
        ({"workload_options": {"droput": 0.1}}, "workload_options.droput", "did you mean dropout"),
        ({"strategy_options": {"bucket_cap": 1}}, "strategy_options.bucket_cap", "did you mean bucket_cap_mb"),
        ({"workload": "linear_regression", "data": "x.bin"}, "data", "reads no data file"),
    ],
)
def test_unknown_names_and_options_are_refused_with_place_and_remedy(fields, place, words):
    with pytest.raises(InvalidInputError) as caught:
        only(spec(**fields))
    (problem,) = caught.value.problems
    assert problem.where.endswith(place)
    assert words in str(problem)


def test_problems_of_all_runs_come_at_once():
    with pytest.raises(InvalidInputError) as caught:
        plan([spec(size="a"), spec(), spec(strategy_options={"b": 1})], machine())
    assert len(caught.value.problems) == 2


def test_what_cannot_fit_is_unsupported_with_both_numbers():
    cell = only(spec(size="medium"), available_bytes=4 * GIB)
    assert "GiB of host memory available" in cell.unsupported
    assert cell.estimated_bytes > 4 * GIB
    assert only(spec(size="nano"), available_bytes=4 * GIB).unsupported is None


def test_cells_that_need_no_kernel_run_first_and_keep_their_order():
    names = ["adamw/deepspeed", "adamw/foreach", "adamw/deepspeed-cpu", "adamw/forloop"]
    found = plan([spec(optimizer=name) for name in names], machine())
    cells = [cell.model_copy(update={"unsupported": None}) for cell in found.cells]
    order = found.model_copy(update={"cells": tuple(cells)}).runnable()
    assert [cell.spec.optimizer for cell in order] == [names[1], names[3], names[0], names[2]]
    assert [cell.index for cell in found.cells] == [0, 1, 2, 3]


def test_sparse_gradients_and_clipping_are_refused_together():
    cell = only(spec(workload="recommender", optimizer="sgd/forloop", clip_norm=1.0))
    assert "clip_norm" in cell.unsupported


def test_an_optimizer_alone_has_nothing_to_average_under_ddp():
    assert "--strategy single" in only(spec(workload="parameters")).unsupported


def test_a_plan_file_round_trips_and_refuses_others(tmp_path):
    path = tmp_path / "plan-0.json"
    cell = only(spec())
    path.write_text(cell.model_dump_json())
    assert read_plan_file(path) == cell.spec
    path.write_text('{"kind": "cell"}')
    with pytest.raises(InvalidInputError, match="optbench plan --write"):
        read_plan_file(path)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_plan_file(tmp_path / "none")


def test_an_optimizer_runs_here_if_any_workload_takes_it():
    assert optimizer_runs_here("adamw/foreach", machine()) is None
    assert "Apex" in optimizer_runs_here("adamw/apex", machine())


def test_a_cell_that_is_refused_has_no_estimate_and_spoils_no_plan():
    cell = only(spec(strategy="hsdp", world_size=1))
    assert "cannot divide 1 ranks into 2 replicas" in cell.unsupported
    assert cell.estimated_bytes is None


def test_no_remedy_for_memory_is_one_that_the_strategy_refuses():
    cell = only(spec(strategy="hsdp", world_size=2, size="small"), available_bytes=GIB)
    assert "needs about" in cell.unsupported
    assert "fewer ranks" not in cell.unsupported
