"""Metadata of a source package for pip: the package's own PKG-INFO.

NVIDIA's source packages hold no code; their backend of this name downloads a wheel of gigabytes from NVIDIA's
own index to learn what PKG-INFO says. With this one pip reads PKG-INFO and runs no code of the package (PEP
517).
"""

from __future__ import annotations

import email
import shutil
from pathlib import Path
from typing import Any


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Return what the backend needs: nothing."""
    return []


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    """Copy PKG-INFO of the current directory; return the name of the directory made for it."""
    headers = email.message_from_string(Path("PKG-INFO").read_text("utf-8"))
    name = f"{headers['Name'].replace('-', '_')}-{headers['Version']}.dist-info"
    target = Path(metadata_directory, name)
    target.mkdir()
    shutil.copy("PKG-INFO", target / "METADATA")
    return name


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: Any = None) -> str:
    """Refuse: only metadata is read."""
    raise RuntimeError("only metadata is read here; nothing is built")
