"""Sending jobs to where a model is. Knows bytes, sessions and hosts, and no VLM."""
