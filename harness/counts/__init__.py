"""Noise-free counts of a run's step, the baseline that a user commits, and drift over a long run."""
