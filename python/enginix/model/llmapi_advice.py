"""Propose the llmapi kind in errors only where TensorRT-LLM's PyTorch backend has the model's class."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from enginix.errors import EnginixError
from enginix.tables import load_table

NO_CLASS_FIX = "serve the model with transformers"


def explain_no_pytorch_class(architecture: str | None) -> str | None:
    """Return that TensorRT-LLM's PyTorch backend has no class for an architecture; None where it has."""
    table = load_table("pytorch_backend")
    if architecture is None or architecture in table["architectures"]:
        return None
    return (
        f"TensorRT-LLM's PyTorch backend has no class for {architecture}, "
        f"by its source of release {table['release']}"
    )


def is_in_listed_release(version: str) -> bool:
    """Return whether TensorRT-LLM is of the release whose classes are listed, or older.

    Args:
        version: for instance ``1.3.0rc20``, whose classes are not known.
    """
    listed = [int(part) for part in load_table("pytorch_backend")["release"].split(".")]
    return [int(part) for part in version.split(".")[:2]] <= listed


def _limit_advice(fix: str, architecture: str | None) -> str:
    table = load_table("pytorch_backend")
    if architecture in table["architectures"]:
        return fix
    replacements = dict(table["proposals"])
    pattern = "|".join(map(re.escape, replacements))
    return re.sub(pattern, lambda match: replacements[match[0]], fix)


@contextlib.contextmanager
def limited_llmapi_advice(architecture: str | None) -> Iterator[None]:
    """Change the fix of an error that the body raises, where it proposes the llmapi kind without a class.

    Texts and architectures are those of pytorch_backend.json; nix/check/llmapi-advice.nix does the same.
    """
    try:
        yield
    except EnginixError as e:
        if e.fix is not None:
            e.fix = _limit_advice(e.fix, architecture)
            e.args = (str(e),)
        raise
