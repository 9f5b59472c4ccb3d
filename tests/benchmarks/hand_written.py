"""What a user would write to train gpt nano on two ranks: the yardstick for ``optbench run``."""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from harness.interfaces import DataShard
from workloads.gpt import GPT

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
workload = GPT(size="nano")
module = workload.build()
for name, parameter in module.named_parameters():
    with torch.no_grad():
        workload.initialise(name, parameter, 0)
model = DistributedDataParallel(module)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
batches = workload.batches(DataShard(rank, size, workload.traits.size("nano").global_batch, 1, 0))
for _step in range(int(sys.argv[1])):
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
