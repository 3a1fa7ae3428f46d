"""Triton model repositories: their contract, files, checks, and Python models."""
