"""Renderings of the records, one file each."""
