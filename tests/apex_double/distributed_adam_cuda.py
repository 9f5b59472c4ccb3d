"""A double of the kernels that DistributedFusedAdam imports; only that they are there counts."""
