"""Small models and repositories with one fault each, out of tests/golden/models.tar.xz."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tarfile
import tempfile
from pathlib import Path

ARCHIVE = Path(__file__).resolve().parents[2] / "golden" / "models.tar.xz"


def root() -> Path:
    """Directory of the unpacked archive, cached under the temporary directory by the archive's digest."""
    digest = hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()[:16]
    cache = Path(tempfile.gettempdir()) / f"enginix-models-{os.getuid()}-{digest}"
    cache.mkdir(mode=0o700, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "complete").exists():
            with tarfile.open(ARCHIVE) as tar:
                tar.extractall(cache)  # our own archive, pinned in the repository
            (cache / "complete").touch()
    return cache / "models"


def list_cases() -> list[str]:
    """Return the names of all cases."""
    return sorted(path.name for path in root().iterdir())
