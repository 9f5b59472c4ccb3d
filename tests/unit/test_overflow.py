"""fp16's overflow over plain shards: what one rank sees, every rank knows; the other rank is a double."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from harness.errors import UnsupportedError
from harness.strategies import overflow
from harness.strategies.stepped import Idle

CPU = torch.device("cpu")


@pytest.fixture
def other_rank(monkeypatch):
    """Say what the other rank has found; ``asked`` tells what this one sent."""

    class Other:
        found, asked = 0.0, None

    def all_reduce(tensor, op, group):
        assert op == dist.ReduceOp.MAX
        Other.asked = float(tensor)
        tensor.clamp_(min=Other.found)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return Other


def stepped(gradient, group="a group"):
    """Step on one shard; return whether it moved, and the scaler."""
    shard = torch.nn.Parameter(torch.ones(3))
    optimizer, scaler = torch.optim.SGD([shard], lr=1.0), torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    shard.grad = torch.full((3,), gradient)
    scaler.unscale_(optimizer)
    overflow.agree(scaler, optimizer, CPU, group)
    scaler.step(optimizer)
    scaler.update()
    return bool((shard != 1).any()), scaler.get_scale()


def test_a_rank_leaves_the_step_out_in_which_another_saw_an_overflow(other_rank):
    other_rank.found = 1.0
    assert stepped(8.0) == (False, 2.0)
    assert other_rank.asked == 0


def test_every_rank_steps_where_none_saw_an_overflow(other_rank):
    assert stepped(8.0) == (True, 4.0)


def test_an_overflow_of_this_rank_is_told_to_the_others(other_rank):
    assert stepped(torch.inf) == (False, 2.0)
    assert other_rank.asked == 1


def test_one_rank_asks_nobody(other_rank):
    assert stepped(8.0, group=None) == (True, 4.0)
    assert other_rank.asked is None


@pytest.mark.parametrize(("found", "scale"), [(0.0, 4.0), (1.0, 2.0)])
def test_a_rank_without_a_shard_takes_part(other_rank, found, scale):
    other_rank.found = found
    optimizer, scaler = Idle(), torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)
    overflow.agree(scaler, optimizer, CPU, "a group")
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == scale


class TakesScaler(torch.optim.SGD):
    _step_supports_amp_scaling = True

    def step(self, closure=None, grad_scaler=None):
        pass


def test_an_optimizer_that_torch_hands_the_scaler_is_refused():
    parameters = [torch.nn.Parameter(torch.ones(3))]
    with pytest.raises(UnsupportedError, match=r"TakesScaler.step takes grad_scaler .* use --precision bf16"):
        overflow.refuse_second_unscaling(TakesScaler(parameters, lr=1.0))
    overflow.refuse_second_unscaling(torch.optim.SGD(parameters, lr=1.0))
    overflow.refuse_second_unscaling(torch.optim.AdamW(parameters, lr=1.0, fused=True))
