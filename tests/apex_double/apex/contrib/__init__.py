"""Doubles of apex.contrib."""
