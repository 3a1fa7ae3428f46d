"""The identity of a model, for the manifests of artefacts that are made from it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.files import sha256_file
from enginix.model.safetensors import ModelWeights


def identify_model(directory: Path, weights: ModelWeights) -> dict[str, Any]:
    """Return a model's identity: its manifest's inputs, or digests of its configuration and headers.

    Weights are not hashed, which would cost more than the conversion. A model without a manifest is
    identified by its headers.
    """
    if (directory / manifest.MANIFEST_FILE).exists():
        source_manifest = manifest.read_manifest(directory)
        return {
            "model": {
                "artefact": source_manifest.artefact,
                "name": source_manifest.name,
                **source_manifest.inputs,
            }
        }
    files: dict[str, Any] = {}
    for name in ("config.json", "hf_quant_config.json", "model.safetensors.index.json"):
        path = directory / name
        if path.exists():
            files[name] = {"sha256": sha256_file(path)}
    for header in weights.headers:
        digest = hashlib.sha256(header.raw).hexdigest()
        files[header.path.name] = {"headerSha256": digest, "size": header.path.stat().st_size}
    return {"model": {"files": files}}
