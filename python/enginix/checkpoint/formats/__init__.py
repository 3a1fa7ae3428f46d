"""One module a number format: the tensors of a matrix, how they are made, what they mean."""

from __future__ import annotations

from enginix.checkpoint.formats.base import Format, Spec
from enginix.checkpoint.formats.plain import Plain

__all__ = ["Format", "Plain", "Spec", "format_of"]


def format_of(algorithm: str | None, form: str = "trtllm") -> Format:
    """The format of a matrix.

    Args:
        algorithm: a key of quantization.json, or None.
        form: ``trtllm`` or ``modelopt``: which of the two accepted forms NVFP4 takes.
    """
    if algorithm is None:
        return Plain()
    raise KeyError(algorithm)
