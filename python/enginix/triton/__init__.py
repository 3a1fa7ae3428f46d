"""Triton model repositories: their contract, their files, their checks, and the models that they ship."""
