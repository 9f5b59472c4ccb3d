"""Doubles of apex.optimizers: documented signatures, the step count in the groups, ``zero_grad`` without argument.

They import amp_C in the constructor, as Apex does, so that they can be imported without kernels; and they keep
their buffers where the parameters are.
"""

# ruff: noqa: FBT002, FBT003, PLR0917  # the signatures are Apex's

import torch

CHUNK = 2048 * 32


class _Fused(torch.optim.Optimizer):
    def __init__(self, params, defaults, *, set_grad_none):
        super().__init__(params, defaults)
        self.set_grad_none = set_grad_none
        try:
            import amp_C
        except ImportError as error:
            raise RuntimeError(f"apex.optimizers.{type(self).__name__} requires cuda extensions") from error
        self.kernels = amp_C
        device = self.param_groups[0]["params"][0].device
        self._dummy_overflow_buf = torch.tensor([0], dtype=torch.int, device=device)

    def zero_grad(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def lists(self, group, *names):
        """Gradients, parameters and the named states of what has a gradient."""
        with_gradient = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in with_gradient:
            if parameter.grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            for name in names:
                self.state[parameter].setdefault(name, torch.zeros_like(parameter.data))
        states = [[self.state[parameter][name] for parameter in with_gradient] for name in names]
        return [[p.grad.data for p in with_gradient], [p.data for p in with_gradient], *states]

    def apply(self, kernel, lists, *numbers):
        return kernel(CHUNK, self._dummy_overflow_buf, lists, *numbers)


class FusedAdam(_Fused):
    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-8,
        adam_w_mode=True,
        weight_decay=0.0,
        amsgrad=False,
        set_grad_none=True,
        capturable=False,
        master_weights=False,
    ):
        if amsgrad:
            raise RuntimeError("FusedAdam does not support the AMSGrad variant.")
        if master_weights and not capturable:
            raise RuntimeError("Master weights is currently only supported with the capturable version.")
        lr = torch.tensor(lr, dtype=torch.float32) if capturable else lr
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "weight_decay": weight_decay}, set_grad_none=set_grad_none)
        self.adam_w_mode = int(adam_w_mode)
        if capturable:  # the default is made a tensor, a group's own rate is not
            for group in self.param_groups:
                group["lr"] = group["lr"].to(device=group["params"][0].device)

    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            self.apply(
                self.kernels.multi_tensor_adam,
                self.lists(group, "exp_avg", "exp_avg_sq"),
                float(group["lr"]),
                *group["betas"],
                group["eps"],
                group["step"],
                self.adam_w_mode,
                int(group["bias_correction"]),
                group["weight_decay"],
            )


class FusedSGD(_Fused):
    def __init__(
        self,
        params,
        lr,
        momentum=0,
        dampening=0,
        weight_decay=0,
        nesterov=False,
        wd_after_momentum=False,
        materialize_master_grads=True,
        set_grad_none=False,
    ):
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        super().__init__(params, {**defaults, "weight_decay": weight_decay}, set_grad_none=set_grad_none)
        self.wd_after_momentum = wd_after_momentum

    def step(self, closure=None):
        for group in self.param_groups:
            first_run = "momentum_buffer" not in self.state[group["params"][-1]]
            self.apply(
                self.kernels.multi_tensor_sgd,
                self.lists(group, "momentum_buffer"),
                group["weight_decay"],
                group["momentum"],
                group["dampening"],
                group["lr"],
                group["nesterov"],
                first_run,
                self.wd_after_momentum,
                1.0,
            )


class FusedAdagrad(_Fused):
    def __init__(self, params, lr=1e-2, eps=1e-10, weight_decay=0.0, set_grad_none=True, adagrad_w_mode=False):
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay}, set_grad_none=set_grad_none)
        self.adagrad_w_mode = int(adagrad_w_mode)

    def step(self, closure=None):
        for group in self.param_groups:
            self.apply(
                self.kernels.multi_tensor_adagrad,
                self.lists(group, "sum"),
                group["lr"],
                group["eps"],
                self.adagrad_w_mode,
                group["weight_decay"],
            )


