"""Whose answers they are: the engine that was asked, by its manifest."""

from __future__ import annotations

import json
from pathlib import Path

from enginix import manifest
from enginix.errors import GateError
from enginix.files import dump_json, sha256_file, write_text

FILE = "engine.json"


def write_answers_origin(engine: Path, directory: Path) -> None:
    """Says beside an engine's answers whose they are."""
    write_text(directory / FILE, dump_json({"manifestSha256": sha256_file(engine / manifest.MANIFEST_FILE)}))


def require_answers_origin(engine: Path, answers_directory: Path) -> None:
    """Refuses the answers of another engine.

    Args:
        engine: the one that was asked, or what the gates made of it.
        answers_directory: directory of the answers.

    Raises:
        GateError: another engine's, or nobody's.
    """
    try:
        origin_digest = json.loads((answers_directory / FILE).read_text("utf-8"))["manifestSha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise GateError(
            f"nothing says whose answers these are: {e}",
            where=str(answers_directory),
            fix="ask the engine again",
        ) from e
    made_of = manifest.read_manifest(engine, "engine").inputs.get("engine")
    engine_digests = {sha256_file(engine / manifest.MANIFEST_FILE)}
    if isinstance(made_of, dict):
        engine_digests.add(str(made_of.get("manifestSha256")))
    if origin_digest not in engine_digests:
        raise GateError(
            "the answers are another engine's", where=str(answers_directory), fix="ask this engine"
        )
