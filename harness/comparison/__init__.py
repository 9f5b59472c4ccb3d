"""Comparing arms: what a comparison holds, how its ratios are estimated, when it may decide. No torch."""
