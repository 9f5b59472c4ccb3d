"""A double of Apex's kernel module: its functions, their arguments in order, and their arithmetic, in plain torch.

Numbers that the C++ functions declare as float or int are refused as tensors, as there; and as there, LAMB's
kernels leave the update in the gradient. ``calls`` tells which function ran how often, in order.
"""

# ruff: noqa: FBT002, PLR0917  # the signatures are Apex's

import torch

calls = []


def _begin(name, noop_flag, lists, floats=(), integers=()):
    calls.append(name)
    assert noop_flag.dtype == torch.int32
    assert noop_flag.numel() == 1
    assert all(len(each) == len(lists[0]) for each in lists)
    assert all(isinstance(number, (float, int)) for number in floats), floats
    assert all(isinstance(number, int) for number in integers), integers


def _adam(lists, lr, beta1, beta2, epsilon, step, mode, bias_correction, weight_decay, scale=1.0):
    first = 1 - beta1**step if bias_correction else 1.0
    second = 1 - beta2**step if bias_correction else 1.0
    for gradient, parameter, average, square in zip(*lists, strict=True):
        scaled = gradient * scale + (weight_decay * parameter if mode == 0 else 0)
        average.mul_(beta1).add_((1 - beta1) * scaled)
        square.mul_(beta2).add_((1 - beta2) * scaled * scaled)
        update = (average / first) / ((square / second).sqrt() + epsilon)
        parameter.sub_(lr * (update + (weight_decay * parameter if mode == 1 else 0)))


@torch.no_grad()
def multi_tensor_adam(
    chunk_size,
    noop_flag,
    tensor_lists,
    lr,
    beta1,
    beta2,
    epsilon,
    step,
    mode,
    bias_correction,
    weight_decay,
):
    floats = (lr, beta1, beta2, epsilon, weight_decay)
    _begin("multi_tensor_adam", noop_flag, tensor_lists, floats, (step, mode, bias_correction))
    _adam(tensor_lists, lr, beta1, beta2, epsilon, step, mode, bias_correction, weight_decay)


@torch.no_grad()
def multi_tensor_adam_capturable(
    chunk_size,
    noop_flag,
    tensor_lists,
    lr,
    beta1,
    beta2,
    epsilon,
    step,
    mode,
    bias_correction,
    weight_decay,
    inv_scale,
):
    _begin("multi_tensor_adam_capturable", noop_flag, tensor_lists, (beta1, beta2, epsilon, weight_decay))
    if not noop_flag:
        numbers = (lr, beta1, beta2, epsilon, int(step), mode, bias_correction, weight_decay)
        _adam(tensor_lists, *numbers, inv_scale)


@torch.no_grad()
def multi_tensor_adam_capturable_master(chunk_size, noop_flag, tensor_lists, *numbers):
    multi_tensor_adam_capturable(
        chunk_size, noop_flag, [*tensor_lists[:1], tensor_lists[4], *tensor_lists[2:4]], *numbers
    )
    for parameter, master in zip(tensor_lists[1], tensor_lists[4], strict=True):
        parameter.copy_(master)


@torch.no_grad()
def multi_tensor_sgd(
    chunk_size,
    noop_flag,
    tensor_lists,
    wd,
    momentum,
    dampening,
    lr,
    nesterov,
    first_run,
    wd_after_momentum,
    scale,
):
    _begin("multi_tensor_sgd", noop_flag, tensor_lists, (wd, momentum, dampening, lr, scale))
    for gradient, parameter, buffer in zip(*tensor_lists[:3], strict=True):
        update = gradient * scale
        if not wd_after_momentum:
            update = update + wd * parameter
        if momentum != 0:
            buffer.copy_(update if first_run else buffer * momentum + (1 - dampening) * update)
            update = update + momentum * buffer if nesterov else buffer
        if wd_after_momentum:
            update = update + wd * parameter
        parameter.sub_(lr * update)


def multi_tensor_l2norm(chunk_size, noop_flag, tensor_lists, per_tensor=False):
    _begin("multi_tensor_l2norm", noop_flag, tensor_lists)
    norms = torch.stack([tensor.float().norm() for tensor in tensor_lists[0]])
    return norms.norm().reshape(1), norms if per_tensor else torch.empty(0)


def multi_tensor_l2norm_mp(chunk_size, noop_flag, tensor_lists, per_tensor=False):
    return multi_tensor_l2norm(chunk_size, noop_flag, tensor_lists, per_tensor)


