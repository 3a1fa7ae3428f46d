"""Files with secrets: a path, or a credential that systemd hands to a service (LoadCredential)."""

from __future__ import annotations

import os
from pathlib import Path

from enginix.errors import UsageError


def locate(path: str) -> Path:
    """Where a key's file is.

    Raises:
        UsageError: relative, and systemd has given no credentials.
    """
    if os.path.isabs(path):
        return Path(path)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise UsageError(
            "a relative path is a systemd credential's name, and there are none",
            where=path,
            fix="pass an absolute path, or set LoadCredential in the unit",
        )
    return Path(directory) / path
