"""The checkpoint that the interpreter needs: an engine holds none."""

from __future__ import annotations

from pathlib import Path

from enginix import manifest
from enginix.checkpoint.inputs import identify_checkpoint
from enginix.errors import ManifestError
from enginix.integrity import require_unchanged


def require_engine_checkpoint(engine: Path, checkpoint: Path) -> None:
    """Refuse a checkpoint that an engine was not built from.

    Raises:
        ManifestError: it is another one, or it changed.
    """
    built_from = manifest.read_manifest(engine, "engine").inputs.get("checkpoint")
    identity = identify_checkpoint(checkpoint)
    if built_from != identity:
        raise ManifestError(
            f"the engine was built from another checkpoint than {checkpoint}, or that one changed",
            where=str(engine),
            fix="pass the checkpoint that the engine was built from",
        )
    require_unchanged(checkpoint)
