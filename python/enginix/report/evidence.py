"""The directory of evidence: ``gates.json`` and ``report.html``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginix.bench_record import StoredSpeed, read_bench_record
from enginix.files import dump_json, write_text
from enginix.report import html
from enginix.work_directory import new_directory


def write_evidence_files(
    directory: Path, name: str, evidence: dict[str, Any], speed: StoredSpeed | None = None
) -> None:
    """Write both files into an existing directory; a measured speed is on the page alone."""
    write_text(directory / "gates.json", dump_json(evidence))
    write_text(directory / "report.html", html.render_gate_report(name, evidence, speed))


def write_evidence_directory(out: Path, engine: Path, name: str, evidence: dict[str, Any]) -> None:
    """Write a new directory with both files, and the speed measured beside the engine; whole or absent."""
    record = read_bench_record(engine)
    with new_directory(out) as partial:
        write_evidence_files(partial, name, evidence, record if isinstance(record, StoredSpeed) else None)
