"""The directory of evidence: ``gates.json`` and ``report.html``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginix.files import dump_json, new_directory, write_text
from enginix.report import html


def put(directory: Path, name: str, told: dict[str, Any]) -> None:
    """Writes both files into a directory that exists."""
    write_text(directory / "gates.json", dump_json(told))
    write_text(directory / "report.html", html.report(name, told))


def write(out: Path, name: str, told: dict[str, Any]) -> None:
    """A new directory with both files; whole or absent."""
    with new_directory(out) as partial:
        put(partial, name, told)
