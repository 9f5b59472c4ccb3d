"""A module that only one planted optimizer imports."""
