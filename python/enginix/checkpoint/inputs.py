"""The identity of what an engine is built from: a checkpoint, and the model that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.files import sha256_file
from enginix.model.identity import identify_model, require_same_model


def identify_checkpoint_inputs(checkpoint: Path, model: Path) -> dict[str, Any]:
    """Return the identity of both inputs, for an engine's manifest.

    Raises:
        ManifestError: the checkpoint's manifest names another model than this one.
    """
    model_identity = identify_model(model)["model"]
    if (checkpoint / manifest.MANIFEST_FILE).exists():
        checkpoint_manifest = manifest.read_manifest(checkpoint, "checkpoint")
        require_same_model(checkpoint_manifest.inputs.get("model"), model_identity, checkpoint, "checkpoint")
    return {"model": model_identity, "checkpoint": identify_checkpoint(checkpoint)}


def identify_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Return the identity of a checkpoint, as the manifests of engines made of it have it."""
    if not (checkpoint / manifest.MANIFEST_FILE).exists():
        # enginix did not make it: its bytes are its identity.
        names = sorted(p.name for p in checkpoint.iterdir() if p.suffix in (".json", ".safetensors"))
        return {"files": {name: {"sha256": sha256_file(checkpoint / name)} for name in names}}
    return {
        "name": manifest.read_manifest(checkpoint, "checkpoint").name,
        "manifestSha256": sha256_file(checkpoint / manifest.MANIFEST_FILE),
    }
