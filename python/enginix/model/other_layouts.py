"""Identify directories and repositories that are not a model in the Transformers layout, by their names."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

TRANSFORMERS_FIX = "use a repository in the Transformers layout: config.json and model*.safetensors"


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
    if "model_index.json" in names:
        return "a pipeline of diffusers, not a language model", TRANSFORMERS_FIX
    if "config.json" in names:
        return None
    for suffix, what in ((".gguf", "GGUF, llama.cpp's format"), (".pth", "a pickle"), (".bin", "a pickle")):
        if other := sorted(name for name in names if name.lower().endswith(suffix)):
            return f"no config.json beside {other[0]}, which is {what}", TRANSFORMERS_FIX
    return None
