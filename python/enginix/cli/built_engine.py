"""The result of a command that builds an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginix import console
from enginix.manifest import Manifest


def print_built_engine(output: Path, manifest: Manifest, text: str, **more: Any) -> None:
    """Print an engine's path, name and kind, ``text`` behind them for people, ``more`` for machines."""
    console.print_result(
        {"engine": str(output), "kind": manifest.kind, "name": manifest.name, **more},
        f"{output}: {manifest.name}, kind {manifest.kind}, {text}",
    )
