"""Engines: what a server loads, of one kind each, with manifest and gates."""
