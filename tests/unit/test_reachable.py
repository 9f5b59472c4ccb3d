"""Which tensors are found from an object, whatever state autograd has left them in."""

import torch

from harness.tracing.reachable import reachable


def test_a_view_that_autograd_refuses_to_place_is_a_tensor_like_any_other():
    """SOAP keeps such views: made without gradients, of what is changed in place with them."""
    base = torch.nn.Parameter(torch.ones(4)) * 1
    with torch.no_grad():
        view = base[:2]
    base.mul_(2)
    found = [tensor for _, tensor in reachable([{"moments": [view]}], ())]
    assert any(tensor is view for tensor in found)
