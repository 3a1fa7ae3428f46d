"""A gated engine: links to the engine, the gates' evidence, and a manifest with the verdicts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.errors import ManifestError
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.files import sha256_file
from enginix.integrity import list_content
from enginix.manifest import Manifest
from enginix.report import evidence
from enginix.work_directory import new_directory

WRITTEN_FILES = (manifest.MANIFEST_FILE, "gates.json", "report.html")


def read_checkpoint_verdicts(engine: Manifest, gated: Path | None) -> dict[str, str]:
    """Return the gates that the engine's checkpoint passed on the reference kind.

    Raises:
        ManifestError: not a gated reference engine, or one of another checkpoint.
    """
    if gated is None:
        return {}
    reference_manifest = manifest.read_manifest(gated, "engine")
    gated_checkpoint, engine_checkpoint = (
        reference_manifest.inputs.get("checkpoint"),
        engine.inputs.get("checkpoint"),
    )
    digests = [
        c.get("manifestSha256") if isinstance(c, dict) else None
        for c in (gated_checkpoint, engine_checkpoint)
    ]
    if reference_manifest.kind != "reference" or digests[0] is None or digests[0] != digests[1]:
        raise ManifestError(
            "is not a reference engine of this engine's checkpoint",
            where=str(gated),
            fix="gate that checkpoint: enginix build CHECKPOINT --kind reference",
        )
    verdicts = reference_manifest.results.get("gates")
    if not isinstance(verdicts, dict) or not verdicts or any(v != "passed" for v in verdicts.values()):
        raise ManifestError("its gates did not pass", where=str(gated), fix="build it with gates")
    return {str(k): str(v) for k, v in verdicts.items()}


def write_gated_engine(
    engine: Path,
    out: Path,
    outcomes: Sequence[GateOutcome],
    gate_evidence: Mapping[str, Any],
    golden: Mapping[str, Any] | None,
    *,
    answers_directory: Path | None,
    checkpoint: Path | None = None,
) -> Manifest:
    """Write the gated engine, whole or absent; the caller must have required that every gate passed.

    Args:
        golden: prompt and answer that servers compare at start.
        answers_directory: the engine's answers that were judged.
        checkpoint: a gated reference engine of the engine's checkpoint.
    """
    engine_manifest = manifest.read_manifest(engine, "engine")
    verdicts = read_checkpoint_verdicts(engine_manifest, checkpoint) | {o.gate: "passed" for o in outcomes}
    inputs: dict[str, Any] = {"engine": {"manifestSha256": sha256_file(engine / manifest.MANIFEST_FILE)}}
    if answers_directory is not None:
        inputs["said"] = {p.name: {"sha256": sha256_file(p)} for p in sorted(answers_directory.iterdir())}
    results = {**engine_manifest.results, "gates": verdicts or "not gated"} | (
        {"golden": dict(golden)} if golden else {}
    )
    content = list_content(engine)
    with new_directory(out) as partial:
        for path in sorted(engine.iterdir()):
            if path.name not in (*WRITTEN_FILES, *manifest.UNLISTED_FILES):
                (partial / path.name).symlink_to(os.path.abspath(path))
        evidence.write_evidence_files(partial, engine_manifest.name, dict(gate_evidence))
        described = replace(engine_manifest, inputs={**engine_manifest.inputs, **inputs}, results=results)
        known = {name: digest for name, digest in content.items() if name not in WRITTEN_FILES}
        return described.write(partial, known)
