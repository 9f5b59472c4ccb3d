"""What a user would write to train gpt nano on two ranks: the yardstick for ``optbench run``.

Words: the number of steps, and ``ddp`` (the default) or ``fsdp2``.
"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from harness.interfaces import DataShard
from workloads.gpt import GPT

steps, strategy = int(sys.argv[1]), (sys.argv[2:] or ["ddp"])[0]
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
workload = GPT(size="nano")
module = workload.build()
for name, parameter in module.named_parameters():
    with torch.no_grad():
        workload.initialise(name, parameter, 0)
if strategy == "fsdp2":
    mesh = init_device_mesh("cpu", (size,))
    for block in module.blocks:
        fully_shard(block, mesh=mesh)
    model = fully_shard(module, mesh=mesh)
else:
    model = DistributedDataParallel(module)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
batches = workload.batches(DataShard(rank, size, workload.traits.size("nano").global_batch, 1, 0))
for _step in range(steps):
    optimizer.zero_grad()
    loss = workload.loss(model, next(batches))
    loss.backward()
    optimizer.step()
module.eval()
with torch.no_grad():
    found = workload.evaluate(module)
if rank == 0:
    print(float(loss), found)
dist.destroy_process_group()
