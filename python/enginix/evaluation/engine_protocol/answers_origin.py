"""The origin of recorded answers: the engine that was asked, by its manifest."""

from __future__ import annotations

import json
from pathlib import Path

from enginix import manifest
from enginix.errors import GateError
from enginix.files import dump_json, refuse_damage, sha256_file, write_text

FILE = "engine.json"


def write_answers_origin(engine: Path, directory: Path) -> None:
    """Record the origin of an engine's answers beside them."""
    write_text(directory / FILE, dump_json({"manifestSha256": sha256_file(engine / manifest.MANIFEST_FILE)}))


def require_answers_origin(engine: Path, answers_directory: Path) -> None:
    """Refuse the answers of another engine.

    Args:
        engine: the one that was asked, or the gated engine made from it.
        answers_directory: directory of the answers.

    Raises:
        GateError: the answers are of another engine, or without an origin.
    """
    what = "the origin of these answers is not known"
    with refuse_damage(GateError, answers_directory, "ask the engine again", what=what):
        origin_digest = json.loads((answers_directory / FILE).read_text("utf-8"))["manifestSha256"]
    made_of = manifest.read_manifest(engine, "engine").inputs.get("engine")
    engine_digests = {sha256_file(engine / manifest.MANIFEST_FILE)}
    if isinstance(made_of, dict):
        engine_digests.add(str(made_of.get("manifestSha256")))
    if str(origin_digest) not in engine_digests:
        raise GateError(
            "the answers are another engine's", where=str(answers_directory), fix="ask this engine"
        )
