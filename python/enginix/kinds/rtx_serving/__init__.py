"""Serve engines of kind ``rtx``: slots, steps, and what executes them. No engine is built with it."""
