"""Directions in activation space, and where they come from."""
