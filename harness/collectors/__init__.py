"""What observes a run; one file and one line each."""

REGISTRY = {
    "timing": "harness.collectors.timing:Timing",
    "memory": "harness.collectors.memory:Memory",
    "host": "harness.collectors.host:Host",
    "nvml": "harness.collectors.nvml:NVML",
    "convergence": "harness.collectors.convergence:Convergence",
    "compiler": "harness.collectors.compiler:Compiler",
    "ledger": "harness.collectors.ledger:MemoryLedger",
    "communication": "harness.collectors.communication:Communication",
}
