"""Runtimes: a pinned image's root file system, and how a command runs inside it."""
