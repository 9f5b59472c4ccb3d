"""The gate: one verdict over counts, drift, speed, memory, convergence and correctness."""
