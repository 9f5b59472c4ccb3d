"""Which submodules are sharded one by one, and what is said where a workload does not name them."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from harness.interfaces import WorkloadSize, WorkloadTraits, World
from harness.model_facts import WHOLE, matches, units_of
from harness.registry import OPTIMIZERS, strategy
from harness.spec import RunSpec
from workloads.linear_regression import LinearRegression


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.expand = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.expand(self.attention(x))


class Stack(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


LAYERS = tuple(f"layers.{n}" for n in range(3))


@pytest.mark.parametrize("pattern", ["layers.*", "layers.[0-9]", "*.?"])
def test_patterns_name_units_and_a_star_does_not_reach_into_them(pattern):
    units = units_of(Stack(), (pattern,))
    assert (units.names, units.how, units.remark("mine:M")) == (LAYERS, "declared", None)
    assert not matches("layers.0.attention", "layers.*")


def test_a_pattern_for_longer_numbers_may_match_nothing_in_a_short_model():
    assert units_of(Stack(), ("layers.[0-9]", "layers.[0-9][0-9]")).remark("mine:M") is None


@pytest.mark.parametrize("patterns", [(), ("blocks.*",), ("layer.*", "blocks.*")])
def test_without_a_match_repeated_layers_are_units_and_the_remark_names_what_to_write(patterns):
    units = units_of(Stack(), patterns)
    assert (units.names, units.how) == (LAYERS, "found")
    told = units.remark("mine:M")
    assert "its 3 repeated layers are sharded one by one; write blocks=('layers.*',)" in told
    assert ("names no blocks" if not patterns else f"{patterns[0]!r}") in told


def test_a_pattern_that_misses_beside_one_that_matches_is_told():
    units = units_of(Stack(), ("layers.*", "decoder.*"))
    assert units.names == LAYERS
    assert "'decoder.*' match no submodule" in units.remark("mine:M")


def test_layers_inside_containers_of_containers_are_found_and_those_that_share_parameters_are_not():
    stages = nn.Sequential(nn.Sequential(Layer(), Layer()), nn.Sequential(Layer(), Layer(), nn.ReLU()))
    assert units_of(stages, ()).names == ("0.0", "0.1", "1.0", "1.1")
    stages[0][1].attention.weight = stages[1][0].expand.weight
    assert units_of(stages, ()).names == ("0.0", "1.1")


def test_layers_of_one_matrix_repeat_only_with_equal_shapes():
    assert units_of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), ()).how == "whole"
    assert units_of(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), ()).names == ("0", "2")


def test_a_model_without_repeated_layers_is_one_unit_which_is_told_unless_it_is_on_purpose():
    model = nn.Sequential(OrderedDict(narrow=nn.Linear(2, 3), wide=nn.Linear(3, 4)))
    told = units_of(model, ()).remark("mine:M")
    assert "the whole model is one unit, gathered at once; write blocks=('narrow', 'wide',)" in told
    assert units_of(model, WHOLE).remark("mine:M") is None


class Workload(LinearRegression):
    """A stack whose blocks are named wrongly."""

    traits = WorkloadTraits(
        summary="s", source="s", sizes={"s": WorkloadSize(parameters=0, global_batch=4)}, default_size="s",
        blocks=("blocks.*",),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()

    def build(self):
        return Stack()

    def initialise(self, name, tensor, seed):
        del name
        with torch.no_grad():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of torch, on a mesh of one
@pytest.mark.parametrize("name", ["fsdp2", "hsdp"])
def test_the_engine_shards_the_layers_that_it_found_and_remarks_on_it(name):
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        world = World(0, 1, 0, torch.device("cpu"), "gloo")
        options = {"replicas": 1} if name == "hsdp" else {}
        spec = RunSpec(
            workload="units:Workload",
            optimizer="sgd/foreach",
            strategy=name,
            strategy_options=options,
            device="cpu",
        )
        engine = strategy(name).start(Workload(), OPTIMIZERS.get("sgd/foreach"), spec, world)
        assert engine.facts()["sharding"]["blocks"] == list(LAYERS)
        (remark,) = engine.remarks()
        assert remark.startswith(f"{name}: blocks 'blocks.*' match no submodule of units:Workload")
    finally:
        torch.distributed.destroy_process_group()
