"""The errors of a model that many readers raise alike."""

from __future__ import annotations

from enginix.errors import ModelError

LLMAPI_FIX = "serve the model with the llmapi kind"
DAMAGED_FIX = (
    "compare the file with the Hub's: if they differ, fetch it again; if not, report it to the model's author"
)


def make_value_error(what: str, where: str) -> ModelError:
    """Return the error of a value that is mended in ``config.json``."""
    return ModelError(what, where=where, fix="correct config.json")


def make_damage_error(what: str, where: str) -> ModelError:
    """Return the error of a file that is not as its author wrote it, or was written wrong."""
    return ModelError(what, where=where, fix=DAMAGED_FIX)


def make_unconvertible_error(what: str, where: str) -> ModelError:
    """Return the error of a model that is right and that no TensorRT-LLM checkpoint can hold."""
    return ModelError(what, where=where, fix=LLMAPI_FIX)
