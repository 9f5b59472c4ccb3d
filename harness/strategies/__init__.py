"""How a model is spread over ranks; one line a strategy."""

REGISTRY = {
    "single": "harness.strategies.torch:Single",
    "ddp": "harness.strategies.torch:DDP",
    "fsdp2": "harness.strategies.fsdp2:FSDP2",
    "hsdp": "harness.strategies.fsdp2:HSDP",
    "zero-redundancy": "harness.strategies.torch:ZeroRedundancy",
    "apex-distributed": "harness.strategies.apex_distributed:ApexDistributed",
    "zero0": "harness.strategies.deepspeed:Zero0",
    "zero1": "harness.strategies.deepspeed:Zero1",
    "zero2": "harness.strategies.deepspeed:Zero2",
    "zero3": "harness.strategies.deepspeed:Zero3",
    "zero1-offload": "harness.strategies.deepspeed:Zero1Offload",
    "zero2-offload": "harness.strategies.deepspeed:Zero2Offload",
    "zero3-offload": "harness.strategies.deepspeed:Zero3Offload",
}
