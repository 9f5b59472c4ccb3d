"""Checks inside every run, between its timed steps: did the ranks train what their speed is told of?"""
