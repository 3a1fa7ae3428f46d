"""The machine's platform in Nix's words."""

from __future__ import annotations

import platform

NIX_SYSTEMS = {"x86_64": "x86_64-linux", "aarch64": "aarch64-linux"}


def detect_system() -> str:
    """Return this machine in Nix's words, for instance ``x86_64-linux``."""
    return NIX_SYSTEMS.get(platform.machine(), f"{platform.machine()}-linux")
