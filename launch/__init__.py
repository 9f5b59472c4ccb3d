"""Starts torchrun worlds: on this machine, and by hand."""
