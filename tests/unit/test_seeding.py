"""Global random generators: who may draw from them, and who leaves them alone."""

from __future__ import annotations

import torch

from harness.seeding import generators_kept


def test_what_is_drawn_inside_leaves_the_generator_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with generators_kept():
        torch.rand(100)
    assert torch.equal(torch.rand(2), expected)


def test_of_several_devices_only_this_ranks_generator_is_touched(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    monkeypatch.setattr(torch.random, "fork_rng", lambda *given, **named: asked.append((given, named)))
    generators_kept()
    assert asked == [(([3],), {"device_type": "cuda"})]
