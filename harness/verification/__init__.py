"""Proof that an optimizer does what its algorithm says, before its speed is shown."""