class FusedLAMB(_Fused):
    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.01,
        amsgrad=False,
        adam_w_mode=True,
        grad_averaging=True,
        set_grad_none=True,
        max_grad_norm=1.0,
        use_nvlamb=False,
    ):
        if amsgrad:
            raise RuntimeError("FusedLAMB does not support the AMSGrad variant.")
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        defaults |= {"grad_averaging": grad_averaging, "max_grad_norm": max_grad_norm}
        super().__init__(params, {**defaults, "weight_decay": weight_decay}, set_grad_none=set_grad_none)
        self.adam_w_mode, self.use_nvlamb = int(adam_w_mode), use_nvlamb

    def step(self, closure=None):
        gradients = [p.grad.data for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = self.apply(self.kernels.multi_tensor_l2norm, [gradients], False)[0]
        nothing = torch.zeros(1, device=norm.device)
        norm = self.apply(self.kernels.multi_tensor_l2norm, [[norm, nothing]], False)[0]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            self.apply(
                self.kernels.multi_tensor_lamb,
                self.lists(group, "exp_avg", "exp_avg_sq"),
                group["lr"],
                *group["betas"],
                group["eps"],
                group["step"],
                int(group["bias_correction"]),
                group["weight_decay"],
                int(group["grad_averaging"]),
                self.adam_w_mode,
                norm,
                self.defaults["max_grad_norm"],
                self.use_nvlamb,
            )


class FusedMixedPrecisionLamb(_Fused):
    def __init__(
        self,
        params,
        lr=1e-3,
        step=0,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.01,
        amsgrad=False,
        adam_w_mode=True,
        grad_averaging=True,
        max_grad_norm=1.0,
        use_nvlamb=False,
        reduced_precision_dtype=None,
    ):
        if amsgrad:
            raise RuntimeError("FusedLAMB does not support the AMSGrad variant.")
        defaults = {"lr": torch.tensor(lr, dtype=torch.float32), "step": torch.tensor([step], dtype=torch.int)}
        defaults |= {"bias_correction": bias_correction, "betas": betas, "eps": eps}
        defaults |= {"grad_averaging": grad_averaging, "max_grad_norm": max_grad_norm}
        super().__init__(params, {**defaults, "weight_decay": weight_decay}, set_grad_none=True)
        self.adam_w_mode, self.use_nvlamb = int(adam_w_mode), use_nvlamb

    def add_param_group(self, param_group):
        """Give every group its own copy of the default tensors, over whatever it brought."""
        super().add_param_group(param_group)
        tensors = {name: value for name, value in self.defaults.items() if isinstance(value, torch.Tensor)}
        self.param_groups[-1].update({name: value.clone() for name, value in tensors.items()})

    @torch.no_grad()
    def step(self, closure=None, grad_scaler=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        found_inf, scale = torch.zeros(1), torch.ones(1)
        norm = self.apply(self.kernels.multi_tensor_l2norm_mp, [gradients], False)[0]
        for group in self.param_groups:
            group["step"] += 1
            self.apply(
                self.kernels.multi_tensor_lamb_mp,
                self.lists(group, "exp_avg", "exp_avg_sq"),
                group["lr"],
                *group["betas"],
                group["eps"],
                group["step"],
                int(group["bias_correction"]),
                group["weight_decay"],
                int(group["grad_averaging"]),
                self.adam_w_mode,
                norm,
                self.defaults["max_grad_norm"] * scale,
                self.use_nvlamb,
                found_inf,
                scale,
            )


class FusedNovoGrad(_Fused):
    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        amsgrad=False,
        reg_inside_moment=False,
        grad_averaging=True,
        norm_type=2,
        init_zero=False,
        set_grad_none=True,
    ):
        if amsgrad:
            raise RuntimeError("FusedNovoGrad does not support the AMSGrad variant.")
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        defaults |= {"grad_averaging": grad_averaging, "norm_type": norm_type, "init_zero": init_zero}
        super().__init__(params, {**defaults, "weight_decay": weight_decay}, set_grad_none=set_grad_none)
        self.moment_mode = 0 if reg_inside_moment else 1

    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            lists = self.lists(group, "exp_avg")
            if (
                "exp_avg_sq" not in group
            ):  # the norms of the first gradients, so that the first blend changes nothing
                order = 2 if group["norm_type"] == 2 else float("inf")
                norms = torch.stack([g.flatten().norm(order) for g in lists[0]])
                group["exp_avg_sq"] = [torch.zeros(0), norms * (not group["init_zero"])]
            self.apply(
                self.kernels.multi_tensor_novograd,
                lists,
                group["exp_avg_sq"][1],
                group["lr"],
                *group["betas"],
                group["eps"],
                group["step"],
                int(group["bias_correction"]),
                group["weight_decay"],
                int(group["grad_averaging"]),
                self.moment_mode,
                group["norm_type"],
            )
