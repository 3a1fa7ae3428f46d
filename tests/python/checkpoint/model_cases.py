"""Small models and repositories with one fault each, out of tests/golden/models.tar.xz."""

from __future__ import annotations

from pathlib import Path

from golden import unpack_archive


def root() -> Path:
    """Directory of the unpacked cases."""
    return unpack_archive("models")


def list_cases() -> list[str]:
    """Return the names of all cases."""
    return sorted(path.name for path in root().iterdir())
