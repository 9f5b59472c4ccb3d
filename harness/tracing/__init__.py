"""A few steps of their own, after the measured ones, in which every allocation and collective is traced.

`recording` runs them under torch's profiler; the other modules read what it saw and need no torch.
"""
