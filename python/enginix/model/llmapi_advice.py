"""Propose the llmapi kind in errors only where TensorRT-LLM's PyTorch backend has the model's class."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from enginix.errors import EnginixError
from enginix.tables import load_table

# A quantized model: transformers reads its codes as if they were weights.
_QUANTIZED_PROPOSAL = re.compile(r"[,;] or serve this one with the llmapi kind(?: \([^)]*\))?")
_PROPOSAL = re.compile(r"serve (?P<what>the model|it) with the llmapi kind(?: \([^)]*\))?")


def explain_no_pytorch_class(architecture: str | None) -> str | None:
    """Return that TensorRT-LLM's PyTorch backend has no class for an architecture; None where it has."""
    if architecture is None or architecture in load_table("pytorch_backend")["architectures"]:
        return None
    return f"TensorRT-LLM's PyTorch backend has no class for {architecture}, by its source of release 1.2"


def limit_llmapi_advice(fix: str, architecture: str | None) -> str:
    """Return a fix that proposes transformers in place of the llmapi kind where that lacks the class.

    Nothing takes the place of the llmapi kind for ``this one``, a quantized model.
    """
    if architecture in load_table("pytorch_backend")["architectures"]:
        return fix
    replacement = r"serve \g<what> with transformers: TensorRT-LLM's PyTorch backend has no class for it"
    return _PROPOSAL.sub(replacement, _QUANTIZED_PROPOSAL.sub("", fix))


@contextlib.contextmanager
def limited_llmapi_advice(architecture: str | None) -> Iterator[None]:
    """Apply :func:`limit_llmapi_advice` to the error that the body raises."""
    try:
        yield
    except EnginixError as e:
        if e.fix is not None:
            e.fix = limit_llmapi_advice(e.fix, architecture)
            e.args = (str(e),)
        raise
