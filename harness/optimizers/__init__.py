"""Implementations of optimizers, in families: one file and one line each.

A family's module imports torch only inside ``build``, so that listing and planning need none.
"""

REGISTRY = {
    "native": "harness.optimizers.torch_native:OPTIMIZERS",
    "compiled": "harness.optimizers.torch_compiled:OPTIMIZERS",
    "deepspeed": "harness.optimizers.deepspeed:OPTIMIZERS",
    "apex": "harness.optimizers.apex:OPTIMIZERS",
    "apex-distributed": "harness.optimizers.apex_distributed:OPTIMIZERS",
    "torchao": "harness.optimizers.torchao:OPTIMIZERS",
    "bitsandbytes": "harness.optimizers.bitsandbytes:OPTIMIZERS",
    "transformer-engine": "harness.optimizers.transformer_engine:OPTIMIZERS",
    "heavyball": "harness.optimizers.heavyball:OPTIMIZERS",
    "schedulefree": "harness.optimizers.schedulefree:OPTIMIZERS",
    "pytorch_optimizer": "harness.optimizers.pytorch_optimizer:OPTIMIZERS",
}
