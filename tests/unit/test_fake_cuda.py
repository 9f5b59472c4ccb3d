"""Optimizers over fake tensors on a fake ``cuda:0``: whatever reads a value on the host raises there."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from harness.interfaces import ParamGroup
from harness.optimizers.torch_native import OPTIMIZERS
from harness.rates import set_lr
from harness.spec import RunSpec

CAPTURABLE = [
    name
    for name, native in OPTIMIZERS.items()
    if native.traits.capturable and native.word in {"forloop", "foreach"}  # fused kernels know no fake tensors
]


def spec(name):
    return RunSpec(workload="gpt", optimizer=name, strategy_options={"cuda_graph": True})


def groups(device="cuda"):
    parameters = tuple(torch.nn.Parameter(torch.empty(shape, device=device)) for shape in ((4, 6), (3, 5)))
    return (ParamGroup(names=("a", "b"), parameters=parameters, role="matrix"),)


def warm(name):
    """Return an optimizer with its rates in tensors as a CUDA graph wants them, and with state made before."""
    (group,) = made = groups()
    optimizer = OPTIMIZERS[name].build(made, spec(name))
    for parameter in group.parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    for each in optimizer.param_groups:
        each["lr"] = torch.empty((), device="cuda")
    return optimizer


def test_there_are_capturable_steps_to_look_at():
    assert len(CAPTURABLE) > 10
    assert "rmsprop/foreach" in CAPTURABLE


@pytest.mark.parametrize("name", CAPTURABLE)
def test_a_step_that_is_called_capturable_reads_nothing_on_the_host(name):
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            warm(name).step()
        except RuntimeError as error:
            if "not linked with support for cuda" in str(error):
                pytest.skip("this build of torch makes no scalars for a CUDA device")
            raise


@pytest.mark.parametrize("name", ["adadelta/forloop", "rmsprop/forloop"])
def test_a_step_that_reads_its_rate_on_the_host_is_not_called_capturable(name):
    assert not OPTIMIZERS[name].traits.capturable
    with FakeTensorMode(allow_non_fake_inputs=True):
        optimizer = warm(name)
        with pytest.raises(DataDependentOutputException):
            optimizer.step()


def test_a_rate_in_a_tensor_is_changed_without_reading_it():
    with FakeTensorMode():
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.empty(3, device="cuda"))], capturable=True)
        optimizer.param_groups[0] |= {"lr": torch.empty((), device="cuda"), "initial_lr": 0.1}
        set_lr(optimizer, 0.5)
