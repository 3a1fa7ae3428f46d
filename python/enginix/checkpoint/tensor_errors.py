"""Explain missing, unexpected and mistyped tensors by the names and types of a model's tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from enginix.model import TensorInfo
from enginix.wording import with_article

_SAVE = "load it with transformers' AutoModelForCausalLM and save_pretrained it again"


def explain_missing(name: str, tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """Return why ``name`` is not among a model's tensors, and how to fix it."""
    missing = f"tensor {name!r} is missing"
    for other in tensors:
        if other != name and other.endswith("." + name):
            prefix = other.removesuffix(name)
            return f"{missing}: names begin with {prefix!r} ({other})", (
                f"remove {prefix!r} from the names in the weights and their index"
            )
    short = name.removeprefix("model.")
    if short != name and short in tensors:
        return f"{missing}: names lack 'model.' ({short})", _advise_missing_prefix(tensors)
    if match := re.match(r"(.*\.experts)\.\d+\.", name):
        if fused := next(
            (t for t in sorted(tensors) if re.match(re.escape(match[1]) + r"\.[a-z_]+$", t)), None
        ):
            return f"{missing}: experts are fused in one tensor ({fused})", (f"{_SAVE}: one tensor an expert")
        if name.endswith(".input_scale") and name.replace("input_scale", "weight_scale") in tensors:
            return f"{missing}: calibration never reached this expert", (
                "quantize again with more calibration text (enginix calibrate), so that every expert is used"
            )
    if name.endswith(".input_scale") and name.replace("input_scale", "weight_scale") in tensors:
        return f"{missing}: the weight has a scale, and its input was not calibrated", (
            "quantize the original model with ModelOpt and calibration text (enginix quantize); weights with "
            "dynamic activations are for the llmapi kind"
        )
    if name == "lm_head.weight":
        return f"{missing}, and tie_word_embeddings is false: a model without a head writes no text", (
            "set tie_word_embeddings to true if the embedding is the head; an embedding or reward model "
            "cannot be served for text"
        )
    if name == "model.embed_tokens.weight" and "lm_head.weight" in tensors:
        return f"{missing}; only its tied alias lm_head.weight is stored", (
            "rename lm_head.weight to model.embed_tokens.weight in the weights and their index"
        )
    return missing, "fetch or export the model again: config.json says that it has this tensor"


def _advise_missing_prefix(tensors: Mapping[str, TensorInfo]) -> str:
    if "lm_head.weight" in tensors:
        return _SAVE
    return f"{_SAVE}; without a head of its own it must be tied: an embedding model writes no text"


def explain_mismatch(tensor: TensorInfo, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, str]:
    """Return what is wrong with a tensor's type or shape, and how to fix it."""
    what = (
        f"tensor {tensor.name!r} is {tensor.dtype} {list(tensor.shape)}; "
        f"config.json implies {' or '.join(dtypes)} {list(shape)}"
    )
    if tensor.dtype not in dtypes and tensor.shape == shape:
        if tensor.name.endswith("_scale"):
            return what, "export again with ModelOpt, which writes scales in F32"
        if tensor.dtype in ("F64", "F32", "F16", "BF16"):
            return what, "save the model in bfloat16, float16 or float32"
    return what, "pass config.json and weights of one revision"


def explain_unexpected(name: str, architecture: str, more: int) -> tuple[str, str]:
    """Return why a tensor cannot be converted, and how to fix it."""
    what = f"tensor {name!r} has no place in {with_article(architecture)} checkpoint" + (
        f" ({more} such tensors)" if more > 1 else ""
    )
    if ".lora_" in name or ".base_layer." in name:
        return what, "merge the LoRA adapter into the model first (PEFT's merge_and_unload)"
    if name.endswith(".kv_scale"):
        return what, "it is AutoFP8's KV cache scale: quantize the original model with ModelOpt"
    if name.endswith(".bias"):
        return what, "TensorRT-LLM's class has no such bias: serve the model with the llmapi kind"
    return what, "config.json and weights disagree; pass those of one revision"