def _lamb(lists, lr, beta1, beta2, epsilon, step, bias, decay, averaging, mode, norm, limit, everywhere):
    first = 1 - beta1**step if bias else 1.0
    second = 1 - beta2**step if bias else 1.0
    clip = norm / limit if norm > limit else 1.0
    for gradient, parameter, average, square in zip(*lists[:4], strict=True):
        scaled = gradient / clip + (decay * parameter if mode == 0 else 0)
        average.mul_(beta1).add_((1 - beta1 if averaging else 1.0) * scaled)
        square.mul_(beta2).add_((1 - beta2) * scaled * scaled)
        update = (average / first) / ((square / second).sqrt() + epsilon)
        gradient.copy_(update + (decay * parameter if mode == 1 else 0))
        ratio = lr
        if everywhere or decay != 0:
            lengths = parameter.norm(), gradient.norm()
            ratio = lr * (lengths[0] / lengths[1]) if all(length != 0 for length in lengths) else lr
        parameter.sub_(ratio * gradient)


@torch.no_grad()
def multi_tensor_lamb(
    chunk_size,
    noop_flag,
    tensor_lists,
    lr,
    beta1,
    beta2,
    epsilon,
    step,
    bias_correction,
    weight_decay,
    grad_averaging,
    mode,
    global_grad_norm,
    max_grad_norm,
    use_nvlamb=None,
):
    floats = (lr, beta1, beta2, epsilon, weight_decay, max_grad_norm)
    _begin("multi_tensor_lamb", noop_flag, tensor_lists, floats, (step, bias_correction, grad_averaging, mode))
    numbers = (lr, beta1, beta2, epsilon, step, bias_correction, weight_decay, grad_averaging, mode)
    _lamb(tensor_lists, *numbers, global_grad_norm, max_grad_norm, use_nvlamb)


@torch.no_grad()
def multi_tensor_lamb_mp(
    chunk_size,
    noop_flag,
    tensor_lists,
    lr,
    beta1,
    beta2,
    epsilon,
    step,
    bias_correction,
    weight_decay,
    grad_averaging,
    mode,
    global_grad_norm,
    max_grad_norm,
    use_nvlamb,
    found_inf,
    inv_scale,
):
    floats = (beta1, beta2, epsilon, weight_decay)
    _begin("multi_tensor_lamb_mp", noop_flag, tensor_lists, floats, (bias_correction, grad_averaging, mode))
    assert isinstance(lr, torch.Tensor)
    assert step.dtype == torch.int32
    if not found_inf:
        numbers = (lr, beta1, beta2, epsilon, int(step), bias_correction, weight_decay, grad_averaging, mode)
        _lamb(tensor_lists, *numbers, global_grad_norm, max_grad_norm, use_nvlamb)


@torch.no_grad()
def multi_tensor_novograd(
    chunk_size,
    noop_flag,
    tensor_lists,
    grad_norms,
    lr,
    beta1,
    beta2,
    epsilon,
    step,
    bias_correction,
    weight_decay,
    grad_averaging,
    mode,
    norm_type,
):
    floats = (lr, beta1, beta2, epsilon, weight_decay)
    integers = (step, bias_correction, grad_averaging, mode, norm_type)
    _begin("multi_tensor_novograd", noop_flag, tensor_lists, floats, integers)
    first = 1 - beta1**step if bias_correction else 1.0
    second = (1 - beta2**step) ** 0.5 if bias_correction else 1.0
    if norm_type == 2:
        norms = torch.stack([gradient.norm() for gradient in tensor_lists[0]])
        grad_norms.copy_((beta2 * grad_norms**2 + (1 - beta2) * norms**2).sqrt())
    else:
        norms = torch.stack([gradient.abs().max() for gradient in tensor_lists[0]])
        grad_norms.mul_(beta2).add_((1 - beta2) * norms)
    share = 1 - beta1 if grad_averaging else 1.0
    for norm, gradient, parameter, average in zip(grad_norms, *tensor_lists, strict=True):
        length = norm / second + epsilon
        if mode == 0:
            average.mul_(beta1).add_(share * (gradient / length + weight_decay * parameter))
            parameter.sub_(lr * (average / first))
        else:
            average.mul_(beta1).add_(share * gradient)
            parameter.sub_(lr * (average / first / length + weight_decay * parameter))


@torch.no_grad()
def multi_tensor_adagrad(chunk_size, noop_flag, tensor_lists, lr, epsilon, mode, weight_decay):
    _begin("multi_tensor_adagrad", noop_flag, tensor_lists, (lr, epsilon, weight_decay), (mode,))
    for gradient, parameter, total in zip(*tensor_lists, strict=True):
        update = gradient + (weight_decay * parameter if mode == 0 else 0)
        total.add_(update * update)
        step = update / (total.sqrt() + epsilon) + (weight_decay * parameter if mode == 1 else 0)
        parameter.sub_(lr * step)
