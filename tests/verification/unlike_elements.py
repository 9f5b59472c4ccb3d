"""Optimizers without a reference whose updates depend on more than an element, as classes of a user's own."""

import torch


class Normed(torch.optim.Optimizer):
    """Steps of one length a tensor, whatever the gradient's."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    parameter.sub_(self.direction(parameter.grad, place) * group["lr"])

    def direction(self, gradient, place):
        return gradient / (gradient.norm() + 1e-30)


class ByPlace(Normed):
    """Depends on the place of a tensor in the list that it is given."""

    def direction(self, gradient, place):
        return gradient / (gradient.norm() + 1e-30) * (1 + place)


class Eigenbasis(Normed):
    """Signs in the eigenbasis of the gradient's Gram matrix, whose kernel has an arbitrary one."""

    def direction(self, gradient, place):
        if gradient.ndim < 2:
            return gradient.sign()
        flat = gradient.flatten(1)
        basis = torch.linalg.eigh(flat.T @ flat)[1] if flat.shape[0] < flat.shape[1] else None
        if basis is None:
            basis = torch.linalg.eigh(flat @ flat.T)[1].T
            return (basis.T @ (basis @ flat).sign()).view_as(gradient)
        return ((flat @ basis).sign() @ basis.T).view_as(gradient)
