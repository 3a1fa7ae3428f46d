"""Names in camelCase (Nix and JSON), snake_case (Python, TensorRT-LLM) and kebab-case (flags)."""

from __future__ import annotations

import re
from typing import Any


def to_camel_case(name: str) -> str:
    """Convert ``gemm-plugin`` to ``gemmPlugin``."""
    return re.sub(r"[-_]([a-z0-9])", lambda m: m[1].upper(), name)


def to_snake_case(name: str) -> str:
    """Convert ``maxSeqLen`` to ``max_seq_len``."""
    return re.sub(r"([A-Z])", lambda m: "_" + m[1].lower(), name)


def to_kebab_case(name: str) -> str:
    """Convert ``maxSeqLen`` to ``max-seq-len``."""
    return to_snake_case(name).replace("_", "-")


def camel_case_keys(value: Any) -> Any:
    """Return a JSON value whose keys are in camelCase, at every depth; tuples become lists.

    Keys that are no names of fields (paths, dtype codes, algorithms) stay.
    """
    if isinstance(value, dict):
        return {
            to_camel_case(k) if re.fullmatch(r"[a-z0-9_]+", k) else k: camel_case_keys(v)
            for k, v in value.items()
        }
    return [camel_case_keys(v) for v in value] if isinstance(value, list | tuple) else value
