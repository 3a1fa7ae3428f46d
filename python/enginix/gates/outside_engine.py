"""Whose answers they are: the engine that was asked, by its manifest."""

from __future__ import annotations

import json
from pathlib import Path

from enginix import manifest
from enginix.errors import GateError
from enginix.files import dump_json, sha256_file, write_text

FILE = "engine.json"


def write(engine: Path, directory: Path) -> None:
    """Says beside an engine's answers whose they are."""
    write_text(directory / FILE, dump_json({"manifestSha256": sha256_file(engine / manifest.FILE)}))


def require(engine: Path, said: Path) -> None:
    """Refuses the answers of another engine.

    Args:
        engine: the one that was asked, or what the gates made of it.
        said: directory of the answers.

    Raises:
        GateError: another engine's, or nobody's.
    """
    try:
        asked = json.loads((said / FILE).read_text("utf-8"))["manifestSha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise GateError(
            f"nothing says whose answers these are: {e}", where=str(said), fix="ask the engine again"
        ) from e
    made_of = manifest.read(engine, "engine").inputs.get("engine")
    own = {sha256_file(engine / manifest.FILE)}
    if isinstance(made_of, dict):
        own.add(str(made_of.get("manifestSha256")))
    if asked not in own:
        raise GateError("the answers are another engine's", where=str(said), fix="ask this engine")
