"""tests/golden/requests.jsonl.xz: requests, and what TensorRT-LLM's own Python made of them."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "golden" / "requests.jsonl.xz"
SECTIONS = ("result", "error", "build_config", "plugin_config")


@cache
def golden_rows() -> tuple[dict[str, Any], ...]:
    """Every row; not to be modified."""
    with lzma.open(FILE, "rt", encoding="utf-8") as lines:
        return tuple(json.loads(line) for line in lines)


def differences(expected: dict[str, Any], predicted: dict[str, Any]) -> dict[str, Any]:
    """Field → what NVIDIA's code made, what was predicted."""
    found: dict[str, Any] = {}
    for section in SECTIONS:
        theirs, ours = expected.get(section), predicted.get(section)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            names = {**theirs, **ours}
            found |= {
                f"{section}.{n}": (theirs.get(n, "missing"), ours.get(n, "missing"))
                for n in names
                if theirs.get(n, "missing") != ours.get(n, "missing")
            }
        elif theirs != ours:
            found[section] = (theirs, ours)
    return found
