"""References in float64, each written from its paper and from nothing else: torch.optim is what they judge."""
