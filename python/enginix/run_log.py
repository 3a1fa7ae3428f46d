"""What making an artefact took, in a file beside it: ``DIR.run.json`` for the artefact ``DIR``.

It is no part of the artefact, whose bytes depend on its inputs alone. Builds of Nix write none.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import __version__
from enginix.files import dump_json, write_text
from enginix.manifest import MANIFEST_FILE

SUFFIX = ".run.json"
FORMAT = 1
LARGEST = 1 << 20  # bytes


@dataclass(frozen=True)
class ArtefactRun:
    """One run of one command.

    Attributes:
        machine: processors and architecture of the machine that ran it.
        peak_bytes: largest resident memory of the command's own process.
        steps: as :class:`enginix.progress.StepRecord` writes them.
    """

    command: str
    machine: str
    seconds: float
    peak_bytes: int | None
    steps: tuple[dict[str, Any], ...]


def find_run_log(artefact: Path) -> Path:
    """Return the place of an artefact's run log."""
    return name_beside(artefact, SUFFIX)


def name_beside(artefact: Path, suffix: str) -> Path:
    """Return the file of what is told of an artefact beside it."""
    real = Path(os.path.abspath(artefact))
    return real.with_name(real.name + suffix)


def is_store(directory: Path) -> bool:
    """Tell whether a directory is Nix's store, which is not written to."""
    return directory == Path(os.environ.get("NIX_STORE") or "/nix/store")


def read_manifest_digest(artefact: Path) -> str | None:
    """Return the digest that an artefact's manifest has of itself; None without one."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        digest = json.loads((artefact / MANIFEST_FILE).read_text("utf-8")).get("digest")
        return digest if isinstance(digest, str) else None
    return None


def write_run_log(artefact: Path, command: str, statistics: dict[str, Any]) -> None:
    """Write the run log of an artefact that was just made, where the directory allows it."""
    file = find_run_log(artefact)
    if is_store(file.parent):
        return
    content = {
        "format": FORMAT,
        "enginix": __version__,
        "command": command,
        "manifest": read_manifest_digest(artefact),
        "machine": {"cpus": len(os.sched_getaffinity(0)), "architecture": platform.machine()},
        **statistics,
    }
    with contextlib.suppress(OSError):
        write_text(file, dump_json(content))


def read_run_log(artefact: Path) -> ArtefactRun | None:
    """Return the run log beside an artefact; None without one, and for one of another artefact."""
    file = find_run_log(artefact)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if not file.is_file() or file.stat().st_size > LARGEST:
            return None
        raw = json.loads(file.read_text("utf-8"))
        if raw["format"] != FORMAT or raw["manifest"] != read_manifest_digest(artefact):
            return None
        machine, peak = raw["machine"], raw["peakBytes"]
        steps = tuple(
            step for step in raw["steps"] if isinstance(step["step"], str) and float(step["seconds"]) >= 0
        )
        return ArtefactRun(
            str(raw["command"])[:40],
            f"{int(machine['cpus'])} processors, {str(machine['architecture'])[:40]}",
            float(raw["seconds"]),
            None if peak is None else int(peak),
            steps,
        )
    return None
