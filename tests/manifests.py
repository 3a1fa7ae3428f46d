"""Manifests that a test changes, whole otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest's JSON and give it the digest of its new text, as somebody who knows how would."""
    path = directory / "enginix.json"
    content = json.loads(path.read_text())
    change(content)
    if "digest" in content:
        content["digest"] = "0" * 64
        text = json.dumps(content)
        content["digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(content))


def age_manifest(directory: Path) -> None:
    """Write a manifest as enginix did before it had digests."""
    path = directory / "enginix.json"
    content = json.loads(path.read_text())
    content.pop("digest")
    content.pop("files")
    path.write_text(json.dumps({**content, "format": 1}))
