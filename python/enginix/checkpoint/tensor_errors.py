"""Explain missing, unexpected and mistyped tensors by the names and types of a model's tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from enginix.model import TensorInfo
from enginix.wording import with_article

_SAVE = "load it with transformers' AutoModelForCausalLM and save_pretrained it again"
# A loaded model's experts are saved in the form that they had; those of a new model are one tensor each.
_SAVE_SPLIT = (
    "load it with transformers' AutoModelForCausalLM.from_pretrained as m, then n = "
    "AutoModelForCausalLM.from_config(m.config, dtype=m.dtype), n.load_state_dict(m.state_dict()) and "
    "n.save_pretrained to another directory"
)
_QUANTIZE = "quantize the original model with ModelOpt, or serve this one with the llmapi kind"
_PACKED = ("qweight", "qzeros", "scales", "weight_packed")
# Projections that other classes of models keep as one.
_FUSED = {("q_proj", "k_proj", "v_proj"): ("qkv_proj", "W_pack", "query_key_value", "wqkv"),
          ("gate_proj", "up_proj"): ("gate_up_proj",)}  # fmt: skip
# Heads that are not for text, towers that are not for it, and heads that predict further tokens.
_OTHER_PARTS = (
    (r"^(score|v_head|classifier|value_head|reward_head)\.", "the head of a classifier or reward model",
     "remove it if the model is for text as well"),
    (r"(^|\.)(vision|visual|audio|multi_modal|mm_)\w*\.", "part of a multimodal model",
     "serve the model with the llmapi kind"),
    (r"(^|\.)mtp\.", "of a head that predicts further tokens",
     "remove it, or serve the model with the llmapi kind"),
    (r"\.(absmax|quant_map|nested_absmax|SCB|weight_format)$|bitsandbytes__", "quantized by bitsandbytes",
     _QUANTIZE),
)  # fmt: skip


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
    if short != name and "model.embed_tokens.weight" not in tensors:
        for other in tensors:
            if other.endswith("." + short):
                prefix = other.removesuffix(short)
                return f"{missing}: names begin with {prefix!r} in place of 'model.' ({other})", (
                    f"rename {prefix!r} to 'model.' in the weights and their index"
                )
    stem = name.removesuffix(".weight")
    if packed := next((f"{stem}.{leaf}" for leaf in _PACKED if f"{stem}.{leaf}" in tensors), None):
        return (
            f"{missing}: packed by GPTQ, AWQ or others ({packed}), and config.json does not say so",
            _QUANTIZE,
        )
    if fused := _find_fused(name, tensors):
        return f"{missing}: it is fused with others, or split, in {fused}", (
            "config.json names another class of models than the weights are of: correct its architectures "
            f"and model_type, or {_SAVE}"
        )
    if explained := _explain_missing_expert(name, tensors):
        return f"{missing}: {explained[0]}", explained[1]
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
    embeddings = any(re.search(r"(embed_tokens|embed_in|wte|embeddings?)\.weight$", t) for t in tensors)
    if name == "model.embed_tokens.weight" and "lm_head.weight" in tensors and not embeddings:
        return f"{missing}; only its tied alias lm_head.weight is stored", (
            "rename lm_head.weight to model.embed_tokens.weight in the weights and their index"
        )
    return missing, "fetch or export the model again: config.json says that it has this tensor"


def _explain_missing_expert(name: str, tensors: Mapping[str, TensorInfo]) -> tuple[str, str] | None:
    """Return why a tensor of an expert, or of the router, is missing; None for other tensors."""
    match = re.match(r"(?P<layer>model\.layers\.\d+\.)\w+\.(gate|experts\.(?P<expert>\d+))\.", name)
    if match is None:
        return None
    experts = [t for t in sorted(tensors) if t.startswith(match["layer"]) and ".experts." in t]
    numbers = {t: int(n[1]) for t in experts if (n := re.search(r"\.experts\.(\d+)\.", t))}
    if fused := next((t for t in experts if t not in numbers), None):
        return f"experts are fused in one tensor ({fused})", f"{_SAVE_SPLIT}: one tensor an expert"
    if match["expert"] is None or not numbers:
        return None
    stored = sorted(set(numbers.values()))
    if int(match["expert"]) not in stored:
        return f"the weights have {len(stored)} experts in that layer", (
            "correct the number of experts in config.json, or fetch every shard"
        )
    if name.endswith(".input_scale") and name.replace("input_scale", "weight_scale") in tensors:
        return "calibration never reached this expert", (
            "quantize again with more calibration text (enginix calibrate), so that every expert is used"
        )
    leaf = ".".join(name.rsplit(".", 2)[-2:])
    if not name.endswith("_scale") and not any(t.endswith(f".{leaf}") for t in experts):
        return f"its experts have other names ({experts[0]})", (
            "config.json names another class of models than the weights are of: correct its architectures "
            "and model_type"
        )
    return None


def _find_fused(name: str, tensors: Mapping[str, TensorInfo]) -> str | None:
    """Return the tensor that holds a missing projection with others, or a part of it."""
    for projections, wholes in _FUSED.items():
        for leaf in (*projections, *wholes):
            if f".{leaf}." not in name:
                continue
            others = wholes if leaf in projections else projections
            for other in others:
                if (candidate := name.replace(f".{leaf}.", f".{other}.")) in tensors:
                    return candidate
    return None


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
    rows_differ = tensor.shape[1:] == shape[1:] and tensor.shape[:1] != shape[:1]
    if (
        tensor.name in ("model.embed_tokens.weight", "lm_head.weight")
        and rows_differ
        and tensor.dtype in dtypes
    ):
        return what, (
            f"set vocab_size to {tensor.shape[0]} in config.json if embedding and head were resized to it; "
            "if not, pass config.json and weights of one revision"
        )
    if tensor.dtype in ("F8_E4M3", "I8", "U8") and not set(dtypes) & {"F8_E4M3", "I8", "U8"}:
        return f"{what}: quantized, and nothing says how", (
            f"fetch hf_quant_config.json of the same repository if ModelOpt quantized it; if not, {_QUANTIZE}"
        )
    if tensor.dtype not in dtypes and tensor.shape == shape:
        if tensor.name.endswith("_scale"):
            return what, "export again with ModelOpt, which writes scales in F32"
        if tensor.dtype in ("F64", "F32", "F16", "BF16"):
            return what, "save the model in bfloat16, float16 or float32"
    return what, "pass config.json and weights of one revision"


def explain_unexpected(name: str, architecture: str, more: int, layers: int) -> tuple[str, str]:
    """Return why a tensor cannot be converted, and how to fix it."""
    what = f"tensor {name!r} has no place in {with_article(architecture)} checkpoint" + (
        f" ({more} such tensors)" if more > 1 else ""
    )
    if ".lora_" in name or ".base_layer." in name:
        return what, "merge the LoRA adapter into the model first (PEFT's merge_and_unload)"
    if name.endswith(".kv_scale"):
        return what, "it is AutoFP8's KV cache scale: quantize the original model with ModelOpt"
    for pattern, part, fix in _OTHER_PARTS:
        if re.search(pattern, name):
            return f"{what}: {part}", fix
    if (layer := re.match(r"model\.layers\.(\d+)\.", name)) and int(layer[1]) >= layers:
        return what, "correct num_hidden_layers, or pass config.json and weights of one revision"
    if name.endswith(".bias"):
        return what, "TensorRT-LLM's class has no such bias: serve the model with the llmapi kind"
    return what, "config.json and weights disagree; pass those of one revision"
