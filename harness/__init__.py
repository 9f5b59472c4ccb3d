"""optbench's machine: it knows no workload, optimizer, collector or report by name."""

__version__ = "0.1.0"
