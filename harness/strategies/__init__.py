"""How a model is spread over ranks; one line a strategy."""

REGISTRY = {
    "single": "harness.strategies.torch:Single",
    "ddp": "harness.strategies.torch:DDP",
}
