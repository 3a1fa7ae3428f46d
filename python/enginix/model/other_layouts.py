"""Identify directories and repositories that are not a model in the Transformers layout, by their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from enginix.errors import ModelError

TRANSFORMERS_FIX = "use a repository in the Transformers layout: config.json and model*.safetensors"


_ENGINE_FIX = "pass the model that it was made from; enginix triton-repo takes an engine"
_NOT_A_MODEL = {
    "checkpoint": (
        "a TensorRT-LLM checkpoint, not a model",
        "pass the model that it was converted from; enginix build takes a checkpoint",
    ),
    "engine": ("an engine of TensorRT-LLM, not a model", _ENGINE_FIX),
}
_MADE_BY_ENGINIX = {**_NOT_A_MODEL, "engine": ("an engine, not a model", _ENGINE_FIX)}
_NOT_A_CHECKPOINT = {
    "model": ("a Hugging Face model, not a TensorRT-LLM checkpoint", "make one with enginix convert"),
    "engine": ("an engine of TensorRT-LLM, not a checkpoint", "pass the checkpoint that it was built from"),
}


def explain_other_config(raw: Mapping[str, Any], expected: str) -> tuple[str, str] | None:
    """Return what a ``config.json`` describes in place of what is expected, and how to fix it.

    Args:
        expected: ``model`` or ``checkpoint``.

    Returns:
        None for what is expected, and for what is not known.
    """
    if {"pretrained_config", "build_config"} <= raw.keys():
        kind = "engine"
    elif "architectures" not in raw and isinstance(raw.get("architecture"), str):
        kind = "checkpoint"
    elif "architecture" not in raw and {"architectures", "model_type"} & raw.keys():
        kind = "model"
    else:
        return None
    return (_NOT_A_MODEL if expected == "model" else _NOT_A_CHECKPOINT).get(kind)


def require_model_config(raw: Mapping[str, Any], where: str) -> None:
    """Raise a ModelError if a parsed ``config.json`` is that of a checkpoint or of an engine."""
    if other := explain_other_config(raw, "model"):
        raise ModelError(other[0], where=where, fix=other[1])


def _explain_ranks(names: Collection[str]) -> tuple[str, str] | None:
    for suffix, kind in (("safetensors", "checkpoint"), ("engine", "engine")):
        if any(re.fullmatch(rf"rank\d+\.{suffix}", name) for name in names):
            return _NOT_A_MODEL[kind]
    return None


def explain_other_artefact(names: Collection[str], artefact: Any) -> tuple[str, str] | None:
    """Return that a directory without ``config.json`` is a checkpoint or an engine, and how to fix it.

    Args:
        names: of the files at its top.
        artefact: of its manifest; None without one.
    """
    return _explain_ranks(names) or (_MADE_BY_ENGINIX.get(artefact) if isinstance(artefact, str) else None)


def explain_other_layout(names: Collection[str]) -> tuple[str, str] | None:
    """Return what it is in place of a model, and how to fix it; None for an unknown layout.

    Args:
        names: of the files at its top.
    """
    if "adapter_config.json" in names:
        return "a LoRA adapter, not a model", "merge it into its base model (PEFT's merge_and_unload) first"
    if "params.json" in names and any(fnmatchcase(name, "consolidated.*.pth") for name in names):
        return (
            "weights in Mistral's own layout, which is Meta's (params.json, consolidated.*.pth), "
            "not in transformers'",
            f"{TRANSFORMERS_FIX}; transformers converts (convert_llama_weights_to_hf.py, "
            "convert_mistral_weights_to_hf.py)",
        )
    if any(fnmatchcase(name, "consolidated*.safetensors") for name in names):
        return (
            "weights in Mistral's own layout (params.json, consolidated*), not in transformers'",
            f"{TRANSFORMERS_FIX}; transformers converts (convert_mistral_weights_to_hf.py)",
        )
    if ranks := _explain_ranks(names):
        return ranks
    if "model_index.json" in names:
        return "a pipeline of diffusers, not a language model", TRANSFORMERS_FIX
    if "config.json" in names:
        return None
    for suffix, what in ((".gguf", "GGUF, llama.cpp's format"), (".pth", "a pickle"), (".bin", "a pickle")):
        if other := sorted(name for name in names if name.lower().endswith(suffix)):
            return f"no config.json beside {other[0]}, which is {what}", TRANSFORMERS_FIX
    return None
