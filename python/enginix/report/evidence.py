"""The directory of evidence: ``gates.json`` and ``report.html``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginix.files import dump_json, new_directory, write_text
from enginix.report import html


def write_evidence_files(directory: Path, name: str, evidence: dict[str, Any]) -> None:
    """Write both files into an existing directory."""
    write_text(directory / "gates.json", dump_json(evidence))
    write_text(directory / "report.html", html.render_gate_report(name, evidence))


def write_evidence_directory(out: Path, name: str, evidence: dict[str, Any]) -> None:
    """Write a new directory with both files; whole or absent."""
    with new_directory(out) as partial:
        write_evidence_files(partial, name, evidence)
