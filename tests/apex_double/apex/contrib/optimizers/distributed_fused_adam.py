"""A double of DistributedFusedAdam: its constructor and methods, one bucket a parameter group, any device.

As Apex does, it takes each gradient away from its parameter in a hook, accumulates in ``grad`` within ``no_sync``,
reduces in ``clip_grad_norm`` or ``step``, holds the clipping factor until the step, and forgets both in ``zero_grad``.
"""

# ruff: noqa: FBT002, PLR0917, E501  # the signature is Apex's

import contextlib
from types import SimpleNamespace

import distributed_adam_cuda  # noqa: F401  # as Apex does: without kernels the import fails
import torch
import torch.distributed as dist


class DistributedFusedAdam(torch.optim.Optimizer):
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
        dtype=torch.float32,
        grad_sync_dtype=None,
        param_sync_dtype=None,
        device="cuda",
        process_group=None,
        distributed_process_group=None,
        redundant_process_group=None,
        average_grad_sync=True,
        overlap_grad_sync=True,
        overlap_param_sync=False,
        bucket_cap_mb=100.0,
        pipeline_size=2,
        contiguous_param_buffer=False,
        contiguous_grad_buffer=False,
        store_params=True,
        store_param_remainders=False,
        with_scaled_states=False,
        nccl_ub=False,
        capturable=False,
    ):
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})
        self.adam_w_mode, self.dtype = adam_w_mode, dtype
        self.grad_sync_dtype, self.param_sync_dtype = grad_sync_dtype or dtype, param_sync_dtype or dtype
        self.greedy_grad_copy = True
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.state["buckets"], self.state["step"] = [], 0
        self._grads_buckets, self._scale = {}, 1.0
        for number, group in enumerate(self.param_groups):
            self._make_bucket(group, store_params=store_params)
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(lambda p, number=number: self._hook(p, number))

    def _make_bucket(self, group, *, store_params):
        elements = sum(p.numel() for p in group["params"])
        shard = -(-elements // self.size)
        whole = torch.zeros(shard * self.size, dtype=self.dtype)
        whole[:elements] = torch.cat([p.detach().flatten() for p in group["params"]])
        mine = whole[self.rank * shard : (self.rank + 1) * shard]
        bucket = SimpleNamespace(params_shard=mine.clone() if store_params else None, param_remainders_shard=None)
        bucket.exp_avg_shard, bucket.exp_avg_sq_shard = torch.zeros_like(mine), torch.zeros_like(mine)
        self.state["buckets"].append(bucket)

    def _bucket(self, number):
        if number not in self._grads_buckets:
            shard = self.state["buckets"][number].exp_avg_shard.numel()
            whole = torch.zeros(shard * self.size, dtype=self.grad_sync_dtype)
            self._grads_buckets[number] = SimpleNamespace(
                grads_bucket=whole, grads_shard=None, sync_grads_shard=None
            )
        return self._grads_buckets[number]

    def _hook(self, parameter, number):
        if self.greedy_grad_copy:
            self._copy(parameter, number)

    def _copy(self, parameter, number):
        start = 0
        for each in self.param_groups[number]["params"]:
            if each is parameter and parameter.grad is not None:
                self._bucket(number).grads_bucket[start : start + each.numel()] += parameter.grad.flatten()
                parameter.grad = None
            start += each.numel()

    def _sync(self):
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                self._copy(parameter, number)
            bucket = self._bucket(number)
            if bucket.grads_shard is None:
                dist.all_reduce(bucket.grads_bucket)  # gloo averages nothing and scatters no CPU tensors
                bucket.grads_shard = (bucket.grads_bucket / self.size).chunk(self.size)[self.rank].clone()
                bucket.grads_bucket = None

    @contextlib.contextmanager
    def no_sync(self, greedy_grad_copy=False):
        kept, self.greedy_grad_copy = self.greedy_grad_copy, greedy_grad_copy
        try:
            yield
        finally:
            self.greedy_grad_copy = kept

    def zero_grad(self, set_to_none=False):
        self._grads_buckets.clear()
        self._scale = 1.0
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def clip_grad_norm(self, max_norm, parameters=None, norm_type=2.0):
        self._sync()
        squared = sum(bucket.grads_shard.float().square().sum() for bucket in self._grads_buckets.values())
        dist.all_reduce(squared)
        norm = squared.sqrt()
        self._scale = self._scale * (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    @torch.no_grad()
    def step(self, closure=None, *, grad_scaler=None):
        self._sync()
        self.state["step"] += 1
        for number, group in enumerate(self.param_groups):
            self._update(self.state["buckets"][number], self._bucket(number).grads_shard * self._scale, group)

    def _update(self, bucket, gradient, group):
        first, second = group["betas"]
        step, values = self.state["step"], self._values(bucket, group)
        gradient = gradient.to(self.dtype)
        if not self.adam_w_mode:
            gradient = gradient + group["weight_decay"] * values
        bucket.exp_avg_shard.lerp_(gradient, 1 - first)
        bucket.exp_avg_sq_shard.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        mean = bucket.exp_avg_shard / (1 - first**step)
        root = (bucket.exp_avg_sq_shard / (1 - second**step)).sqrt() + group["eps"]
        update = mean / root + (group["weight_decay"] * values if self.adam_w_mode else 0)
        values.sub_(group["lr"] * update)
        shards = [torch.empty_like(values, dtype=self.param_sync_dtype) for _ in range(self.size)]
        dist.all_gather(shards, values.to(self.param_sync_dtype))
        start, whole = 0, torch.cat(shards)
        for parameter in group["params"]:
            parameter.copy_(whole[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()

    def _values(self, bucket, group):
        if bucket.params_shard is not None:
            return bucket.params_shard
        shard = bucket.exp_avg_shard.numel()
        whole = torch.zeros(shard * self.size, dtype=self.dtype)
        flat = torch.cat([p.detach().flatten() for p in group["params"]])
        whole[: flat.numel()] = flat
        return whole[self.rank * shard : (self.rank + 1) * shard].clone()

    def state_dict(self, *, state_dict_format=None, gather_on_root=None):
        return {"format": 2, "step": self.state["step"], "buckets": [vars(each) for each in self.state["buckets"]]}

    def load_state_dict(self, state_dict):
        assert state_dict.pop("format") == 2
        self.state["step"] = state_dict["step"]
        self.state["buckets"] = [SimpleNamespace(**each) for each in state_dict["buckets"]]
